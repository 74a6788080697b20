"""Times glueless runs onto existing tables.

    python onto_a_table.py --glueless BINARY --generate BINARY --copy BINARY --work DIR [--turns 3]

Three cases, each generated once and cached under DIR:

year    `keep = "latest-per-day"`: 365 daily runs of 137,000 changes each, 50
        million in total, dated as if run daily. Then another day of as many
        changes, all of that day, is folded onto that table, and onto an empty
        one.
keys    `keep = "latest"`: one run of 50 million changes of as many keys, of
        365 days. Then a day of 500,000 changes of random keys is folded onto
        that table: every partition changes. For comparison, a lower bound: the
        table's files and the files of versions are read and written once, on
        all processors (`copy_parquet.rs`).
night   wide rows: one run of 10 million changes of 2 million keys, of 365 days.
        Then a day of as many changes of the same keys is folded onto that
        table, and onto an empty one, in both keep modes. Under `latest` nearly
        every key moves to that day.

The contenders of a case run in turns. Each turn of `year` folds another day;
each turn of `keys` begins from the same table.
"""

import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

from measure import BENCHES, parser_of, print_machine, timed, timed_cells

FIRST = datetime.date(2023, 1, 1)
DAYS = 365
YEAR_ROWS = 50_000_000
DAY_ROWS = YEAR_ROWS // DAYS
KEYS = 50_000_000
CHANGES = 500_000
NIGHT_ROWS = 10_000_000
NIGHT_KEYS = 2_000_000


def main():
    parser = parser_of(__doc__, "glueless", "generate", "copy", "work")
    parser.add_argument("--turns", type=int, default=3, help="turns per contender (default 3)")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    print_machine(arguments.glueless)
    print(f"- turns: {arguments.turns}; medians, with the lowest and the highest in brackets")
    measured = year(arguments) | keys(arguments)
    for keep in ("latest", "latest-per-day"):
        measured |= night(arguments, keep)
    print("\n| what | wall s | CPU s | peak memory MB | bytes written | of them changed |")
    print("|---|---|---|---|---|---|")
    for name, runs in measured.items():
        cells = [
            *timed_cells(name, runs),
            f"{runs[-1].get('bytes_written', 0):,}",
            f"{runs[-1].get('bytes_changed', 0):,}",
        ]
        print("| " + " | ".join(cells) + " |")
    ratio = lambda one, other: statistics.median(
        a["seconds"] / b["seconds"] for a, b in zip(measured[one], measured[other])
    )
    print(f"\nyear: onto the table / onto an empty one: {ratio('year, table', 'year, empty'):.2f}")
    print(f"keys: the run / the copy: {ratio('keys, run', 'keys, copy'):.2f}")
    for keep in ("latest", "latest-per-day"):
        nights = ratio(f"night, {keep}, table", f"night, {keep}, empty")
        print(f"night, {keep}: onto the table / onto an empty one: {nights:.2f}")


def year(arguments):
    """A new day onto a year of days, and onto an empty table."""
    base, raw = arguments.work / "year", arguments.work / "year-raw"
    keep = "latest-per-day"
    if not (base / "made").exists():
        shutil.rmtree(base, ignore_errors=True)
        shutil.rmtree(raw, ignore_errors=True)
        generate(arguments, raw, YEAR_ROWS, FIRST, DAYS, "--on-time")
        for day in range(DAYS):
            fold(arguments, base, raw, keep, day, arguments.work / "log")
            age(base, DAYS - day)
        (base / "made").write_text("0")
    measured = {"year, table": [], "year, empty": []}
    # No day is folded twice, not even by later measurements.
    made = int((base / "made").read_text())
    for turn in range(made, made + arguments.turns):
        day = DAYS + turn
        generate(arguments, raw, DAY_ROWS, FIRST + datetime.timedelta(day), 1, "--on-time")
        empty = arguments.work / "empty"
        shutil.rmtree(empty, ignore_errors=True)
        contenders = {"year, table": base, "year, empty": empty}
        for name in sorted(contenders, reverse=turn % 2 == 1):
            os.sync()
            run = fold(arguments, contenders[name], raw, keep, day, arguments.work / "log")
            measured[name].append(run)
            print(f"turn {turn}: {name}: {run['seconds']:.2f} s", file=sys.stderr)
        (base / "made").write_text(str(turn + 1))
    shutil.rmtree(empty)
    return measured


def age(lake, days):
    """Dates the log files of the last run back to its day, so that old ones expire as in daily use."""
    then = time.time() - days * 86_400
    for file in (lake / "_glueless" / "narrow" / "versions" / "_delta_log").iterdir():
        if file.stat().st_mtime > then:
            os.utime(file, (then, then))


