-- Purpose: the relation `balance`, which the aggregates' queries read.
-- Grain: one row per day and values of the partition columns, on the days when they changed.
-- Relation: balance_files (see src/state/balance.rs).
-- Parameters, replaced before planning: columns, the partition columns without the day, under their
-- own names, each followed by a comma; a partition column `entered`, `exited` or `event_dt` is named
-- partition_entered and so on; groups, the same columns, each after a comma.
SELECT
    event_dt,{columns}
    SUM(entered) AS entered,
    SUM(exited) AS exited
FROM balance_files
GROUP BY event_dt{groups}
HAVING SUM(entered) <> 0 OR SUM(exited) <> 0
