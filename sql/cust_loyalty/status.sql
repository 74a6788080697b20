-- Purpose: loyalty customers, status: live customers by category at the end of each day.
-- Grain: one row per day of the window, whether anything changed on it or not.
-- Relation: history.
-- Parameters: $start_date, $end_date (DATE): the days [$start_date, $end_date).
--
-- What was true of a customer at the end of day d is the entry with the greatest seq among those
-- with event_dt <= d. Event dates can go backwards: an entry that a greater seq of an earlier day
-- already overtook never held. So an entry holds from its day on if its seq is the greatest up to
-- there, and until the day of the next such entry. The spans are counted, turned into what each
-- day adds and takes away, and summed up over the days: the work is one sort of the history, not
-- customers times days.
--
-- A category with nobody in it is null; total is every live customer, 0 where there is none. An
-- entry without an event date is on no day and changes nothing here.

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

-- Entries that held: from event_dt up to, not including, end_dt; open where end_dt is null.
held AS (
    SELECT
        event_dt,
        LEAD(event_dt) OVER (PARTITION BY cust_id ORDER BY event_dt) AS end_dt,
        cust_loyalty_category,
        deleted
    FROM entries
    WHERE seq = greatest_seq
),

-- Customers who stood in one category over the same days of the window.
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

-- Each span twice: added on its first day, taken away on the day it ends.
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
