-- Purpose: the history of loyalty customers, curated: the columns of the published table and their types.
-- Grain: one row per customer and commit time that altered it (keep = "history"). The table has four columns more:
-- valid_from, valid_to (null while there is no later change), is_current and ended_by.
-- Relation: latest, row by row.
-- Parameters: none.

SELECT
    CAST(event_id AS BIGINT)               AS event_id,
    CAST(cust_id AS VARCHAR)               AS cust_id,
    CAST(business_op_code AS VARCHAR)      AS business_op_code,
    CAST(cust_loyalty_category AS VARCHAR) AS cust_loyalty_category,
    CAST(event_dt AS DATE)                 AS event_dt
FROM latest
