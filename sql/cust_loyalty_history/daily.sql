-- Purpose: the history of loyalty customers, daily: what happened on each day, and how much of it still holds.
-- Grain: one row per day that has curated rows.
-- Relation: curated, one row per customer and commit time.
-- Parameters: $start_date, $end_date (DATE): the days [$start_date, $end_date).
--
-- A row without an event date counts on no day.

SELECT
    CAST(event_dt AS DATE)                                            AS dt,
    CAST(COUNT(*) FILTER (WHERE business_op_code = 'REGN') AS BIGINT) AS registered,
    CAST(COUNT(*) FILTER (WHERE business_op_code = 'UPGD') AS BIGINT) AS upgraded,
    CAST(COUNT(*) FILTER (WHERE business_op_code = 'DNGD') AS BIGINT) AS downgraded,
    CAST(COUNT(*) FILTER (WHERE is_current) AS BIGINT)                 AS still_current
FROM curated
WHERE event_dt >= $start_date
  AND event_dt < $end_date
GROUP BY event_dt
