"""Times read-only commands on a table of 20 million changes, and the same queries in DuckDB.

    python questions.py --glueless BINARY --generate BINARY --work DIR [--turns 3]

The case narrow is folded once. Then the contenders run in turns:

explain-key     every change of one key, which one wins, the run that folded it,
                and its row in the table
DuckDB lookup   the key's changes, from all raw files, and its row
verify          folds all changes once more and compares the result with the
                table, by partition
DuckDB EXCEPT   the same: `arg_max` over all changes in its fastest form, and
                the rows that only one side has
curate          the fold itself, into an empty lake, for comparison
"""

import json
import shutil
import subprocess
import sys

from measure import BENCHES, CASES, SHAPES, WINDOW, make, parser_of, print_machine, timed, timed_cells

COLUMNS = ", ".join(SHAPES["narrow"].columns)
# The expected rows of the table: `arg_max` as in `peers.py`.
FOLDED = f"""
CREATE TABLE folded AS SELECT cust_id, UNNEST(last) FROM (
    SELECT cust_id, arg_max(
        struct_pack(Op, {COLUMNS}),
        epoch_us(CAST("TIMESTAMP" AS TIMESTAMP)) * CAST(1099511627776 AS HUGEINT)
            + file_index * 16777216 + file_row_number
    ) AS last
    FROM {{}} GROUP BY cust_id
)
"""


def main():
    parser = parser_of(__doc__, "glueless", "generate", "work")
    parser.add_argument("--turns", type=int, default=3, help="turns per contender (default 3)")
    arguments = parser.parse_args()
    print_machine(arguments.glueless)
    print(f"- turns: {arguments.turns}; medians, with the lowest and the highest in brackets\n")
    raw = make(arguments, "narrow", *CASES["narrow"][:2])
    work = arguments.work / "runs" / "questions"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    pipeline = BENCHES / "pipelines" / "narrow"

    def settings(lake):
        return ["--set", f"raw.url={raw}", "--set", f"curated.url={work / lake / 'curated'}"]

    def glueless(*command, lake="lake"):
        return timed([arguments.glueless, *command, *settings(lake)], work / "log")

    def duckdb(question):
        options = {"raw": str(raw), "table": str(work / "lake/curated"), "question": question}
        return timed([sys.executable, __file__, "--duckdb", json.dumps(options)], work / "log")

    def curate():
        shutil.rmtree(work / "other", ignore_errors=True)
        return glueless("curate", pipeline, *WINDOW, lake="other")

    glueless("curate", pipeline, *WINDOW)
    key = subprocess.run(
        [sys.executable, __file__, "--duckdb", json.dumps({"raw": str(raw), "question": "any key"})],
        check=True, capture_output=True, text=True,
    ).stdout.strip()
    contenders = {
        "explain-key": lambda: glueless("explain-key", pipeline, key),
        "DuckDB lookup": lambda: duckdb(key),
        "verify": lambda: glueless("verify", pipeline),
        "DuckDB EXCEPT": lambda: duckdb("verify"),
        "curate": curate,
    }
    measured = {name: [] for name in contenders}
    for _ in range(arguments.turns):
        for name, run in contenders.items():
            measured[name].append(run())
    print("| contender | wall s | CPU s | peak memory MB |")
    print("|---|---|---|---|")
    for name, runs in measured.items():
        cells = timed_cells(name, runs)
        print("| " + " | ".join(cells) + " |")
    shutil.rmtree(work)


def by_hand(options):
    """The queries in DuckDB; runs in a separate process."""
    import duckdb

    raw = f"read_parquet('{options['raw']}/*.parquet', file_row_number = true)"
    question = options["question"]
    if question == "any key":
        print(duckdb.execute(f"SELECT min(cust_id) FROM {raw} WHERE file_row_number = 1000 AND file_index = 7").fetchone()[0])
        return
    table = f"read_parquet('{options['table']}/**/*.parquet', hive_partitioning = true)"
    if question != "verify":
        changes = duckdb.execute(f"SELECT * FROM {raw} WHERE cust_id = ? ORDER BY \"TIMESTAMP\"", [question]).fetchall()
        rows = duckdb.execute(f"SELECT * FROM {table} WHERE cust_id = ?", [question]).fetchall()
        print(len(changes), len(rows))
        return
    duckdb.execute(FOLDED.format(raw))
    expected = f"SELECT cust_id, {COLUMNS} FROM folded WHERE Op <> 'D'"
    found = f"SELECT cust_id, {COLUMNS} FROM {table}"
    for one, other in [(expected, found), (found, expected)]:
        count = duckdb.execute(f"SELECT count(*) FROM ({one} EXCEPT {other})").fetchone()[0]
        if count:
            sys.exit(f"error: {count} rows differ")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--duckdb"]:
        by_hand(json.loads(sys.argv[2]))
    else:
        main()
