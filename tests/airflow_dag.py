"""Runs the DAG of examples/airflow in a real Airflow, with the real binary.

    python airflow_dag.py --glueless BINARY

Needs the packages of airflow-requirements.txt; `make test-airflow` installs them. Everything is
written into a temporary folder, Airflow's own files too. Ends with exit code 1 when something is
not as it should be, and says what; no case is ever left out.

Airflow is only started as a program, never imported.
"""

import argparse
import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
from readers import read_with_duckdb

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
AIRFLOW = pathlib.Path(sys.executable).parent / "airflow"
DAG = "cust_loyalty"
TABLES = ("curated/cust_loyalty", "cust_loyalty_daily", "cust_loyalty_status")
# `airflow dags test` takes the last interval that is over at the time it is given.
DAYS = {
    "2019-12-13T06:00": ("2019-12-12T00:00:00Z", "2019-12-13T00:00:00Z"),
    "2019-12-14T06:00": ("2019-12-13T00:00:00Z", "2019-12-14T00:00:00Z"),
    "2019-12-15T06:00": ("2019-12-14T00:00:00Z", "2019-12-15T00:00:00Z"),
}
DAY = next(iter(DAYS))
# Two further tries, and soon.
WAITS = "0.1 0.2"
COMMAND_SECONDS_MAX = 120


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glueless", type=pathlib.Path, required=True, help="the binary")
    arguments = parser.parse_args()
    for program in (arguments.glueless, AIRFLOW):
        if not os.access(program, os.X_OK):
            sys.exit(f"error: {program} is not a program\nhint: `make test-airflow` builds and installs what this needs")

    passed, failed = 0, 0
    with tempfile.TemporaryDirectory(prefix="glueless-airflow-", ignore_cleanup_errors=True) as scratch:
        place = Place(pathlib.Path(scratch), arguments.glueless.resolve())
        # Two at a time: starting Airflow takes one processor for most of a case.
        with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
            futures = [(case, pool.submit(timed, case, place)) for case in CASES]
            for case, future in futures:
                problem, seconds = future.result()
                print(f"{'FAILED' if problem else 'ok':6} {seconds:5.1f} s  {case.__name__}", flush=True)
                if problem:
                    print(problem, flush=True)
                passed, failed = passed + (not problem), failed + bool(problem)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


def timed(case, place):
    started = time.monotonic()
    try:
        case(place)
        problem = None
    except Difference as difference:
        problem = str(difference)
    except subprocess.TimeoutExpired as expired:
        problem = f"{expired}\n{(expired.output or b'').decode(errors='replace')}"
    return problem, time.monotonic() - started


class Difference(Exception):
    """What is not as it should be."""


class Place:
    """A folder with the DAG, and an Airflow whose database is made, to be copied for each case."""

    def __init__(self, root, glueless):
        self.root, self.glueless = root, glueless
        self.dags = root / "dags"
        self.dags.mkdir()
        shutil.copy(REPOSITORY / "examples/airflow/cust_loyalty.py", self.dags)
        self.migrated = root / "migrated"
        run(self.airflow_environment(self.migrated), [AIRFLOW, "db", "migrate"], expected=0)

    def airflow_environment(self, home, **variables):
        """The environment of Airflow and of its tasks: nothing of the caller's own Airflow is in it."""
        # What a task leaves in the temporary folder goes with the rest.
        temporary = home / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON", "_AIRFLOW"))}
        return {
            **kept,
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "PYTHONDONTWRITEBYTECODE": "1",
            **variables,
        }

    def case(self, name, **variables):
        """An Airflow and a pipeline with its raw files, for one case."""
        return Case(self, self.root / name, variables)


