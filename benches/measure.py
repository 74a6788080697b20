"""Times glueless next to DuckDB on one fold of the generated changes.

    python measure.py --glueless BINARY --raw DIR --work DIR [--runs 3]

Each contender reads the same raw files and writes the last change of every
live customer to an empty folder, as Snappy Parquet partitioned by event_dt and
cust_loyalty_category. The contenders take turns, so that a slow minute of the
machine falls on all of them. Each run is a process of its own; its CPU time
and its peak resident memory are the system's account of that process. After
each run, outside its time, DuckDB reads the result back; results that differ
in their number of rows or in the sum of their rows' hashes end the
measurement with exit code 1.

The standard library and duckdb are all it needs.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import time

PIPELINE = pathlib.Path(__file__).parent / "pipelines" / "narrow"
WINDOW = ["--start-date", "2024-01-02", "--end-date", "2024-01-03"]

# One row per key: its last change by commit time, file and row number. For
# `arg_max` the three are packed into one number, 40 bits for file and row, and
# the payload is one struct: of the forms that keep nulls and take file and row
# into account, the fastest we found.
DUCKDB_JOBS = {
    "row_number": """
        SELECT event_id, event_ts, cust_id, business_op_code, cust_loyalty_category,
               CAST(event_ts AS DATE) AS event_dt
        FROM (
            SELECT *, row_number() OVER (
                PARTITION BY cust_id
                ORDER BY "TIMESTAMP" DESC, filename DESC, file_row_number DESC
            ) AS place
            FROM read_parquet($raw, filename = true, file_row_number = true)
        )
        WHERE place = 1 AND Op <> 'D'
    """,
    "arg_max": """
        SELECT last.event_id, last.event_ts, cust_id, last.business_op_code,
               last.cust_loyalty_category, CAST(last.event_ts AS DATE) AS event_dt
        FROM (
            SELECT cust_id, arg_max(
                struct_pack(Op, event_id, event_ts, business_op_code, cust_loyalty_category),
                epoch_us(CAST("TIMESTAMP" AS TIMESTAMP)) * CAST(1099511627776 AS HUGEINT)
                    + file_index * 16777216 + file_row_number
            ) AS last
            FROM read_parquet($raw, file_row_number = true)
            GROUP BY cust_id
        )
        WHERE last.Op <> 'D'
    """,
}

RESULT = """
    SELECT count(*), sum(CAST(hash(
        CAST(cust_id AS VARCHAR), CAST(event_id AS BIGINT), CAST(event_ts AS TIMESTAMP),
        CAST(business_op_code AS VARCHAR), CAST(cust_loyalty_category AS VARCHAR),
        CAST(event_dt AS DATE)
    ) AS HUGEINT))
    FROM read_parquet($files, hive_partitioning = true)
