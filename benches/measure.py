"""Times glueless next to its peers on folds of generated changes.

    python measure.py --glueless BINARY --generate BINARY --copy BINARY --work DIR [--cases narrow,tiny]

Each contender reads the same raw files and writes the last change of every
live key to an empty folder, as Snappy Parquet partitioned by event_dt and
cust_loyalty_category (`peers.py`). The contenders run in turns, so that a slow
minute of the machine affects all of them. Each run is a separate process; its
CPU time and peak resident memory are those that the system reports for the
process and its children. After each run, and not counted in its time, DuckDB
reads the result back; if results differ in their number of rows or in the sum
of their rows' hashes, the measurement ends with exit code 1.

The raw files of a case are generated once, under DIR.
"""

import argparse
import collections
import ctypes
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

BENCHES = pathlib.Path(__file__).parent
WINDOW = ["--start-date", "2024-01-02", "--end-date", "2024-01-03"]

Shape = collections.namedtuple("Shape", "key columns")
SHAPES = {
    "narrow": Shape(
        "cust_id",
        {
            "event_id": "BIGINT",
            "event_ts": "TIMESTAMP",
            "business_op_code": "VARCHAR",
            "cust_loyalty_category": "VARCHAR",
        },
    ),
    "wide": Shape(
        "order_id",
        {
            "event_id": "BIGINT",
            "event_ts": "TIMESTAMP",
            "cust_loyalty_category": "VARCHAR",
            **dict.fromkeys(("customer_name", "mail", "street", "comment"), "VARCHAR"),
            **dict.fromkeys(("city", "country", "status", "currency"), "VARCHAR"),
            **dict.fromkeys(("amount", "tax", "discount"), "DECIMAL(18, 2)"),
            "weight": "DOUBLE",
            **dict.fromkeys(("quantity", "warehouse"), "INTEGER"),
            "created_ts": "TIMESTAMP",
            **dict.fromkeys(("due_date", "ship_date"), "DATE"),
        },
    ),
}

# Per case: the shape of its rows, the options of the generator, and settings of the pipeline.
CASES = {
    "narrow": ("narrow", "--rows 20000000 --keys 5000000 --files 40"),
    "wide": ("wide", "--rows 10000000 --keys 2000000 --files 40"),
    "tiny": ("narrow", "--rows 1000000 --keys 250000 --files 20000"),
    "hot": ("narrow", "--rows 20000000 --keys 20000 --files 40"),
    "unique": ("narrow", "--rows 20000000 --keys 20000000 --files 40 --each-key-once"),
    "day": ("wide", "--rows 134000000 --keys 26800000 --files 640", "limits.memory=4GiB"),
}
# Measured only if named: takes 35 GB of disk, and the peers need more memory than most machines have.
BY_HAND = ["day"]

PEERS = {
    "DuckDB row_number": "duckdb_row_number",
    "DuckDB arg_max": "duckdb_arg_max",
    "Polars streaming": "polars_streaming",
    "DataFusion row_number": "datafusion_row_number",
    "PySpark row_number": "pyspark_row_number",
}
# A limit that no run reaches, as the peers have none.
ROOMY = "limits.memory=8GB"
# These are slow: they run in the first turn only.
ONCE = ["DataFusion row_number", "PySpark row_number"]


def main():
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    print_machine(arguments.glueless)
    print(f"- peers: {peers()}, each with its default limits (Spark: 8 GB)")
    print(f"- turns: {arguments.runs} ({' and '.join(ONCE)}: 1); medians, with the lowest and")
    print("  the highest in brackets; the raw files are in the page cache", flush=True)
    for case in arguments.cases:
        measure(arguments, case)


def measure(arguments, case):
    shape, options, *settings = CASES[case]
    raw = make(arguments, case, shape, options)
    rows, files, size = inspect(raw)
    print(f"\n### {case}: {rows:,} changes in {files:,} files, {size / 1e6:,.0f} MB\n", flush=True)
    contenders = {
        "glueless": lambda work: run_glueless(arguments, shape, raw, work, settings),
        "glueless, 8 GB": lambda work: run_glueless(arguments, shape, raw, work, [ROOMY]),
        **{
            name: lambda work, peer=peer: run_peer(shape, raw, work, peer)
            for name, peer in PEERS.items()
            if name in arguments.peers
        },
    }
    measured = {name: [] for name in contenders}
    results = {}
    for turn in range(1, arguments.runs + 1):
        for name, run in contenders.items():
            if turn > 1 and name in ONCE:
                continue
            work = arguments.work / "runs" / name.replace(" ", "-").replace(",", "")
            shutil.rmtree(work, ignore_errors=True)
            (work / "spill").mkdir(parents=True)
            os.sync()
            run = run(work)
            measured[name].append(run)
            print(f"turn {turn}: {name}: {run['seconds']:.2f} s", file=sys.stderr)
            results[name, turn] = read_back(SHAPES[shape], run["table"])
            if results[name, turn] != results["glueless", 1]:
                sys.exit(f"error: the results differ, as (rows, hash): {results}")
    floor = {"floor": [run_floor(arguments, shape, raw) for _ in range(arguments.runs)]}
    print_table(measured | floor, rows)
    rows, fingerprint = results["glueless", 1]
    print(f"\nEvery run ended in the same {rows:,} rows (sum of hashes {fingerprint}).", flush=True)
    shutil.rmtree(arguments.work / "runs")


PATHS = {
    "glueless": "the release binary",
    "generate": "generate_changes",
    "copy": "copy_parquet",
    "server": "s3s-fs",
    "work": "a folder for all data",
}