class Case:
    def __init__(self, place, folder, variables):
        self.folder, self.glueless = folder, place.glueless
        self.home = folder / "home"
        shutil.copytree(place.migrated, self.home)
        # What a shell would stumble over, were the path pasted into a command.
        self.pipeline = copy_pipeline(folder / "it's $(a) lake")
        self.lake = self.pipeline.parent.parent / "lake"
        self.environment = place.airflow_environment(
            self.home,
            AIRFLOW_VAR_CUST_LOYALTY_PIPELINE=str(self.pipeline),
            AIRFLOW_VAR_GLUELESS_RETRY_WAITS=WAITS,
            **variables,
        )
        self.calls = folder / "calls"

    def stub(self, script):
        """Puts a program named `glueless` first on PATH, where the DAG looks unless it is told otherwise.

        `$n` is the number of its call. No loop goes on beyond the tenth.
        """
        programs = self.folder / "bin"
        programs.mkdir()
        stub = programs / "glueless"
        calls = shlex.quote(str(self.calls))
        stub.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nn=$(wc -l < {calls})\n[ $n -lt 10 ] || exit 70\n{script}\n')
        stub.chmod(0o755)
        self.environment["PATH"] = f"{programs}{os.pathsep}{self.environment['PATH']}"

    def test_dag(self, date, expected):
        """Runs the DAG for a date; returns the run, as the database has it, and what Airflow printed."""
        command = [AIRFLOW, "dags", "test", DAG, date]
        output = run(self.environment, command, 0 if expected["report"] == "success" else 1)
        with contextlib.closing(sqlite3.connect(self.home / "airflow.db")) as database:
            # A date has one run: the one of a date that is run again takes the place of the earlier one.
            ((run_id,),) = database.execute("SELECT run_id FROM dag_run WHERE logical_date LIKE ?", [f"{date.replace('T', ' ')}%"])
            states = dict(database.execute("SELECT task_id, state FROM task_instance WHERE run_id = ?", [run_id]))
            tries = dict(database.execute("SELECT task_id, try_number FROM task_instance WHERE run_id = ?", [run_id]))
            value = database.execute(
                "SELECT value FROM xcom WHERE run_id = ? AND task_id = 'fold' AND key = 'return_value'", [run_id]
            ).fetchone()
        same(f"the states of the tasks of {date}", states, expected, output)
        same(f"the tries that Airflow made of `fold` of {date}", tries["fold"], 1, output)
        return (json.loads(value[0]) if value else None), output

    def calls_made(self):
        return self.calls.read_text().splitlines() if self.calls.exists() else []


DONE = {"fold": "success", "report": "success"}
NOT_FOLDED = {"fold": "failed", "report": "upstream_failed"}


def the_dag_file_is_imported_without_errors(place):
    case = place.case("import")
    output = run(case.environment, [AIRFLOW, "dags", "list-import-errors", "--local", "--output", "json"], expected=0)
    same("import errors", output.splitlines()[-1], "[]", output)
    output = run(case.environment, [AIRFLOW, "dags", "list", "--local", "--columns", "dag_id", "--output", "json"], expected=0)
    same("DAGs", json.loads(output.splitlines()[-1]), [{"dag_id": DAG}], output)


def days_run_again_change_nothing_and_equal_one_run(place):
    case = place.case("days", AIRFLOW_VAR_GLUELESS=str(place.glueless))
    for date, window in DAYS.items():
        report, output = case.test_dag(date, DONE)
        same(f"the window in the XCom of {date}", (report["start"], report["end"]), window, output)
        same(f"lines of {date} that name its run, by the second task", named_by_report(report, output), 1, output)
        if not report["rows_read"]:
            raise Difference(f"nothing was read for {date}: {report}")

    rows, files = rows_of(case.lake), files_of(case.lake)
    again, output = case.test_dag(DAY, DONE)
    same("rows written when a date is run again", again["rows_written"], 0, output)
    same("the rows after a date was run again", rows_of(case.lake), rows)
    same("the files after a date was run again", files_of(case.lake), files)

    whole = copy_pipeline(case.folder / "whole")
    start, end = DAYS[DAY][0], list(DAYS.values())[-1][1]
    run(case.environment, [place.glueless, "run", whole, "--start-date", start, "--end-date", end], expected=0)
    same("the rows of three runs, next to those of one run over their days", rows, rows_of(whole.parent.parent / "lake"))


def wrong_data_fails_at_once_with_its_exit_code(place):
    case = place.case("wrong-data")
    case.stub("exit 65")
    _, output = case.test_dag(DAY, NOT_FOLDED)
    same("calls of glueless", len(case.calls_made()), 1, output)
    contains(output, "non-zero exit code 65")


def a_code_that_airflow_takes_for_a_skip_fails(place):
    case = place.case("skip")
    case.stub("exit 99")
    _, output = case.test_dag(DAY, NOT_FOLDED)
    same("calls of glueless", len(case.calls_made()), 1, output)


def what_passes_is_waited_for(place):
    case = place.case("passes")
    case.stub(f"""[ $n -eq 1 ] && exit 69\n[ $n -eq 2 ] && exit 75\nexec {shlex.quote(str(place.glueless))} "$@" """)
    report, output = case.test_dag(DAY, DONE)
    calls = case.calls_made()
    same("calls of glueless", len(calls), 3, output)
    same("different command lines among them", len(set(calls)), 1, output)
    same("the window in the XCom", (report["start"], report["end"]), DAYS[DAY], output)
    if not rows_of(case.lake)[TABLES[0]]:
        raise Difference("the third call left no rows")


