-- Purpose: the relation `versions` of a table that has several per key and day, one per commit time (see
-- src/state/versions.rs): the last one of each day.
-- Grain: one row per key and day.
-- Relation: stored_versions.
-- Parameters, replaced before planning: columns, those of versions but for the last key column, the instant; keys, the key columns;
-- seq, the order of the fold as a number.
SELECT {columns} FROM (
    SELECT *, ROW_NUMBER() OVER (
        PARTITION BY {keys}, event_dt ORDER BY order_bytes DESC NULLS LAST, {seq} DESC
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS place
    FROM stored_versions
)
WHERE place = 1
