-- Purpose: loyalty customers by day, curated: the columns of the published table and their types.
-- Grain: one row per customer and day (keep = "latest-per-day"), the last change of that day.
-- Relation: latest, row by row.
-- Parameters: none.
--
-- Times are UTC, without a zone, in microseconds: TIMESTAMP without a precision would be
-- nanoseconds, which end in 2262. "TIMESTAMP" in quotes is the raw column of that name.

SELECT
    CAST(event_id AS BIGINT)               AS event_id,
    CAST(event_ts AS TIMESTAMP(6))         AS event_ts,
    CAST(cust_id AS VARCHAR)               AS cust_id,
    CAST(business_op_code AS VARCHAR)      AS business_op_code,
    CAST(cust_loyalty_category AS VARCHAR) AS cust_loyalty_category,
    CAST("TIMESTAMP" AS TIMESTAMP(6))      AS recorded_ts,
    CAST(event_dt AS DATE)                 AS event_dt
FROM latest
