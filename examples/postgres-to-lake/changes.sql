-- One transaction of pgbench: an order is made, others are updated, moved to another key, and deleted.
\set one random(1, 12000)
\set two random(1, 12000)
\set three random(1, 12000)
BEGIN;
INSERT INTO orders VALUES (nextval('order_ids'), :one % 500, :two * 0.5, 'new');
UPDATE orders SET amount = amount + 1, state = 'paid' WHERE id = :one;
UPDATE orders SET id = nextval('order_ids') WHERE id = :two;
DELETE FROM orders WHERE id = :three;
COMMIT;
