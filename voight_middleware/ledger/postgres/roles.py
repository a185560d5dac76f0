"""Who may do what in a PostgreSQL ledger: the role that owns the schema, one that only brings calls in, and one that only reads."""

from __future__ import annotations

from voight_middleware.ledger.postgres.connection import quoted
from voight_middleware.ledger.postgres.functions import SIGNATURES


def grants(*, writer: str | None = None, reader: str | None = None) -> list[str]:
    """
    The statements that give roles what they need, to be run by the owner of the schema ``voight`` after the ledger has been opened once.

    Args:
        writer: Of the application and of ``voight ingest``: can bring calls in, settle and answer them, and read none. It also needs
            ``TEMPORARY`` on the database, which everybody has unless it was revoked.
        reader: Of reports: can read everything, and write nothing.
    """
    statements = []
    if writer is not None:
        role = quoted(writer)
        statements += [
            f"GRANT USAGE ON SCHEMA voight TO {role}",
            f"GRANT SELECT ON voight.schema_version TO {role}",
            f"GRANT INSERT ON voight.calls, voight.prices, voight.extra_keys TO {role}",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON voight.segments TO {role}",
            *(f"GRANT EXECUTE ON FUNCTION voight.{signature} TO {role}" for signature in SIGNATURES),
        ]
    if reader is not None:
        role = quoted(reader)
        statements += [
            f"GRANT USAGE ON SCHEMA voight TO {role}",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA voight TO {role}",
            f"GRANT EXECUTE ON FUNCTION voight.submitted(text[]) TO {role}",
        ]
    return statements
