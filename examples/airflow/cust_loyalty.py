"""Folds every day's changes into the loyalty tables, with Airflow 3.3.

    fold     `glueless run` over the run's data interval; its report is the task's XCom
    report   tells the numbers, and fails when rows or files were put into quarantine

Airflow Variables, or variables of the worker's environment named AIRFLOW_VAR_ and the name
in capitals:

    glueless               the binary                                      glueless
    glueless_retry_waits   seconds to wait before each further try         30 60 120 240 480
    cust_loyalty_pipeline  the folder of the pipeline, an absolute path    /etc/glueless/cust_loyalty
"""

import json
import logging
from datetime import datetime, timezone

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, CronDataIntervalTimetable, task
from airflow.sdk.exceptions import AirflowFailException

# Two codes pass by themselves: 69, storage cannot be reached, and 75, other runs were faster. All
# others would come again, so they end the task at once, with the code. The loop is in the command
# because Airflow's retries cannot tell the codes apart: the operator has one exception for all.
#
# What comes from outside comes in through `env`, so nothing in it is read as shell. The text must
# not end in `.sh`: Airflow would take it for the name of a file.
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
    echo "glueless ended with exit code $code; again in $1 s" >&2
    sleep "$1" || exit 2
    shift
done
"""

with DAG(
    dag_id="cust_loyalty",
    # A plain "@daily" makes runs whose data interval has no length (Airflow 3 takes it for a
    # CronTriggerTimetable), and glueless refuses an empty window. This timetable's intervals reach
    # from one tick to the next, so that every instant is in one; "@hourly" does as well.
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    # The first day to fold: set it to yours.
    start_date=datetime(2019, 12, 12, tzinfo=timezone.utc),
    # Days that passed while Airflow was down are folded too. Later runs take no more of their files
    # than `raw.lookback` reaches.
    catchup=True,
    # Overlapping runs and runs in any order are right, but one publishes at a time, and the others
    # fold again: more than one at a time costs work and saves no time. A backfill has a limit of
    # its own, see README.md.
    max_active_runs=1,
    # The loop above has waited already, and what it does not wait for does not pass. A task that
    # was killed may be cleared at any time: the next run finishes or undoes what it left.
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
        # PATH and the AWS settings are the worker's.
        append_env=True,
        # By default the code 99 marks a task as skipped, and the run as good.
        skip_on_exit_code=None,
        # The last line of the output is the report.
        output_processor=json.loads,
    )

    @task(task_id="report")
    def tell(report):
        logging.getLogger(__name__).info(
            "run %s: window [%s, %s), %s files, %s of them late; %s rows read, %s written in %s partitions",
            *(report[name] for name in ("run_id", "start", "end", "files", "late_files")),
            *(report[name] for name in ("rows_read", "rows_written", "partitions_written")),
        )
        # The table is published by now, and later days go on. But what is in quarantine is not in
        # the table, and somebody has to look.
        if report["rows_rejected"] or report["files_rejected"]:
            raise AirflowFailException(
                f"in quarantine: {report['rows_rejected']} rows and {report['files_rejected']} files,"
                f" see {report.get('quarantine')}; once mended, `glueless catch-up` folds them"
            )

    tell(fold.output)
