# A PostgreSQL server of an example's own, in a temporary folder, which stops when the example ends. To be read
# by a script of sh: `. ./server.sh`, then `start_server SETTING=VALUE…`; it sets `folder`, which has the server's
# socket, and `ask`, which is psql for it.
#
# It needs PostgreSQL's programs (Debian, Ubuntu: apt-get install postgresql).

programs=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -n 1)
PATH=${programs:-/usr/local/pgsql/bin}:$PATH

# The server refuses to run as root.
if [ "$(id -u)" = 0 ]; then
    as_server() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
else
    as_server() { "$@"; }
fi

stop_server() {
    as_server pg_ctl --pgdata "$folder/data" --mode immediate --silent stop || true
    rm -rf "$folder"
}

start_server() {
    folder=$(mktemp -d)
    trap stop_server EXIT
    [ "$(id -u)" != 0 ] || chown postgres "$folder"
    chmod 755 "$folder"
    as_server initdb --pgdata "$folder/data" --username postgres --auth trust --no-sync > "$folder.log"
    rm "$folder.log"
    options="-k $folder -c listen_addresses=''"
    for setting in "$@"; do
        options="$options -c $setting"
    done
    as_server pg_ctl --pgdata "$folder/data" --silent --wait --log "$folder/log" --options "$options" start
}

ask() { psql --no-psqlrc --quiet --host "$folder" --username postgres "$@"; }
