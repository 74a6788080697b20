"""Times many small tables in one command, from a store that answers after 30 ms.

    python many.py --glueless BINARY --generate BINARY --server BINARY --work DIR

A project of tables, each with the changes of two days, is folded twice: the
tables one after the other, and several at once. Raw files, tables and state are
all in the store, which is that of far_store.py; each table has a bucket, because
this server walks through all of a bucket for each listing. The second night of each
turn is timed: the first has made the tables.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time

import polars

from far_store import DELAY_SECONDS, store
from measure import parser_of, print_machine, spread

ROWS = 500
PROJECT = """
key = ["id"]
[raw]
url = "s3://many-{table}/raw"
order_by = ["ts"]
window_by = "name"
[curated]
url = "s3://many-{table}/lake"
partition_by = ["event_dt"]
[state]
url = "s3://many-{table}/state"
[limits]
memory = "4GB"
"""


def main():
    parser = parser_of(__doc__, "glueless", "generate", "server", "work")
    parser.add_argument("--tables", type=int, default=200, help="number of tables (default 200)")
    parser.add_argument("--jobs", type=int, default=24, help="tables at once (default 24)")
    parser.add_argument("--runs", type=int, default=2, help="turns (default 2)")
    arguments = parser.parse_args()
    print_machine(arguments.glueless)
    print(f"\n### many tables: {arguments.tables}, every answer after {DELAY_SECONDS * 1000:.0f} ms\n")
    print("| at once | wall s | requests per table | peak memory MB | one after the other / at once |")
    print("|---|---|---|---|---|")
    root = arguments.work / "many"
    nights = {1: [], arguments.jobs: []}
    for _ in range(arguments.runs):
        for jobs, runs in nights.items():
            runs.append(night(arguments, root, jobs))
            print(jobs, f"{runs[-1]['seconds']:.1f} s", file=sys.stderr)
    alone = nights[1]
    for jobs, runs in nights.items():
        ratio = statistics.median(a["seconds"] / r["seconds"] for a, r in zip(alone, runs))
        cells = [
            str(jobs),
            spread([run["seconds"] for run in runs], "{:.1f}"),
            f"{runs[-1]['requests'] / arguments.tables:.0f}",
            spread([run["peak_bytes"] / 1e6 for run in runs], "{:,.0f}"),
            f"{ratio:.1f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
    shutil.rmtree(root)


def night(arguments, root, jobs):
    """Folds two nights of all tables, and times the second one."""
    shutil.rmtree(root, ignore_errors=True)
    for number in range(arguments.tables):
        folder = root / "sql" / f"t{number}"
        folder.mkdir(parents=True)
        (folder / "pipeline.toml").touch()
        raw = root / f"many-t{number}" / "raw"
        raw.mkdir(parents=True)
        for day in (1, 2):
            write(raw / f"202001{day:02}-000000000.parquet", day)
    (root / "sql" / "glueless.toml").write_text(PROJECT)
    with store(arguments.server, root, DELAY_SECONDS) as far_store:
        fold(arguments, root, arguments.jobs, "2020-01-01", "2020-01-02")
        before = far_store.requests
        started = time.monotonic()
        peak_bytes = fold(arguments, root, jobs, "2020-01-02", "2020-01-03")
        seconds = time.monotonic() - started
        return {"seconds": seconds, "requests": far_store.requests - before, "peak_bytes": peak_bytes}


def write(path, day):
    """The changes of a day: as many updates as there are rows."""
    columns = {
        "Op": ["I" if day == 1 else "U"] * ROWS,
        "id": list(range(ROWS)),
        "ts": [f"2020-01-{day:02} 10:00:00.{row:06}" for row in range(ROWS)],
        "what": [f"value {row * day}" for row in range(ROWS)],
    }
    polars.DataFrame(columns).write_parquet(path)


def fold(arguments, root, jobs, start, end):
    """Runs all pipelines; returns the peak of memory in bytes."""
    dates = ["--start-date", start, "--end-date", end]
    command = [arguments.glueless, "run", root / "sql", *dates, "--quiet", "--output", "json"]
    process = subprocess.Popen([*command, "--jobs", str(jobs)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{jobs} at once: exit status {status}"
    return usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
