"""Times histories (`keep = "history"`): glueless next to its own fold of the latest rows, and to DuckDB's LEAD.

    python histories.py --glueless BINARY --generate BINARY --work DIR [--runs 3]

20 million changes of 5 million keys are folded onto nothing. DuckDB computes the history by LEAD over each key. After
each turn both histories must have the same rows: their number and the sum of their hashes are compared.
"""

import shutil
import sys

from measure import CASES, inspect, make, parser_of, print_machine, query, run_glueless, run_peer, timed_cells

CASE = "narrow"
ROWS = """
    SELECT count(*), sum(hash(cust_id, event_id, cust_loyalty_category, event_dt,
        epoch_us(valid_from), epoch_us(valid_to)))
    FROM read_parquet($table || '/*/*/*.parquet', hive_partitioning = true)
"""


def main():
    parser = parser_of(__doc__, "glueless", "generate", "work")
    parser.add_argument("--runs", type=int, default=3, help="turns per contender (default 3)")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    print_machine(arguments.glueless)
    shape, options = CASES[CASE]
    raw = make(arguments, CASE, shape, options)
    rows, files, size = inspect(raw)
    print(f"\n### {CASE}: {rows:,} changes in {files:,} files, {size / 1e6:,.0f} MB\n", flush=True)
    contenders = {
        "glueless, latest": lambda work: run_glueless(arguments, shape, raw, work),
        "glueless, history": lambda work: run_glueless(arguments, shape, raw, work, ["keep=history"]),
        "DuckDB LEAD": lambda work: run_peer(shape, raw, work, "duckdb_lead"),
    }
    measured = {name: [] for name in contenders}
    for turn in range(arguments.runs):
        found = {}
        for name, run in contenders.items():
            work = arguments.work / "runs" / name.replace(" ", "-").replace(",", "")
            shutil.rmtree(work, ignore_errors=True)
            (work / "spill").mkdir(parents=True)
            measured[name].append(run(work))
            if name != "glueless, latest":
                found[name] = query(ROWS, {"table": str(measured[name][-1]["table"])})
            print(f"turn {turn + 1}: {name}: {measured[name][-1]['seconds']:.2f} s", file=sys.stderr)
        if len(set(found.values())) > 1:
            sys.exit(f"error: the histories differ, as (rows, hash): {found}")
    print("| what | wall s | CPU s | peak memory MB |")
    print("|---|---|---|---|")
    for name, runs in measured.items():
        print("| " + " | ".join(timed_cells(name, runs)) + " |")
    shutil.rmtree(arguments.work / "runs")


if __name__ == "__main__":
    main()
