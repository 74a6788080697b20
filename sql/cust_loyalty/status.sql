-- Purpose: loyalty customers, status: live customers by category at the end of each day.
-- Grain: one row per day of the window, whether anything changed on it or not.
-- Relation: balance.
-- Parameters: $start_date, $end_date (DATE): the days [$start_date, $end_date).
--
-- The number of customers of a category at the end of a day is what has entered it up to then, less
-- what has exited. What changed before the window counts on its first day.
--
-- A category without customers is null; total is the number of live customers, 0 if there are none.
-- A change without an event date counts on no day.

WITH deltas AS (
    SELECT
        GREATEST(event_dt, CAST($start_date AS DATE)) AS dt,
        SUM(CASE WHEN cust_loyalty_category = 'Basic' THEN entered - exited ELSE 0 END)    AS basic,
        SUM(CASE WHEN cust_loyalty_category = 'Silver' THEN entered - exited ELSE 0 END)   AS silver,
        SUM(CASE WHEN cust_loyalty_category = 'Gold' THEN entered - exited ELSE 0 END)     AS gold,
        SUM(CASE WHEN cust_loyalty_category = 'Platinum' THEN entered - exited ELSE 0 END) AS platinum,
        SUM(entered - exited)                                                              AS total
    FROM balance
    WHERE event_dt < $end_date
    GROUP BY GREATEST(event_dt, CAST($start_date AS DATE))
),

days AS (
    SELECT UNNEST(RANGE(CAST($start_date AS DATE), CAST($end_date AS DATE), INTERVAL '1 day')) AS dt
),

standing AS (
    SELECT
        days.dt,
        SUM(deltas.basic) OVER until_day    AS basic,
        SUM(deltas.silver) OVER until_day   AS silver,
        SUM(deltas.gold) OVER until_day     AS gold,
        SUM(deltas.platinum) OVER until_day AS platinum,
        SUM(deltas.total) OVER until_day    AS total
    FROM days
    LEFT JOIN deltas ON deltas.dt = days.dt
    WINDOW until_day AS (ORDER BY days.dt ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
)

SELECT
    CAST(dt AS DATE)                    AS dt,
    CAST(NULLIF(basic, 0) AS BIGINT)    AS basic,
    CAST(NULLIF(silver, 0) AS BIGINT)   AS silver,
    CAST(NULLIF(gold, 0) AS BIGINT)     AS gold,
    CAST(NULLIF(platinum, 0) AS BIGINT) AS platinum,
    CAST(COALESCE(total, 0) AS BIGINT)  AS total
FROM standing
