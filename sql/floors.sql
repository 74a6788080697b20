-- Purpose: the relation `versions` where there are floors (see src/state/floors.rs): the stored versions,
-- and the keys that floors of some days have ended, as deleted on these days. Rows of other floors' days
-- are as they are stored: a scan that computes this asks for none of them.
-- Grain: one row per key and day: the last entry.
-- Relation: stored_versions. Floors are numbered in the order of changes; floor_event_dt(number) and so on
-- are the columns of one. They are functions, as this is planned alone, and then as part of a query: the
-- engine refuses to plan a join twice.
-- Parameters, replaced before planning: keys, the key columns; columns, those of versions; nulls, the
-- partition columns as nulls; seq, the order of the fold as a number; of_days, whether event_dt is one
-- of the days. Floors of other days have no number in floor_after and floor_of_day_after.
WITH numbered AS (
    SELECT *, {seq} AS seq FROM stored_versions
),
-- The first floor after each entry. The last entry before a floor is the one that it can end.
before_floors AS (
    SELECT {keys}, deleted, floor, LEAD(floor) OVER (
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
    SELECT {keys}, floor_of_day_after(event_dt, order_bytes, seq) AS floor FROM numbered
    WHERE NOT deleted AND ({of_days})
),
ended AS (
    SELECT {keys}, floor_event_dt(floor) AS event_dt, {nulls} TRUE AS deleted, floor_cdc(floor) AS cdc,
        floor_time_us(floor) AS time_us, floor_time_ns(floor) AS time_ns,
        floor_order_bytes(floor) AS order_bytes, floor_location(floor) AS location,
        floor_file(floor) AS file, floor_row(floor) AS "row", CAST(NULL AS BIGINT) AS "commit",
        floor_seq(floor) AS seq
    FROM ends
    WHERE floor IS NOT NULL
),
of_floors_days AS (
    SELECT *, ROW_NUMBER() OVER (
        PARTITION BY {keys}, event_dt ORDER BY order_bytes DESC NULLS LAST, seq DESC
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS place
    FROM (
        SELECT {columns}, seq FROM numbered WHERE {of_days}
        UNION ALL
        SELECT {columns}, seq FROM ended
    )
)
SELECT {columns} FROM stored_versions WHERE ({of_days}) IS NOT TRUE
UNION ALL
SELECT {columns} FROM of_floors_days WHERE place = 1
