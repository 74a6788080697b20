-- The shop's table, with 10,000 orders.
CREATE TABLE orders (
    id       bigint PRIMARY KEY,
    customer integer NOT NULL,
    amount   numeric(12, 2),
    state    varchar(12)
);
INSERT INTO orders SELECT i, i % 500, i * 1.25, 'new' FROM generate_series(1, 10000) i;
CREATE SEQUENCE order_ids START 10001;
