"""
Permissions in a PostgreSQL ledger: the owner of the schema, a role that only writes, and one that
only reads.
"""

from __future__ import annotations

from voight_middleware.ledger.postgres.connection import quoted
from voight_middleware.ledger.postgres.functions import SIGNATURES


def grants(*, writer: str | None = None, reader: str | None = None) -> list[str]:
    """
    Return the statements that give roles their rights. The owner of the schema ``voight`` runs them
    after the ledger has been opened once.

    Args:
        writer: The role of the application and of ``voight ingest``. It can insert calls, attribute
            them and add results, but read none. It also needs ``TEMPORARY`` on the database, which
            everybody has by default.
        reader: The role of reports. It can read everything and write nothing.
    """
    statements = []
    if writer is not None:
        role = quoted(writer)
        statements += [
            f"GRANT USAGE ON SCHEMA voight TO {role}",
            f"GRANT SELECT ON voight.schema_version TO {role}",
            f"GRANT INSERT ON voight.calls, voight.prices, voight.extra_keys TO {role}",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON voight.segments TO {role}",
            *(
                f"GRANT EXECUTE ON FUNCTION voight.{signature} TO {role}"
                for signature in SIGNATURES
            ),
        ]
    if reader is not None:
        role = quoted(reader)
        statements += [
            f"GRANT USAGE ON SCHEMA voight TO {role}",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA voight TO {role}",
            f"GRANT EXECUTE ON FUNCTION voight.submitted(text[]) TO {role}",
        ]
    return statements