def parser_of(manual, *paths):
    """A parser of a program's arguments; `paths` are its required paths."""
    parser = argparse.ArgumentParser(description=manual.splitlines()[0])
    resolved = lambda text: pathlib.Path(text).resolve()
    for name in paths:
        parser.add_argument(f"--{name}", type=resolved, required=True, help=PATHS[name])
    return parser


def parse_arguments():
    parser = parser_of(__doc__, "glueless", "generate", "copy", "work")
    parser.add_argument("--runs", type=int, default=3, help="turns per contender (default 3)")
    names = lambda text: [name for name in text.split(",") if name]
    cases = [case for case in CASES if case not in BY_HAND]
    parser.add_argument("--cases", type=names, default=cases, help="some of the cases")
    parser.add_argument("--peers", type=names, default=list(PEERS), help="some of the peers")
    return parser.parse_args()


def make(arguments, case, shape, options):
    """Generates the raw files of a case, if needed; returns their folder."""
    raw = arguments.work / "raw" / case
    if not (raw / "made").exists():
        shutil.rmtree(raw, ignore_errors=True)
        command = [arguments.generate, "--case", shape, "--out", raw, *options.split()]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (raw / "made").touch()
    return raw


def run_glueless(arguments, shape, raw, work, settings=()):
    table = work / "curated" / shape
    command = [arguments.glueless, "curate", BENCHES / "pipelines" / shape, *WINDOW]
    for setting in (f"raw.url={raw}", f"curated.url={table}", *settings):
        command += ["--set", setting]
    return {"table": table, **timed(command, work / "log")}


def run_peer(shape, raw, work, peer):
    table = work / "table"
    options = {
        "raw": str(raw),
        "table": str(table),
        "spill": str(work / "spill"),
        "key": SHAPES[shape].key,
        "columns": list(SHAPES[shape].columns),
    }
    command = [sys.executable, BENCHES / "peers.py", peer, json.dumps(options)]
    return {"table": table, **timed(command, work / "log")}


def run_floor(arguments, shape, raw):
    """A lower bound of the job: all columns are read, and the table is written, once."""
    work = arguments.work / "runs" / "floor"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    table = arguments.work / "runs" / "glueless" / "curated" / shape
    command = [arguments.copy, "--read", raw, work / "table", *sorted(table.rglob("*.parquet"))]
    return {"table": work / "table", **timed(command, work / "log")}


def adopt():
    """Makes this process the parent of orphaned child processes (Linux)."""
    if sys.platform == "linux":
        set_child_subreaper = 36
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def timed(command, log):
    """Runs a command and measures it; its output goes to the log."""
    adopt()
    with open(log, "wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        _, status, *usages = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        # Waits for processes that it left running, such as Spark's Java.
        while True:
            try:
                usages.append(os.wait4(-process.pid, 0)[2])
            except ChildProcessError:
                break
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        command = " ".join(map(str, command))
        sys.exit(f"error: exit code {process.returncode}: {command}\n{log.read_text()}")
    maxrss_unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": seconds,
        "cpu_seconds": sum(usage.ru_utime + usage.ru_stime for usage in usages),
        "peak_bytes": max(usage.ru_maxrss for usage in usages) * maxrss_unit,
    }


# Everything below that imports duckdb runs in a separate process: on Linux a
# child's peak memory starts from its parent's.


def duckdb_query(options):
    import duckdb

    row = duckdb.execute(options["query"], options["parameters"]).fetchone()
    json.dump(list(map(int, row)), sys.stdout)


def query(text, parameters):
    options = json.dumps({"query": text, "parameters": parameters})
    answer = subprocess.run(
        [sys.executable, __file__, "--duckdb-query", options], check=True, capture_output=True
    )
    return tuple(json.loads(answer.stdout))


def read_back(shape, table):
    columns = {shape.key: "VARCHAR", **shape.columns, "event_dt": "DATE"}
    values = ", ".join(f'CAST("{name}" AS {kind})' for name, kind in columns.items())
    return query(
        f"""
        SELECT count(*), sum(CAST(hash({values}) AS HUGEINT))
        FROM read_parquet($files, hive_partitioning = true)
        """,
        {"files": f"{table}/**/*.parquet"},
    )


def inspect(raw):
    """The raw files' rows, number and bytes; reads them once, into the page cache."""
    size = 0
    for path in sorted(raw.glob("*.parquet")):
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                size += len(chunk)
    rows, files = query(
        "SELECT sum(num_rows), count(*) FROM parquet_file_metadata($files)",
        {"files": f"{raw}/*.parquet"},
    )
    return rows, files, size


def peers():
    lines = (BENCHES / "requirements.txt").read_text().splitlines()
    return ", ".join(line for line in lines if not line.startswith(("#", "matplotlib")))


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
            *timed_cells(name, runs),
            f"{rows / median:,.0f}",
            f"{size / 1e6:,.1f}",
            f"{len(files):,}",
            f"{median / reference:.2f}",
        ]
        print("| " + " | ".join(cells) + " |")


def timed_cells(name, runs):
    """The first columns of every table: name, wall, CPU, peak memory."""
    return [
        name,
        spread([run["seconds"] for run in runs], "{:.2f}"),
        spread([run["cpu_seconds"] for run in runs], "{:.2f}"),
        spread([run["peak_bytes"] / 1e6 for run in runs], "{:,.0f}"),
    ]


def spread(values, layout):
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{layout} ({layout} to {layout})".format(middle, low, high)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--duckdb-query"]:
        duckdb_query(json.loads(sys.argv[2]))
    else:
        main()
