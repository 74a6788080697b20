#!/bin/sh
# The whole way on one machine: a database that pgbench changes, captured into raw files, folded, and loaded
# into a second database, which in the end has the rows of the first one. Meanwhile the table is compared with the
# database at positions of its log.
#
#   make build && examples/postgres-to-lake/run.sh
#
# It starts a PostgreSQL server of its own in a temporary folder, and stops it at the end. It needs
# PostgreSQL's programs (Debian, Ubuntu: apt-get install postgresql). GLUELESS names another binary, SECONDS_OF_CHANGES
# says for how long pgbench runs (default 15).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
glueless=${GLUELESS:-${CARGO_TARGET_DIR:-$HOME/.cache/glueless/target}/release/glueless}
. "$here/../server.sh"
start_server wal_level=logical

ask --command 'CREATE DATABASE shop' --command 'CREATE DATABASE warehouse'
ask --dbname shop --file "$here/tables.sql"
export SOURCE_URL="postgresql://postgres@/shop?host=$folder"
export WAREHOUSE_URL="postgresql://postgres@/warehouse?host=$folder"

sed "s|^to .*|to = \"$folder/raw\"|" "$here/shop.toml" > "$folder/shop.toml"
capture() { "$glueless" --quiet capture "$folder/shop.toml" --output text; }
folds() {
    "$glueless" --quiet "$@" --set raw.url="$folder/raw/public/orders" --set curated.url="$folder/lake/orders"
}
fold() { folds run "$here/orders" --start-date 2020-01-01 --end-date 2100-01-01 --output json; }
compare() { folds verify "$here/orders" --against postgres --source "$folder/shop.toml" --output text; }

echo "== the first capture: the rows of the tables"
capture
echo "== pgbench inserts, updates, moves and deletes orders"
pgbench --host "$folder" --username postgres --no-vacuum --client 4 --time "${SECONDS_OF_CHANGES:-15}" \
    --file "$here/changes.sql" shop > "$folder/pgbench" 2>&1 &
changes=$!
while kill -0 "$changes" 2>/dev/null; do
    sleep 3
    capture | grep public.orders || true
    fold > "$folder/report"
    compare > "$folder/compared" || { cat "$folder/compared"; exit 1; }
done
grep 'both are as of' "$folder/compared"
wait "$changes"
grep 'number of transactions actually processed' "$folder/pgbench"

echo "== the last capture, fold and load"
capture
fold

rows() {
    ask --dbname "$1" --no-align --tuples-only \
        --command "SELECT count(*), md5(string_agg(concat_ws(',', id, customer, amount, state), ';' ORDER BY id)) FROM orders"
}
echo "== the rows of both databases: their number, and a hash"
echo "shop       $(rows shop)"
echo "warehouse  $(rows warehouse)"
[ "$(rows shop)" = "$(rows warehouse)" ] || { echo "they differ"; exit 1; }
echo "== equal"
