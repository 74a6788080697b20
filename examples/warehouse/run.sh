#!/bin/sh
# The whole chain on one machine: raw change files, curated table and aggregates, tables in PostgreSQL,
# a materialized view, and a question to it.
#
#   make build && examples/warehouse/run.sh
#
# It starts a PostgreSQL server of its own in a temporary folder, and stops it at the end. It needs
# PostgreSQL's server programs (Debian, Ubuntu: apt-get install postgresql). GLUELESS names another binary.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
glueless=${GLUELESS:-${CARGO_TARGET_DIR:-$HOME/.cache/glueless/target}/release/glueless}
. "$here/../server.sh"
start_server

echo "== the warehouse: a schema for the dashboards"
ask --dbname postgres --command 'CREATE SCHEMA dashboard'

export WAREHOUSE_URL="postgresql://postgres@/postgres?host=$folder"
run() {
    "$glueless" --quiet "$@" --output text \
        --set curated.url="$folder/lake/curated" \
        --set aggregate.cust_loyalty_daily.url="$folder/lake/daily" \
        --set aggregate.cust_loyalty_status.url="$folder/lake/status" \
        --set load.url_env=WAREHOUSE_URL \
        --set load.table=dashboard.cust_loyalty \
        --set load.after_sql="$here/refresh.sql" \
        --set aggregate.cust_loyalty_status.load.table=dashboard.cust_loyalty_status
}
for day in 12 13 14 15; do
    echo "== night of 2019-12-$day"
    run run "$root/sql/cust_loyalty" --start-date "2019-12-$day" --end-date "2019-12-$((day + 1))" |
        grep follower
done

echo "== customers by category, from the materialized view"
ask --dbname postgres --command 'SELECT * FROM dashboard.customers_by_category'
echo "== the last days, from the table of the aggregate"
ask --dbname postgres --command 'SELECT dt, basic, silver, gold, platinum, total FROM dashboard.cust_loyalty_status ORDER BY dt DESC LIMIT 2'
