#!/bin/sh
# Makes the database on the first start, then becomes the server; arguments go to the server (-c name=value).
#   POSTGRES_PASSWORD_FILE or POSTGRES_PASSWORD   the superuser's password (needed on the first start)
#   POSTGRES_USER, POSTGRES_DB                    its name and a database to create (default: postgres)
set -eu
umask 077

: "${PGDATA:?names the directory of the database}"
user=${POSTGRES_USER:-postgres}
database=${POSTGRES_DB:-$user}
sockets=/tmp # also writable where the rest of the file system is read-only

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  secret=$(mktemp)
  trap 'rm -f "$secret"' EXIT
  if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
    cat "$POSTGRES_PASSWORD_FILE" > "$secret"
  elif [ -n "${POSTGRES_PASSWORD:-}" ]; then
    printf '%s' "$POSTGRES_PASSWORD" > "$secret"
  else
    echo "postgres: set POSTGRES_PASSWORD_FILE (or POSTGRES_PASSWORD) for the first start" >&2
    exit 1
  fi
  mkdir -p "$PGDATA"
  initdb --pgdata="$PGDATA" --username="$user" --pwfile="$secret" --encoding=UTF8 --locale=C.UTF-8 \
    --auth-local=trust --auth-host=scram-sha-256 --no-sync
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  if [ "$database" != postgres ]; then
    # Without TCP: nobody gets in before everything is there.
    pg_ctl --pgdata="$PGDATA" --silent --wait -o "-c listen_addresses='' -c unix_socket_directories=$sockets" start
    PGHOST=$sockets createdb --username="$user" --maintenance-db=postgres "$database"
    pg_ctl --pgdata="$PGDATA" --silent --wait --mode=fast stop
  fi
  rm -f "$secret"
  trap - EXIT
fi

unset POSTGRES_PASSWORD
exec postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories="$sockets" "$@"