def keys(arguments):
    """A day of changes onto many keys, and a copy of the files that it replaces."""
    base, raw = arguments.work / "keys", arguments.work / "keys-raw"
    lake = arguments.work / "keys-lake"
    if not (base / "made").exists():
        shutil.rmtree(base, ignore_errors=True)
        shutil.rmtree(raw, ignore_errors=True)
        shutil.rmtree(lake, ignore_errors=True)
        generate(arguments, raw, KEYS, FIRST, DAYS, "--on-time", "--each-key-once")
        generate(arguments, raw, CHANGES, FIRST + datetime.timedelta(DAYS), 1, "--on-time")
        fold(arguments, lake, raw, "latest", 0, arguments.work / "log", days=DAYS)
        lake.rename(base)
        (base / "made").touch()
    measured = {"keys, run": [], "keys, copy": []}
    for turn in range(arguments.turns):
        shutil.rmtree(lake, ignore_errors=True)
        # Files are replaced, never modified, so that links are enough.
        subprocess.run(["cp", "-al", base, lake], check=True)
        os.sync()
        run = fold(arguments, lake, raw, "latest", DAYS, arguments.work / "log")
        measured["keys, run"].append(run)
        copied = arguments.work / "copied"
        shutil.rmtree(copied, ignore_errors=True)
        files = [*(base / "curated").rglob("part-*.parquet"), *base.rglob("kind=version/*.parquet")]
        os.sync()
        copy = timed([arguments.copy, copied, *sorted(files)], arguments.work / "log")
        measured["keys, copy"].append(copy)
        print(f"turn {turn}: {run['seconds']:.2f} s, copy {copy['seconds']:.2f} s", file=sys.stderr)
        shutil.rmtree(copied)
    shutil.rmtree(lake)
    return measured


def night(arguments, keep):
    """A day of changes of all keys onto a year of them, and onto an empty table."""
    base, raw = arguments.work / f"night-{keep}", arguments.work / "night-raw"
    if not (raw / "made").exists():
        shutil.rmtree(raw, ignore_errors=True)
        of = {"case": "wide", "keys": NIGHT_KEYS}
        generate(arguments, raw, NIGHT_ROWS, FIRST, DAYS, "--on-time", **of)
        next_day = FIRST + datetime.timedelta(DAYS)
        generate(arguments, raw, NIGHT_ROWS, next_day, 1, "--on-time", **of, files=40)
        (raw / "made").touch()
    log = arguments.work / "log"
    # A table cannot be moved to another path: it is generated and measured at the same one.
    lake = arguments.work / "night-lake"
    if not (base / "made").exists():
        shutil.rmtree(base, ignore_errors=True)
        shutil.rmtree(lake, ignore_errors=True)
        fold(arguments, lake, raw, keep, 0, log, days=DAYS, shape="wide")
        lake.rename(base)
        (base / "made").touch()
    measured = {f"night, {keep}, table": [], f"night, {keep}, empty": []}
    for turn in range(arguments.turns):
        for name in sorted(measured, reverse=turn % 2 == 1):
            shutil.rmtree(lake, ignore_errors=True)
            if name.endswith("table"):
                subprocess.run(["cp", "-al", base, lake], check=True)
            os.sync()
            run = fold(arguments, lake, raw, keep, DAYS, log, shape="wide")
            measured[name].append(run)
            print(f"turn {turn}: {name}: {run['seconds']:.2f} s", file=sys.stderr)
    shutil.rmtree(lake)
    return measured


def generate(arguments, raw, rows, first_day, days, *options, case="narrow", keys=KEYS, files=None):
    command = [arguments.generate, "--case", case, "--out", raw, "--rows", rows, "--keys", keys]
    command += ["--first-day", first_day, "--days", days, "--files", files or days]
    subprocess.run([*map(str, command), *options], check=True, stdout=subprocess.DEVNULL)


def fold(arguments, lake, raw, keep, day, log, days=1, shape="narrow"):
    """Folds days; returns measurements, and bytes by the run's report."""
    start = FIRST + datetime.timedelta(day)
    command = [arguments.glueless, "curate", BENCHES / "pipelines" / shape, "--output", "json"]
    command += ["--start-date", start, "--end-date", start + datetime.timedelta(days)]
    command += ["--set", f"keep={keep}", "--set", f"raw.url={raw}"]
    command += ["--set", f"curated.url={lake / 'curated'}"]
    measure = timed(list(map(str, command)), log)
    report = json.loads(log.read_text().splitlines()[-1])
    return {**measure, **{name: report[name] for name in ("bytes_written", "bytes_changed")}}


if __name__ == "__main__":
    main()
