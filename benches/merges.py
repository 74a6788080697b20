"""Times nights onto a Delta table of many keys: glueless, with and without deletion vectors, and delta-rs MERGE.

    python merges.py --glueless BINARY --generate BINARY --work DIR [--nights 3] [--keys 10000000]

A Delta table with `keep = "latest"`, partitioned by day and category, has 10 million keys, whose last
changes are of 365 days. Each night 200,000 changes of random keys are folded onto it. delta-rs merges the
same changes, the last of each key found by Polars before, into a copy of the table. It keeps nothing but
the table: an older change that comes later would replace a newer one, and a deleted key would come back.

After each night all tables must have the same rows. `written` is the size of the new files of the
table, its log included; glueless also writes its state.
"""

import datetime
import json
import shutil
import subprocess
import sys

from measure import timed, timed_cells
from nights import DAYS, FIRST, generate_nights, parse_arguments, pipeline, run

COLUMNS = "cust_id, event_id, event_ts, business_op_code, cust_loyalty_category"


def main():
    arguments = parse_arguments(__doc__, 3)
    print("\n| what | wall s | CPU s | peak memory MB | written MB |")
    print("|---|---|---|---|---|")
    for name, runs in nights(arguments).items():
        written = sorted(one["written"] for one in runs)[len(runs) // 2] / 1e6
        print("| " + " | ".join([*timed_cells(name, runs), f"{written:,.1f}"]) + " |")


def nights(arguments):
    lake, marked, copy = (arguments.work / name for name in ("lake", "marked", "copy"))
    generate_nights(arguments)
    for folder in (lake, marked, copy):
        shutil.rmtree(folder, ignore_errors=True)
    folder = pipeline(arguments, "merges", {})
    vectors = ["curated.deletion_vectors=true", f"curated.url={marked}/curated"]
    fold(arguments, folder, 0, DAYS)
    fold(arguments, folder, 0, DAYS, *vectors)
    shutil.copytree(lake / "curated", copy)
    measured = {}
    for night in range(DAYS, DAYS + arguments.nights):
        for name, table, merged in (
            ("glueless", lake / "curated", lambda: fold(arguments, folder, night, 1)),
            ("glueless, deletion vectors", marked / "curated", lambda: fold(arguments, folder, night, 1, *vectors)),
            ("delta-rs MERGE", copy, lambda: merge(arguments, copy, night)),
        ):
            before = set(table.rglob("*.*"))
            measured.setdefault(name, []).append(merged())
            new = set(table.rglob("*.*")) - before
            measured[name][-1]["written"] = sum(path.stat().st_size for path in new)
        found = [rows(table) for table in (lake / "curated", marked / "curated", copy)]
        if found[0] != found[1] or found[0] != found[2]:
            sys.exit(f"error: the tables differ after night {night - DAYS}: {found}")
    return measured


def fold(arguments, folder, day, days, *settings):
    return run(arguments, "curate", folder, day, days, "curated.format=delta", *settings)


def merge(arguments, table, day):
    day = FIRST + datetime.timedelta(day)
    raw = arguments.work / "raw" / f"{day:%Y%m%d}-*.parquet"
    return timed([sys.executable, __file__, "--merge", table, raw], arguments.work / "log")


def rows(table):
    """The number of rows, and the sum of their hashes."""
    command = [sys.executable, __file__, "--rows", table]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def print_rows(table):
    import deltalake
    import polars

    builder = deltalake.QueryBuilder().register("t", deltalake.DeltaTable(table))
    found = polars.DataFrame(builder.execute(f"SELECT {COLUMNS} FROM t").read_all())
    # The sum may exceed 64 bits: it is of no matter which order the rows have.
    print(json.dumps([len(found), found.hash_rows().sum()]))


def merge_with_delta_rs(table, raw):
    import deltalake
    import polars

    changes = (
        polars.scan_parquet(raw)
        .sort("TIMESTAMP", "event_id")
        .group_by("cust_id", maintain_order=False)
        .last()
        .with_columns(event_dt=polars.col("event_ts").dt.date())
        .collect()
    )
    columns = ["event_id", "event_ts", "cust_id", "business_op_code", "cust_loyalty_category", "event_dt"]
    values = {column: f"s.{column}" for column in columns}
    (
        deltalake.DeltaTable(table)
        .merge(
            changes.select("Op", *columns),
            predicate="t.cust_id = s.cust_id",
            source_alias="s",
            target_alias="t",
        )
        .when_matched_delete(predicate="s.Op = 'D'")
        .when_matched_update(updates=values)
        .when_not_matched_insert(updates=values, predicate="s.Op <> 'D'")
        .execute()
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--merge"]:
        merge_with_delta_rs(*sys.argv[2:])
    elif sys.argv[1:2] == ["--rows"]:
        print_rows(*sys.argv[2:])
    else:
        main()
