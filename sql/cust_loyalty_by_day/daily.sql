-- Purpose: loyalty customers by day, daily: customers per category, by their last change of the
-- day.
-- Grain: one row per day that has curated rows.
-- Relation: curated, which already is each customer's last change of the day.
-- Parameters: $start_date, $end_date (DATE): the days [$start_date, $end_date).
--
-- A category without customers is null. A row without an event date counts on no day.

WITH counted AS (
    SELECT
        event_dt,
        COUNT(*) FILTER (WHERE cust_loyalty_category = 'Basic')    AS basic,
        COUNT(*) FILTER (WHERE cust_loyalty_category = 'Silver')   AS silver,
        COUNT(*) FILTER (WHERE cust_loyalty_category = 'Gold')     AS gold,
        COUNT(*) FILTER (WHERE cust_loyalty_category = 'Platinum') AS platinum
    FROM curated
    WHERE event_dt >= $start_date
      AND event_dt < $end_date
    GROUP BY event_dt
)

SELECT
    CAST(event_dt AS DATE)              AS dt,
    CAST(NULLIF(basic, 0) AS BIGINT)    AS basic,
    CAST(NULLIF(silver, 0) AS BIGINT)   AS silver,
    CAST(NULLIF(gold, 0) AS BIGINT)     AS gold,
    CAST(NULLIF(platinum, 0) AS BIGINT) AS platinum
FROM counted
