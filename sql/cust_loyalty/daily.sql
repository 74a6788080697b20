-- Purpose: loyalty customers, daily: customers per category, by their last change of the day.
-- Grain: one row per day on which at least one customer changed and was not deleted.
-- Relation: history.
-- Parameters: $start_date, $end_date (DATE): the days [$start_date, $end_date).
--
-- A category without customers is null. An entry without an event date counts on no day.

WITH left_in AS (
    SELECT event_dt, cust_loyalty_category
    FROM history
    WHERE NOT deleted
      AND event_dt >= $start_date
      AND event_dt < $end_date
),

counted AS (
    SELECT
        event_dt,
        COUNT(*) FILTER (WHERE cust_loyalty_category = 'Basic')    AS basic,
        COUNT(*) FILTER (WHERE cust_loyalty_category = 'Silver')   AS silver,
        COUNT(*) FILTER (WHERE cust_loyalty_category = 'Gold')     AS gold,
        COUNT(*) FILTER (WHERE cust_loyalty_category = 'Platinum') AS platinum
    FROM left_in
    GROUP BY event_dt
)

SELECT
    CAST(event_dt AS DATE)              AS dt,
    CAST(NULLIF(basic, 0) AS BIGINT)    AS basic,
    CAST(NULLIF(silver, 0) AS BIGINT)   AS silver,
    CAST(NULLIF(gold, 0) AS BIGINT)     AS gold,
    CAST(NULLIF(platinum, 0) AS BIGINT) AS platinum
FROM counted
