-- Purpose: the relation `balance`, which the aggregates' queries read.
-- Grain: one row per day and values of the partition columns, on the days when they changed.
-- Relation: balance_files (see src/state/balance.rs).
-- Parameters, replaced before planning: columns, the partition columns without the day, under their
-- own names, each followed by a comma; a partition column `entered`, `exited` or `event_dt` is named
-- partition_entered and so on; groups, the same columns, each after a comma.
SELECT
    files.event_dt,{columns}
    SUM(files.entered) AS entered,
    SUM(files.exited) AS exited
FROM balance_files AS files
GROUP BY files.event_dt{groups}
HAVING SUM(files.entered) <> 0 OR SUM(files.exited) <> 0
