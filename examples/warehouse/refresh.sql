-- Runs in the transaction of each load: a reader sees the view and the tables of the same commit.
CREATE MATERIALIZED VIEW IF NOT EXISTS dashboard.customers_by_category AS
SELECT cust_loyalty_category, count(*) AS customers
FROM dashboard.cust_loyalty
GROUP BY cust_loyalty_category
ORDER BY cust_loyalty_category;

REFRESH MATERIALIZED VIEW dashboard.customers_by_category;
