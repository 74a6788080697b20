"""Times a night onto pipelines of several ages.

    python ages.py --glueless BINARY --generate BINARY --work DIR [--years 0,1,10] [--turns 3]

A night has 100,000 changes in 1,440 files, one a minute, in one folder. The ledger of the first night
gets the files of all nights of so many years before; the files themselves are not there: no run looks at
them any more. The second night moves them to files of old inputs, the third is measured too.
"""

import datetime
import json
import os
import shutil
import subprocess
import sys

from measure import BENCHES, parser_of, print_machine, timed, timed_cells

FIRST = datetime.date(2024, 1, 2)
MINUTES = 1440


def main():
    parser = parser_of(__doc__, "glueless", "generate", "work")
    numbers = lambda text: [int(number) for number in text.split(",")]
    parser.add_argument("--years", type=numbers, default=[0, 1, 10], help="ages (default 0,1,10)")
    parser.add_argument("--turns", type=int, default=3, help="turns per age (default 3)")
    arguments = parser.parse_args()
    print_machine(arguments.glueless)
    raw, base = arguments.work / "raw", arguments.work / "base"
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    command = [arguments.generate, "--case", "narrow", "--out", raw, "--rows", 300_000]
    command += ["--keys", 1_000_000, "--first-day", FIRST, "--days", 3, "--files", 3 * MINUTES]
    subprocess.run([*map(str, command), "--on-time"], check=True, stdout=subprocess.DEVNULL)
    night(arguments, 0)
    lake = arguments.work / "lake"
    lake.rename(base)
    first = lambda years: f"the first night after {years} years in one file of the ledger"
    next_one = lambda years: f"the night after it, {years} years"
    measured = {name(years): [] for years in arguments.years for name in (first, next_one)}
    for _ in range(arguments.turns):
        for years in arguments.years:
            shutil.rmtree(lake, ignore_errors=True)
            shutil.copytree(base, lake)
            age(lake / "_glueless" / "narrow" / "versions", years)
            measured[first(years)].append(night(arguments, 1))
            measured[next_one(years)].append(night(arguments, 2))
    shutil.rmtree(lake)
    print("\n| what | wall s | CPU s | peak memory MB |")
    print("|---|---|---|---|")
    for name, runs in measured.items():
        print("| " + " | ".join(timed_cells(name, runs)) + " |")


def night(arguments, number):
    start = FIRST + datetime.timedelta(number)
    command = [arguments.glueless, "curate", BENCHES / "pipelines" / "narrow", "--output", "json"]
    command += ["--start-date", start, "--end-date", start + datetime.timedelta(1)]
    command += ["--set", f"raw.url={arguments.work / 'raw'}"]
    command += ["--set", f"curated.url={arguments.work / 'lake' / 'curated'}"]
    return timed(command, arguments.work / "log")


def age(state, years):
    """Adds the files of the years before the first night to the ledger's only file."""
    [ledger] = (state / "kind=ledger").glob("*.parquet")
    program = "import sys; from ages import write_older; write_older(*sys.argv[1:])"
    # In a process of its own, so that its memory is not that of the next command.
    subprocess.run([sys.executable, "-c", program, ledger, str(years)], check=True, cwd=BENCHES)
    for log in (state / "_delta_log").glob("*.json"):
        actions = [json.loads(line) for line in log.read_text().splitlines()]
        for action in actions:
            if "add" in action and action["add"]["path"].endswith(ledger.name):
                action["add"]["size"] = os.path.getsize(ledger)
        log.write_text("".join(json.dumps(action) + "\n" for action in actions))


def write_older(ledger, years):
    import duckdb

    read = f"SELECT record FROM read_parquet('{ledger}')"
    records = [record for (record,) in duckdb.sql(read).fetchall()]
    sample = next(record for record in records if record.startswith('{"input"'))
    name = json.loads(sample)["input"]["path"]
    at = datetime.datetime.combine(FIRST, datetime.time())
    older = []
    for minute in range(1, int(years) * 365 * MINUTES + 1):
        path = (at - datetime.timedelta(minutes=minute)).strftime("%Y%m%d-%H%M%S000.parquet")
        older.append(sample.replace(name, path))
    text = f"{ledger}.txt"
    with open(text, "w") as lines:
        lines.writelines(f"{record}\n" for record in [records[0], *older, *records[1:]])
    lines = (
        f"read_csv('{text}', header = false, delim = '\\x01', quote = '', escape = '', "
        "auto_detect = false, columns = {'record': 'VARCHAR'})"
    )
    duckdb.sql(f"COPY (SELECT * FROM {lines}) TO '{ledger}' (FORMAT parquet)")
    os.remove(text)


if __name__ == "__main__":
    main()
