-- Purpose: pass one of the fold: the positions of each key's last changes.
-- Grain: one row per key; `last` lists, per day, the position of that day's last change.
-- Relation: changes (the raw columns, event_dt, __position; see src/changes.rs).
-- Parameters, replaced before planning: key, the pipeline's key columns.
SELECT
    last_changes(event_dt, __position) AS last
FROM changes
GROUP BY {key}
