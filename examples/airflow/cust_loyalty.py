"""Folds every day's changes into the loyalty tables, with Airflow 3.3.

    fold     `glueless run` over the run's data interval; its report is the task's XCom
    report   logs the numbers, and fails when rows or files were quarantined

Airflow Variables, or variables of the worker's environment named AIRFLOW_VAR_ and the name
in capitals:

    glueless               the binary                                      glueless
    glueless_retry_waits   seconds to wait before each retry               30 60 120 240 480
    cust_loyalty_pipeline  the folder of the pipeline, an absolute path    /etc/glueless/cust_loyalty
"""

import json
import logging
from datetime import datetime, timezone

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, CronDataIntervalTimetable, task
from airflow.sdk.exceptions import AirflowFailException

# Two exit codes are temporary: 69, storage not reachable, and 75, another run is publishing. A retry
# does not help with any other, so that these end the task at once, with the code. The loop is in the
# command because Airflow's retries cannot distinguish the codes: the operator raises one exception
# for all of them.
#
# Values from outside are passed through `env`, so that none of them is read as shell. The text must
# not end in `.sh`: Airflow would read it as the name of a file.
FOLD = """\
set -fu
set -- $RETRY_WAITS
while true; do
    "$GLUELESS" run "$PIPELINE" --start-date "$START" --end-date "$END" --output json
    code=$?
    case $code in
        69 | 75) ;;
        *) exit $code ;;
    esac
    [ $# -gt 0 ] || exit $code
    echo "glueless ended with exit code $code; retrying in $1 s" >&2
    sleep "$1" || exit 2
    shift
done
"""

with DAG(
    dag_id="cust_loyalty",
    # A plain "@daily" makes runs with an empty data interval (Airflow 3 reads it as a
    # CronTriggerTimetable), and glueless refuses an empty window. The intervals of this timetable
    # extend from one tick to the next, so that every instant is in one; "@hourly" works too.
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    # The first day to fold: change it to yours.
    start_date=datetime(2019, 12, 12, tzinfo=timezone.utc),
    # Folds the days that passed while Airflow was down too. Without it, later runs would fold only
    # those files of these days that are within `raw.lookback`.
    catchup=True,
    # Overlapping runs, and runs in any order, are correct. But only one can publish at a time and the
    # others fold again, so that concurrent runs save no time. A backfill has its own limit, see
    # README.md.
    max_active_runs=1,
    # The loop above retries what can be retried. A task that was killed may be cleared at any time:
    # the next run finishes or undoes its publish.
    default_args={"retries": 0},
):
    fold = BashOperator(
        task_id="fold",
        bash_command=FOLD,
        env={
            "GLUELESS": "{{ var.value.get('glueless', 'glueless') }}",
            "PIPELINE": "{{ var.value.get('cust_loyalty_pipeline', '/etc/glueless/cust_loyalty') }}",
            "RETRY_WAITS": "{{ var.value.get('glueless_retry_waits', '30 60 120 240 480') }}",
            # Instants with their zone, not days, so that the schedule can be hourly.
            "START": "{{ data_interval_start | ts }}",
            "END": "{{ data_interval_end | ts }}",
        },
        # Adds PATH and the AWS settings of the worker.
        append_env=True,
        # By default exit code 99 marks the task as skipped and the run as successful.
        skip_on_exit_code=None,
        # The last line of the output is the report.
        output_processor=json.loads,
    )

    @task(task_id="report")
    def log_report(report):
        logging.getLogger(__name__).info(
            "run %s: window [%s, %s), %s files, %s of them late; %s rows read, %s written in %s partitions",
            *(report[name] for name in ("run_id", "start", "end", "files", "late_files")),
            *(report[name] for name in ("rows_read", "rows_written", "partitions_written")),
        )
        # The table is published at this point, and later days run. But changes in quarantine are
        # missing in the table, and somebody must look at them.
        if report["rows_rejected"] or report["files_rejected"]:
            raise AirflowFailException(
                f"in quarantine: {report['rows_rejected']} rows and {report['files_rejected']} files,"
                f" see {report.get('quarantine')}; once repaired, `glueless catch-up` folds them"
            )

    log_report(fold.output)
