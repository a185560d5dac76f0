#!/bin/sh
# Two roles in addition to the owner: one that inserts calls and cannot read them, and one that only reads.
# `voight migrate` grants their rights in the ledger.
set -eu
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    -v writer="$WRITER_PASSWORD" -v reader="$READER_PASSWORD" <<'SQL'
CREATE ROLE voight_writer LOGIN PASSWORD :'writer';
CREATE ROLE voight_reader LOGIN PASSWORD :'reader';
SQL
