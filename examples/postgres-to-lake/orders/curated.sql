-- One row per order, as it is in the shop.
SELECT
    CAST(id AS BIGINT)              AS id,
    CAST(customer AS INT)           AS customer,
    CAST(amount AS DECIMAL(12, 2))  AS amount,
    CAST(state AS VARCHAR)          AS state
FROM latest