def what_does_not_pass_is_not_waited_for_without_end(place):
    case = place.case("lasts")
    # Two codes, so that the task's can only be the last one.
    case.stub("[ $n -eq 1 ] && exit 75\nexit 69")
    _, output = case.test_dag(DAY, NOT_FOLDED)
    same("calls of glueless", len(case.calls_made()), 1 + len(WAITS.split()), output)
    contains(output, "non-zero exit code 69")
    for wait in WAITS.split():
        contains(output, f"retrying in {wait} s")


def files_in_quarantine_are_told_and_fail_the_second_task(place):
    case = place.case("quarantine", AIRFLOW_VAR_GLUELESS=str(place.glueless))
    settings = case.pipeline / "pipeline.toml"
    settings.write_text(settings.read_text().replace("[raw]\n", '[raw]\non_bad_file = "quarantine"\n', 1))
    raw = case.pipeline.parent.parent / "fixtures/raw/cust_loyalty"
    (raw / "20191212-120000000.parquet").write_text("not Parquet")
    report, output = case.test_dag(DAY, {"fold": "success", "report": "failed"})
    same("files in quarantine, by the XCom", report["files_rejected"], 1, output)
    contains(output, "in quarantine: 0 rows and 1 files")
    contains(output, report["quarantine"])


def a_backfill_takes_every_day_from_the_first_to_the_last(place):
    case = place.case("backfill")
    run(case.environment, [AIRFLOW, "dags", "reserialize"], expected=0)
    command = [AIRFLOW, "backfill", "create", "--dag-id", DAG, "--from-date", "2019-12-12", "--to-date", "2019-12-14", "--dry-run"]
    output = run(case.environment, command, expected=0)
    runs = [line.split()[1] for line in output.splitlines() if line.startswith("| 2019-")]
    same("the days a backfill would run", runs, ["2019-12-12", "2019-12-13", "2019-12-14"], output)


# The longest one first.
CASES = (
    days_run_again_change_nothing_and_equal_one_run,
    the_dag_file_is_imported_without_errors,
    a_backfill_takes_every_day_from_the_first_to_the_last,
    wrong_data_fails_at_once_with_its_exit_code,
    a_code_that_airflow_takes_for_a_skip_fails,
    what_passes_is_waited_for,
    what_does_not_pass_is_not_waited_for_without_end,
    files_in_quarantine_are_told_and_fail_the_second_task,
)


def copy_pipeline(root):
    """Copies the pipelines and the raw files, so that the URLs in the toml lead into `root`."""
    shutil.copytree(REPOSITORY / "sql", root / "sql")
    shutil.copytree(REPOSITORY / "fixtures/raw", root / "fixtures/raw")
    return root / "sql" / "cust_loyalty"


def rows_of(lake):
    """Columns and sorted rows of each table."""
    tables = {}
    for table in TABLES:
        columns, rows = read_with_duckdb(str(lake / table))
        tables[f"columns of {table}"] = columns
        tables[table] = sorted(rows, key=lambda row: [(value is not None, value or "") for value in row])
    return tables


def files_of(lake):
    """Path of every file of the tables, with its content for the curated one: the days of an aggregate
    are written anew by every run of their window, and a file says which run wrote it."""
    files = [path for table in TABLES for path in (lake / table).rglob("*") if path.is_file()]
    curated = lake / TABLES[0]
    content = lambda path: hashlib.sha256(path.read_bytes()).hexdigest() if curated in path.parents else "any content"
    return sorted((str(path.relative_to(lake)), content(path)) for path in files)


def named_by_report(report, output):
    """How many lines of the second task name the run of the first."""
    return sum(f"run {report['run_id']}: window" in line for line in output.splitlines())


def run(environment, command, expected):
    """Runs a command and returns what it printed, to both streams."""
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=COMMAND_SECONDS_MAX, cwd=environment["AIRFLOW_HOME"],
    )
    output = done.stdout.decode(errors="replace")
    same(f"the exit code of `{shlex.join(map(str, command))}`", done.returncode, expected, output)
    return output


def same(what, found, wanted, output=""):
    if found != wanted:
        raise Difference("\n".join([f"{what}:", *differences(found, wanted), indented(output)]))


def differences(found, wanted):
    """Only what differs, where both are long."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            if found.get(key) != wanted.get(key):
                yield f"  {key}:"
                yield from differences(found.get(key), wanted.get(key))
    elif isinstance(found, list) and isinstance(wanted, list):
        yield from (f"  found only   {item}" for item in found if item not in wanted)
        yield from (f"  wanted only  {item}" for item in wanted if item not in found)
    else:
        yield from (f"  found   {found}", f"  wanted  {wanted}")


def contains(output, text):
    if text not in output:
        raise Difference(f"`{text}` is not in what was printed:\n{indented(output)}")


def indented(output):
    """The end of what a program printed."""
    return "\n".join(f"  | {line}" for line in output.splitlines()[-40:])


if __name__ == "__main__":
    main()
