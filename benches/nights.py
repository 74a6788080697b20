"""Times nights: the changes of a day onto many keys, and the aggregates after them.

    python nights.py --glueless BINARY --generate BINARY --work DIR [--nights 5] [--keys 10000000]

A table with `keep = "latest"` has 10 million keys, whose last changes are of 365 days. Each night
200,000 changes of random keys are folded onto it, and the aggregates `daily` and `status` of the
example pipeline are computed. Beside it, in the same turn:

history  `status` computed from `history`, the relation of all versions, for all days: what a query
         costs for which there is no balance
DuckDB   the same query over the same files of versions, with all memory that it wants

`first` is the first computing of both aggregates, for all days. The figures of glueless are those of
whole commands under a limit of 900 MB.
"""

import datetime
import json
import shutil
import subprocess
import sys

from measure import BENCHES, parser_of, print_machine, timed, timed_cells

FIRST = datetime.date(2023, 1, 1)
DAYS = 365
CHANGES = 200_000
SQL = BENCHES.parent / "sql" / "cust_loyalty"
# The query of an earlier version, which had no balance.
OVER_HISTORY = BENCHES.parent / "fixtures/states/0.1.0/pipelines/latest/status.sql"
AGGREGATE = """
[[aggregate]]
name = "{name}"
sql = "{sql}"
url = "lake/{name}"
day = "dt"
running = {running}
"""
# The columns of `history` over the files of versions. Raw files are in the order of their names.
HISTORY = """
CREATE VIEW history AS
SELECT
    key_0 AS cust_id, event_dt, part_1 AS cust_loyalty_category, deleted,
    (cdc::UTINYINT, time_us, time_ns, file, row) AS seq
FROM read_parquet({files})
"""


def parse_arguments(manual, count):
    parser = parser_of(manual, "glueless", "generate", "work")
    parser.add_argument("--nights", type=int, default=count, help=f"nights in turn (default {count})")
    parser.add_argument("--keys", type=int, default=10_000_000, help="keys (default 10000000)")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    print_machine(arguments.glueless)
    return arguments


def main():
    arguments = parse_arguments(__doc__, 5)
    measured = nights(arguments)
    print("\n| what | wall s | CPU s | peak memory MB |")
    print("|---|---|---|---|")
    for name, runs in measured.items():
        print("| " + " | ".join(timed_cells(name, runs)) + " |")


def nights(arguments):
    generate_nights(arguments)
    shutil.rmtree(arguments.work / "lake", ignore_errors=True)
    with_balance = pipeline(arguments, "nights", {"daily": SQL / "daily.sql", "status": SQL / "status.sql"})
    # The same table and state, without an aggregate that reads the balance.
    over_history = pipeline(arguments, "history", {"status": OVER_HISTORY})
    measured = {}
    put = lambda name, run: measured.setdefault(name, []).append(run)
    put("first fold", run(arguments, "curate", with_balance, 0, DAYS))
    put("first aggregates", run(arguments, "aggregate", with_balance, 0, DAYS))
    for night in range(DAYS, DAYS + arguments.nights):
        put("night, fold", run(arguments, "curate", with_balance, night, 1))
        put("night, aggregates", run(arguments, "aggregate", with_balance, night, 1))
        put("status over history", over(arguments, over_history, night))
        put("status over history, DuckDB", duckdb(arguments, night))
    return measured


def generate_nights(arguments):
    raw = arguments.work / "raw"
    generate(arguments, raw, arguments.keys, FIRST, DAYS, "--each-key-once")
    for night in range(arguments.nights):
        generate(arguments, raw, CHANGES, FIRST + datetime.timedelta(DAYS + night), 1)


def generate(arguments, raw, rows, first_day, days, *options):
    marker = raw / f"made-{first_day}-{rows}"
    if marker.exists():
        return
    command = [arguments.generate, "--case", "narrow", "--out", raw, "--rows", rows]
    command += ["--keys", arguments.keys, "--first-day", first_day, "--days", days, "--files", days]
    subprocess.run([*map(str, command), *options], check=True, stdout=subprocess.DEVNULL)
    marker.touch()


def pipeline(arguments, name, aggregates):
    """The pipeline of the narrow benchmark with aggregates, in a folder of its own."""
    folder = arguments.work / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(BENCHES / "pipelines" / "narrow", folder)
    with open(folder / "pipeline.toml", "a") as toml:
        for aggregate, sql in aggregates.items():
            running = str(aggregate == "status").lower()
            toml.write(AGGREGATE.format(name=aggregate, sql=sql, running=running))
    return folder


def run(arguments, command, folder, day, days, *settings):
    start = FIRST + datetime.timedelta(day)
    command = [arguments.glueless, command, folder, "--output", "json"]
    command += ["--start-date", start, "--end-date", start + datetime.timedelta(days)]
    for setting in (
        f"raw.url={arguments.work / 'raw'}",
        f"curated.url={arguments.work / 'lake' / 'curated'}",
        *settings,
    ):
        command += ["--set", setting]
    return timed(command, arguments.work / "log")


def over(arguments, folder, night):
    """The aggregate over the history, for all days; afterwards the table and its state are as before."""
    lake, saved = arguments.work / "lake", arguments.work / "saved"
    shutil.rmtree(saved, ignore_errors=True)
    # Files are replaced, never modified, so that links are enough.
    subprocess.run(["cp", "-al", lake, saved], check=True)
    measured = run(arguments, "aggregate", folder, night, 1)
    shutil.rmtree(lake)
    saved.rename(lake)
    return measured


def duckdb(arguments, night):
    """The same in DuckDB."""
    files = sorted(map(str, (arguments.work / "lake").rglob("kind=version/*.parquet")))
    query = OVER_HISTORY.read_text()
    day = FIRST + datetime.timedelta(night)
    for name, value in {"start_date": FIRST, "end_date": day + datetime.timedelta(1)}.items():
        query = query.replace(f"${name}", f"DATE '{value}'")
    program = "import duckdb, json, sys\nc = duckdb.connect()\n" \
        "[print(c.sql(text)) for text in json.loads(sys.argv[1])]"
    texts = json.dumps([HISTORY.format(files=files), query])
    return timed([sys.executable, "-c", program, texts], arguments.work / "log")


if __name__ == "__main__":
    main()
