-- Purpose: the fold's first pass: where each key's last changes are.
-- Grain: one row per key; `last` lists, per day, the position of that day's last change.
-- Relation: changes (the raw columns, event_dt, __position; see src/changes.rs).
-- Parameters, filled in before planning: key, the pipeline's key columns.
SELECT
    last_changes(event_dt, __position) AS last
FROM changes
GROUP BY {key}
