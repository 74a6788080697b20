-- Purpose: pass one of the fold: the positions of each key's last changes.
-- Grain: one row per key; `last` lists, per day, the position of that day's last change.
-- Relation: changes (the key columns key_0, …, event_dt, position; see src/changes/reader.rs).
-- Parameters, replaced before planning: key, the key columns; for a history also the commit time.
SELECT
    last_changes(event_dt, position) AS last
FROM changes
GROUP BY {key}
