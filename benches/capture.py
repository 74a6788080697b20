"""Times capture from PostgreSQL: a backlog of row changes, and the rows of a table.

    python capture.py --glueless BINARY --work DIR [--rows 1000000] [--turns 2]

A server on the same machine has a table of 6 columns. Its log gets `--rows` inserts, as many updates in
transactions of 1,000 rows, and a tenth as many deletes. In turn, each with a slot of its own:

glueless       `glueless capture` drains the slot into files
recvlogical    `pg_recvlogical` writes what wal2json decodes into one file; it neither parses nor encodes it
pgoutput       `pg_recvlogical` writes what pgoutput decodes: the floor

Then the table's rows: the first capture of another slot, beside `COPY ... TO STDOUT` by psql into a file. The
time of the server is in `wall s` and not in `CPU s`. The number of changes in the files is checked.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

from measure import BENCHES, timed, timed_cells

TABLE = "CREATE TABLE t (id bigint PRIMARY KEY, customer int, amount numeric(12, 2), state varchar(12), at timestamptz, note varchar(40))"
BATCH = 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glueless", required=True)
    parser.add_argument("--generate", help="not used")
    parser.add_argument("--work", required=True, type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    settings = ["wal_level=logical", "max_replication_slots=20", "max_wal_senders=20", "shared_buffers=1GB", "max_wal_size=16GB", "fsync=on"]
    server = subprocess.Popen(
        [sys.executable, BENCHES.parent / "tests" / "postgres_server.py", *(word for setting in settings for word in ("-c", setting))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    address = json.loads(server.stdout.readline())
    try:
        measured = measure(arguments, address)
    finally:
        server.stdin.close()
        server.wait()
    print("\n| what | wall s | CPU s | peak memory MB | changes/s |")
    print("|---|---|---|---|---|")
    for (name, changes), runs in measured.items():
        rate = changes / min(run["seconds"] for run in runs)
        print("| " + " | ".join([*timed_cells(name, runs), f"{rate:,.0f}"]) + " |")


def measure(arguments, address):
    target = ["-h", address["socket"], "-p", str(address["port"]), "-U", "postgres", "-d", "postgres"]
    ask = lambda sql: subprocess.run([address["psql"], "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *target, "-c", sql], check=True, capture_output=True, text=True).stdout.strip()
    url = f"postgresql://postgres@/postgres?host={address['socket']}&port={address['port']}"
    measured = {}
    put = lambda name, changes, run: measured.setdefault((name, changes), []).append(run)
    ask(TABLE)
    for turn in range(arguments.turns):
        capture(arguments, url, f"turn{turn}")
        ask(f"SELECT pg_create_logical_replication_slot('wal2json_{turn}', 'wal2json'), pg_create_logical_replication_slot('pgoutput_{turn}', 'pgoutput')")
    rows = arguments.rows
    each_batch = "DO $$ BEGIN FOR i IN 0..%d LOOP %%s; COMMIT; END LOOP; END $$" % (rows // BATCH - 1)
    ids = f"i * {BATCH} AND i * {BATCH} + {BATCH - 1}"
    ask(each_batch % f"INSERT INTO t SELECT j, j %% 5000, j * 0.25, 'new', now(), md5(j::text) FROM generate_series(i * {BATCH}, i * {BATCH} + {BATCH - 1}) j".replace("%%", "%"))
    ask(each_batch % f"UPDATE t SET amount = amount + 1, state = 'paid' WHERE id BETWEEN {ids}")
    ask("DELETE FROM t WHERE id % 10 = 3")
    changes = rows * 2 + rows // 10
    end = ask("SELECT pg_current_wal_flush_lsn()")
    for turn in range(arguments.turns):
        run = capture(arguments, url, f"turn{turn}")
        captured = sum(table["inserts"] + table["updates"] + table["deletes"] for table in run["report"]["tables"])
        assert captured == changes, (captured, changes)
        put("backlog: glueless", changes, run)
        for plugin, options in (("wal2json", ["-o", "format-version=2"]), ("pgoutput", ["-o", "proto_version=1", "-o", f"publication_names=glueless_turn{turn}"])):
            command = ["pg_recvlogical", *target, "--slot", f"{plugin}_{turn}", "--start", "--endpos", end, "--no-loop", "-f", arguments.work / "received", *options]
            name = "recvlogical, wal2json" if plugin == "wal2json" else "recvlogical, pgoutput"
            put(f"backlog: {name}", changes, timed(command, arguments.work / "log"))
            (arguments.work / "received").unlink()
    left = int(ask("SELECT count(*) FROM t"))
    ask("VACUUM ANALYZE t")
    for turn in range(arguments.turns):
        put("table: glueless", left, capture(arguments, url, f"load{turn}"))
        command = [address["psql"], "-X", "-q", *target, "-c", "COPY t TO STDOUT", "-o", arguments.work / "copied"]
        put("table: COPY", left, timed(command, arguments.work / "log"))
    return measured


def capture(arguments, url, name):
    """Captures a slot into a folder of its own."""
    source = arguments.work / f"{name}.toml"
    to = arguments.work / f"raw-{name}"
    if not source.exists() or not to.exists():
        shutil.rmtree(to, ignore_errors=True)
    source.write_text(f'name = "{name}"\nurl_env = "SOURCE_URL"\ntables = ["public.t"]\nto = "{to}"\n')
    command = ["env", f"SOURCE_URL={url}", arguments.glueless, "--quiet", "capture", source, "--output", "json"]
    log = arguments.work / "log"
    return timed(command, log) | {"report": json.loads(log.read_text())}


if __name__ == "__main__":
    main()
