-- Purpose: the relation `history`, as the aggregates' queries see it.
-- Grain: one row per key and day: that day's last change.
-- Relation: versions (see src/versions.rs).
-- Parameters, filled in before planning: columns, the key and partition columns under their own
-- names, each with a comma behind it; order, the order of the fold as the integer seq, for some
-- pipelines behind bytes that come before it.
SELECT
    {columns}
    event_dt,
    deleted,
    {order}
FROM versions
