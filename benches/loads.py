"""Times loads into PostgreSQL: a table of many keys follows a night of changes.

    python loads.py --glueless BINARY --generate BINARY --work DIR [--nights 3] [--keys 10000000]

The table of 10 million keys (`nights.py`) is loaded into a table of a PostgreSQL server on the same
machine. Each night 1,000,000 changes of random keys are folded, and the database follows. In turn:

glueless load  deletes keys that have no row any more, and writes rows that differ
script         the obvious script: Polars reads the curated table, psycopg copies it into a staging
               table, then INSERT ... ON CONFLICT DO UPDATE; it deletes nothing
floor          psycopg copies the rows of the night, once, into an empty table without an index

The server has its default settings but for 1 GB of shared buffers and WAL files of up to 8 GB; the time of
the server is in `wall s` and not in `CPU s`. After each night the tables of the first two are compared:
the script's has deleted rows that are left, which are counted.
"""

import datetime
import io
import json
import shutil
import subprocess
import sys

from measure import BENCHES, timed, timed_cells
from nights import DAYS, FIRST, generate, parse_arguments, pipeline, run

CHANGES = 1_000_000
COLUMNS = "event_id, event_ts, cust_id, business_op_code, cust_loyalty_category, event_dt"
LOAD = """
[load]
url_env = "LOAD_URL"
table = "public.followed"
"""


def main():
    arguments = parse_arguments(__doc__, 3)
    generate(arguments, arguments.work / "raw", arguments.keys, FIRST, DAYS, "--each-key-once")
    raw = arguments.work / "raw-loads"
    shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir()
    for file in (arguments.work / "raw").glob("*.parquet"):
        if file.name < f"{FIRST + datetime.timedelta(DAYS):%Y%m%d}":
            (raw / file.name).symlink_to(file)
    for night in range(arguments.nights):
        more = arguments.work / f"raw-loads-{night}"
        shutil.rmtree(more, ignore_errors=True)
        generate(arguments, more, CHANGES, FIRST + datetime.timedelta(DAYS + night), 1)
        for file in more.glob("*.parquet"):
            (raw / file.name).symlink_to(file)
    server = subprocess.Popen(
        [sys.executable, BENCHES.parent / "tests" / "postgres_server.py", "-c", "shared_buffers=1GB", "-c", "max_wal_size=8GB", "-c", "fsync=on"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    address = json.loads(server.stdout.readline())
    try:
        measured = nights(arguments, f"postgresql://postgres@/postgres?host={address['socket']}&port={address['port']}")
    finally:
        server.stdin.close()
        server.wait()
    print("\n| what | wall s | CPU s | peak memory MB |")
    print("|---|---|---|---|")
    for name, runs in measured.items():
        print("| " + " | ".join(timed_cells(name, runs)) + " |")


def nights(arguments, url):
    lake = arguments.work / "lake"
    shutil.rmtree(lake, ignore_errors=True)
    folder = pipeline(arguments, "loads", {})
    with open(folder / "pipeline.toml", "a") as toml:
        toml.write(LOAD)
    measured = {}
    put = lambda name, run: measured.setdefault(name, []).append(run)
    curate(arguments, folder, 0, DAYS)
    put("first load: glueless", load(arguments, folder, url))
    put("first load: script", script(arguments, url))
    for night in range(DAYS, DAYS + arguments.nights):
        put("night: fold", curate(arguments, folder, night, 1))
        put("night: glueless load", load(arguments, folder, url))
        put("night: script", script(arguments, url))
        put("night: floor", helper(arguments, "--floor", url, arguments.work / f"raw-loads-{night - DAYS}"))
        compare(url)
    return measured


def curate(arguments, folder, day, days):
    return run(arguments, "curate", folder, day, days, f"raw.url={arguments.work / 'raw-loads'}")


def load(arguments, folder, url):
    command = ["env", f"LOAD_URL={url}", arguments.glueless, "load", folder, "--output", "json"]
    for setting in (f"raw.url={arguments.work / 'raw-loads'}", f"curated.url={arguments.work / 'lake' / 'curated'}"):
        command += ["--set", setting]
    return timed(command, arguments.work / "log")


def script(arguments, url):
    return helper(arguments, "--script", url, arguments.work / "lake" / "curated")


def helper(arguments, *command):
    return timed([sys.executable, __file__, *command], arguments.work / "log")


def copy(connection, table, rows):
    """Copies rows of Polars into a table, as CSV, in chunks."""
    with connection.cursor().copy(f"COPY {table} ({', '.join(rows.columns)}) FROM STDIN (FORMAT csv)") as into:
        for chunk in rows.iter_slices(200_000):
            text = io.BytesIO()
            chunk.write_csv(text, include_header=False)
            into.write(text.getbuffer())


TYPES = "event_id bigint, event_ts timestamp, cust_id text {key}, business_op_code text, cust_loyalty_category text, event_dt date"


def run_script(url, table):
    import polars
    import psycopg

    rows = polars.read_parquet(f"{table}/**/*.parquet", hive_partitioning=True).select(COLUMNS.split(", "))
    with psycopg.connect(url) as connection:
        connection.execute(f"CREATE TABLE IF NOT EXISTS scripted ({TYPES.format(key='PRIMARY KEY')})")
        connection.execute(f"CREATE TEMPORARY TABLE staging ({TYPES.format(key='')}) ON COMMIT DROP")
        copy(connection, "staging", rows)
        updates = ", ".join(f"{name} = EXCLUDED.{name}" for name in COLUMNS.split(", ") if name != "cust_id")
        connection.execute(
            f"INSERT INTO scripted ({COLUMNS}) SELECT {COLUMNS} FROM staging ON CONFLICT (cust_id) DO UPDATE SET {updates}"
        )


def run_floor(url, raw):
    import polars
    import psycopg

    rows = polars.read_parquet(f"{raw}/*.parquet")
    rows = rows.unique("cust_id", keep="last").select("event_id", "event_ts", "cust_id", "business_op_code", "cust_loyalty_category")
    with psycopg.connect(url) as connection:
        connection.execute("DROP TABLE IF EXISTS floor")
        connection.execute(f"CREATE TABLE floor ({TYPES.format(key='')})")
        copy(connection, "floor", rows)


def compare(url):
    """The script's table has the rows of the other, and deleted ones."""
    program = """
import psycopg, sys
with psycopg.connect(sys.argv[1]) as connection:
    missing = connection.execute("SELECT count(*) FROM (TABLE followed EXCEPT TABLE scripted) x").fetchone()[0]
    left = connection.execute("SELECT count(*) FROM (TABLE scripted EXCEPT TABLE followed) x").fetchone()[0]
    print(f"rows that only glueless has: {missing}; rows that only the script has: {left}", file=sys.stderr)
    sys.exit(missing > 0)
"""
    subprocess.run([sys.executable, "-c", program, url], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--script"]:
        run_script(*sys.argv[2:])
    elif sys.argv[1:2] == ["--floor"]:
        run_floor(*sys.argv[2:])
    else:
        main()
