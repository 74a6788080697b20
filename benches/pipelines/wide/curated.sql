-- Purpose: the curated table of the wide benchmark: its columns and their types.
-- Grain: one row per live order (keep = "latest"), its last change.
-- Relation: latest, row by row.
-- Parameters: none.

SELECT
    CAST(event_id AS BIGINT)               AS event_id,
    CAST(event_ts AS TIMESTAMP(6))         AS event_ts,
    CAST(order_id AS BIGINT)               AS order_id,
    CAST(cust_loyalty_category AS VARCHAR) AS cust_loyalty_category,
    CAST(customer_name AS VARCHAR)         AS customer_name,
    CAST(mail AS VARCHAR)                  AS mail,
    CAST(street AS VARCHAR)                AS street,
    CAST(comment AS VARCHAR)               AS comment,
    CAST(city AS VARCHAR)                  AS city,
    CAST(country AS VARCHAR)               AS country,
    CAST(status AS VARCHAR)                AS status,
    CAST(currency AS VARCHAR)              AS currency,
    CAST(amount AS DECIMAL(18, 2))         AS amount,
    CAST(tax AS DECIMAL(18, 2))            AS tax,
    CAST(discount AS DECIMAL(18, 2))       AS discount,
    CAST(weight AS DOUBLE)                 AS weight,
    CAST(quantity AS INT)                  AS quantity,
    CAST(warehouse AS INT)                 AS warehouse,
    CAST(created_ts AS TIMESTAMP(6))       AS created_ts,
    CAST(due_date AS DATE)                 AS due_date,
    CAST(ship_date AS DATE)                AS ship_date,
    CAST(event_dt AS DATE)                 AS event_dt
FROM latest
