-- Purpose: the relation `history`, which the aggregates' queries read.
-- Grain: one row per key and day: that day's last change.
-- Relation: versions (see src/state/versions.rs).
-- Parameters, replaced before planning: columns, the key and partition columns under their own
-- names, each followed by a comma; a key column `seq`, `deleted` or `event_dt` is named key_seq and so
-- on, a partition column partition_seq; order, the order of the fold as the integer seq, for some
-- pipelines preceded by a column of order bytes.
SELECT
    {columns}
    event_dt,
    deleted,
    {order}
FROM versions