"""


def main():
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    raw = inspect(arguments)
    print_conditions(arguments, raw)

    contenders = {"glueless": lambda work: run_glueless(arguments, work)}
    for job in DUCKDB_JOBS:
        contenders[f"DuckDB {job}"] = lambda work, job=job: run_duckdb(arguments, work, job)

    measured = {name: [] for name in contenders}
    results = {}
    for turn in range(1, arguments.runs + 1):
        for name, run in contenders.items():
            work = arguments.work / name.replace(" ", "-")
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            os.sync()
            measure = run(work)
            measured[name].append(measure)
            print(f"turn {turn}: {name}: {measure['seconds']:.2f} s", file=sys.stderr)
            results[name, turn] = read_back(measure["table"])
            if results[name, turn] != results["glueless", 1]:
                sys.exit(f"error: the results differ, as (rows, hash): {results}")

    print_table(measured, raw["rows"])
    rows, fingerprint = results["glueless", 1]
    print(f"\nEvery run ended in the same {rows:,} rows (sum of hashes {fingerprint}).")
    for name in contenders:
        shutil.rmtree(arguments.work / name.replace(" ", "-"))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--glueless", type=pathlib.Path, required=True, help="the release binary")
    parser.add_argument("--raw", type=pathlib.Path, required=True, help="the generated changes")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder for the results")
    parser.add_argument("--runs", type=int, default=3, help="turns per contender (default 3)")
    parser.add_argument(
        "--duckdb-memory", help="DuckDB's memory limit, as 2GB (default: DuckDB's own default)"
    )
    arguments = parser.parse_args()
    if not any(arguments.raw.glob("*.parquet")):
        parser.error(f"no Parquet files in {arguments.raw}: `make bench` generates them")
    for name in ("glueless", "raw", "work"):
        setattr(arguments, name, getattr(arguments, name).resolve())
    return arguments


def run_glueless(arguments, work):
    table = work / "curated" / "narrow"
    command = [arguments.glueless, "curate", PIPELINE, *WINDOW]
    command += ["--set", f"raw.url={arguments.raw}", "--set", f"curated.url={table}"]
    return {"table": table, **timed(command, work / "log")}


def run_duckdb(arguments, work, job):
    table = work / "narrow"
    options = {
        "job": job,
        "raw": f"{arguments.raw}/*.parquet",
        "table": str(table),
        "spill": str(work / "spill"),
        "memory": arguments.duckdb_memory,
    }
    command = [sys.executable, __file__, "--duckdb-job", json.dumps(options)]
    return {"table": table, **timed(command, work / "log")}


def timed(command, log):
    """Runs a command to its end; what it prints goes to the log."""
    with open(log, "wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        command = " ".join(map(str, command))
        sys.exit(f"error: exit code {process.returncode}: {command}\n{log.read_text()}")
    maxrss_unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * maxrss_unit,
    }


# Everything below that imports duckdb runs in a process of its own: on Linux a
# child's peak memory starts from its parent's.


def duckdb_job(options):
    import duckdb

    connection = duckdb.connect(config={"temp_directory": options["spill"]})
    connection.execute("SET preserve_insertion_order = false")
    if options["memory"]:
        connection.execute(f"SET memory_limit = '{options['memory']}'")
    connection.execute(
        f"""
        COPY ({DUCKDB_JOBS[options["job"]]}) TO '{options["table"]}' (
            FORMAT parquet, COMPRESSION snappy, PARTITION_BY (event_dt, cust_loyalty_category)
        )
        """,
        {"raw": options["raw"]},
    )


def duckdb_query(options):
    import duckdb

    row = duckdb.execute(options["query"], options["parameters"]).fetchone()
    json.dump([duckdb.__version__, *map(int, row)], sys.stdout)


def query(text, parameters):
    options = json.dumps({"query": text, "parameters": parameters})
    answer = subprocess.run(
        [sys.executable, __file__, "--duckdb-query", options], check=True, capture_output=True
    )
    return json.loads(answer.stdout)


def read_back(table):
    _, rows, fingerprint = query(RESULT, {"files": f"{table}/**/*.parquet"})
    return rows, fingerprint


def inspect(arguments):
    """The raw files' rows and bytes; reads them once, into the page cache."""
    size = 0
    for path in sorted(arguments.raw.glob("*.parquet")):
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                size += len(chunk)
    version, rows, files = query(
        "SELECT sum(num_rows), count(*) FROM parquet_file_metadata($files)",
        {"files": f"{arguments.raw}/*.parquet"},
    )
    return {"rows": rows, "files": files, "bytes": size, "duckdb": version}


def print_conditions(arguments, raw):
    limit = arguments.duckdb_memory or "its default"
    print_machine(arguments.glueless)
    print(f"- peers: DuckDB {raw['duckdb']}, memory limit {limit}")
    print(f"- raw: {raw['rows']:,} changes in {raw['files']} files, {raw['bytes'] / 1e6:,.0f} MB,")
    print("  in the page cache")
    print(f"- turns: {arguments.runs}; medians, with the lowest and the highest in brackets")
    print(flush=True)


def print_machine(glueless):
    version = subprocess.run(
        [glueless, "--version"], check=True, capture_output=True, text=True
    ).stdout.strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    print(f"- date: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC")
    print(f"- machine: {processor()}, {processors()} processors, {memory / 2**30:.1f} GiB memory,")
    print(f"  {platform.system()} {platform.release()}")
    print(f"- version: {version}")


def processors():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor():
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def print_table(measured, rows):
    print("| contender | wall s | CPU s | peak memory MB | rows/s | output MB | files | wall, glueless = 1 |")
    print("|---|---|---|---|---|---|---|---|")
    reference = statistics.median(run["seconds"] for run in measured["glueless"])
    for name, runs in measured.items():
        files = list(runs[-1]["table"].rglob("*.parquet"))
        size = sum(file.stat().st_size for file in files)
        median = statistics.median(run["seconds"] for run in runs)
        cells = [
            name,
            spread([run["seconds"] for run in runs], "{:.2f}"),
            spread([run["cpu_seconds"] for run in runs], "{:.2f}"),
            spread([run["peak_bytes"] / 1e6 for run in runs], "{:,.0f}"),
            f"{rows / median:,.0f}",
            f"{size / 1e6:,.1f}",
            f"{len(files):,}",
            f"{median / reference:.2f}",
        ]
        print("| " + " | ".join(cells) + " |")


def spread(values, layout):
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{layout} ({layout} to {layout})".format(middle, low, high)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--duckdb-job"]:
        duckdb_job(json.loads(sys.argv[2]))
    elif sys.argv[1:2] == ["--duckdb-query"]:
        duckdb_query(json.loads(sys.argv[2]))
    else:
        main()
