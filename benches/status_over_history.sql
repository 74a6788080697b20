-- Purpose: the table of status.sql, computed from the history of all keys instead of the balance: what the
-- balance must equal, and what a query over the history costs.
-- Grain: one row per day of the window, whether anything changed on it or not.
-- Relation: history.
-- Parameters: $start_date, $end_date (DATE): the days [$start_date, $end_date).
--
-- A customer's status at the end of day d is the entry with the greatest seq among those with
-- event_dt <= d. Event dates can go backwards: an entry is never the status if an earlier day has an
-- entry with a greater seq. So an entry is the status from its day on if its seq is the greatest up
-- to that day, until the day of the next such entry. These spans are counted, turned into additions
-- and subtractions per day, and summed up over the days: this sorts the history once, instead of
-- joining customers and days.
--
-- A category without customers is null; total is the number of live customers, 0 if there are none.
-- An entry without an event date counts on no day.

WITH entries AS (
    SELECT
        cust_id,
        event_dt,
        cust_loyalty_category,
        deleted,
        seq,
        MAX(seq) OVER (
            PARTITION BY cust_id
            ORDER BY event_dt
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS greatest_seq
    FROM history
    WHERE event_dt < $end_date
),

-- Entries that were the status: from event_dt to end_dt (exclusive), open if end_dt is null.
held AS (
    SELECT
        event_dt,
        LEAD(event_dt) OVER (PARTITION BY cust_id ORDER BY event_dt) AS end_dt,
        cust_loyalty_category,
        deleted
    FROM entries
    WHERE seq = greatest_seq
),

-- The number of customers with one category over the same days of the window.
spans AS (
    SELECT
        GREATEST(event_dt, CAST($start_date AS DATE)) AS start_dt,
        end_dt,
        cust_loyalty_category,
        COUNT(*) AS customers
    FROM held
    WHERE NOT deleted
      AND (end_dt IS NULL OR end_dt > $start_date)
    GROUP BY
        GREATEST(event_dt, CAST($start_date AS DATE)),
        end_dt,
        cust_loyalty_category
),

-- Each span twice: added on its first day, subtracted on the day it ends.
changes_of_day AS (
    SELECT
        CASE WHEN side.sign > 0 THEN spans.start_dt ELSE spans.end_dt END AS dt,
        spans.cust_loyalty_category,
        side.sign * spans.customers AS delta
    FROM spans
    CROSS JOIN (VALUES (1), (-1)) AS side (sign)
    WHERE side.sign > 0 OR spans.end_dt IS NOT NULL
),

deltas AS (
    SELECT
        dt,
        SUM(CASE WHEN cust_loyalty_category = 'Basic' THEN delta ELSE 0 END)    AS basic,
        SUM(CASE WHEN cust_loyalty_category = 'Silver' THEN delta ELSE 0 END)   AS silver,
        SUM(CASE WHEN cust_loyalty_category = 'Gold' THEN delta ELSE 0 END)     AS gold,
        SUM(CASE WHEN cust_loyalty_category = 'Platinum' THEN delta ELSE 0 END) AS platinum,
        SUM(delta)                                                              AS total
    FROM changes_of_day
    GROUP BY dt
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
