#!/bin/sh
# Two accounts beside the owner: one that brings calls in and can read none, and one that reads and can change nothing.
# What they may do in the ledger, `voight migrate` grants.
set -eu
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    -v writer="$WRITER_PASSWORD" -v reader="$READER_PASSWORD" <<'SQL'
CREATE ROLE voight_writer LOGIN PASSWORD :'writer';
CREATE ROLE voight_reader LOGIN PASSWORD :'reader';
SQL
