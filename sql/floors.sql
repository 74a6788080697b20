-- Purpose: the relation `versions` where there are floors (see src/state/floors.rs): the stored versions,
-- and the keys that floors have ended, as deleted on the floors' days.
-- Grain: one row per key and day: the last entry.
-- Relations: stored_versions; floors, numbered in the order of changes.
-- Parameters, replaced before planning: keys, the key columns; columns, those of versions; nulls, the
-- partition columns as nulls; seq, the order of the fold as a number; days, those of floors.
WITH numbered AS (
    SELECT *, {seq} AS seq FROM stored_versions
),
-- The first floor after each entry. The last entry before a floor is the one that it can end.
before_floors AS (
    SELECT {keys}, event_dt, order_bytes, seq, deleted, floor, LEAD(floor) OVER (
        PARTITION BY {keys} ORDER BY order_bytes NULLS FIRST, seq
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS next_floor
    FROM (SELECT *, floor_after(order_bytes, seq) AS floor FROM numbered)
    WHERE floor IS NOT NULL
),
ends AS (
    SELECT {keys}, floor FROM before_floors
    WHERE NOT deleted AND next_floor IS DISTINCT FROM floor
    UNION ALL
    -- A row of the day of a later floor.
    SELECT {keys}, floor_of_day_after(event_dt, order_bytes, seq) AS floor FROM before_floors
    WHERE NOT deleted
),
ended AS (
    SELECT {keys}, floors.event_dt, {nulls} TRUE AS deleted, floors.cdc, floors.time_us,
        floors.time_ns, floors.order_bytes, floors.location, floors.file, floors."row",
        CAST(NULL AS BIGINT) AS "commit", floors.seq
    FROM ends
    JOIN floors ON floors.number = ends.floor
),
of_floors_days AS (
    SELECT *, ROW_NUMBER() OVER (
        PARTITION BY {keys}, event_dt ORDER BY order_bytes DESC NULLS LAST, seq DESC
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS place
    FROM (
        SELECT {columns}, seq FROM numbered WHERE event_dt IS NULL OR event_dt IN ({days})
        UNION ALL
        SELECT {columns}, seq FROM ended
    )
)
SELECT {columns} FROM stored_versions
WHERE event_dt IS NOT NULL AND event_dt IN ({days}) IS NOT TRUE
UNION ALL
SELECT {columns} FROM of_floors_days WHERE place = 1
