"""
How a SQLite ledger stores calls: repeated texts once, and numbers instead of the JSON around them.

``packed_calls`` has one row per call. Texts that many calls share are in ``kinds`` (which service
answered, and how), ``places`` (where in the application it was called) and ``usage_shapes`` (a
usage without its numbers). Columns that few calls have are one JSON text, ``rare``.

The view ``calls`` has a column for each column of ``rows.SELECTED``. Questions, updates and
deletions go to the view. Inserts go through ``Intake`` (``intake.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from voight_middleware.ledger.base import MAX_COUNT
from voight_middleware.ledger.rows import (
    COUNTS,
    NO_USAGE,
    Row,
    components_text,
    encode,
    extra_text,
    only,
)
from voight_middleware.records.call import Call
from voight_middleware.records.usage import Usage

NUMBERS = 8
"""How many numbers of a usage have a column. A usage with more is stored as its text."""
MAX_SHAPES = 1_000
"""How many shapes a ledger keeps. Of providers, hundreds are known."""

KIND = {
    "provider": "TEXT NOT NULL",
    "endpoint": "TEXT NOT NULL",
    "requested_model": "TEXT",
    "model": "TEXT",
    "host": "TEXT",
    "streamed": "INTEGER NOT NULL",
    "outcome": "TEXT NOT NULL",
    "error": "TEXT",
    "http_status": "INTEGER",
    "attempts": "INTEGER NOT NULL",
    "possibly_billed": "INTEGER",
    "service_tier": "TEXT",
    "batch": "INTEGER NOT NULL",
    "cost_status": "TEXT NOT NULL",
    "price_id": "INTEGER REFERENCES prices",
}
PLACE = {"plan": "TEXT", "route": "TEXT", "release": "TEXT", "attribution": "TEXT NOT NULL"}
RARE = (
    *("images", "seconds", "characters", "cache_read_audio", "cache_read_image"),
    *("image_in", "image_out", "estimated_input", "estimated_output", "list_femto"),
    *("tools", "components", "tool_calls", "cost_reasons"),
)
"""The members of ``rare``, each a column of the view."""
_RARE_COUNTS = tuple(name for name in RARE if name in COUNTS)
_SUMMED = (
    *("cost_femto", "input", "cache_read", "cache_write", "cache_write_5m", "cache_write_1h"),
    *("output", "reasoning", "audio_in", "audio_out"),
)
_OWN = (
    *("user_id", "tenant_id", "session_id", "tags_extra", "duration", "ttft", "response_id", "job"),
)
PLAIN = (*_SUMMED, *_OWN)
"""The columns that a call has for itself, and that mean the same in the view."""
TEXTS = frozenset(("user_id", "tenant_id", "session_id", "tags_extra", "response_id", "job"))
"""Those of them that are text. The others are whole numbers."""
_NUMBER_NAMES = tuple(f"number_{position}" for position in range(1, NUMBERS + 1))
COLUMNS = (
    *("occurred_at", "call_key", "kind_id", "place_id", *_SUMMED, "rare", *_OWN),
    *("shape_id", *_NUMBER_NAMES, "raw_usage"),
)
"""
The columns of ``packed_calls``. Those that reports read most come first: SQLite reads a row up to
the last column that it needs.
"""


def _column(name: str) -> str:
    if name in TEXTS:
        return f"{name} TEXT"
    if name in COUNTS:
        return f"{name} INTEGER CHECK ({name} BETWEEN 0 AND {MAX_COUNT})"
    return f"{name} INTEGER{' CHECK (cost_femto >= 0)' if name == 'cost_femto' else ''}"


@dataclass(frozen=True, slots=True)
class Dictionary:
    """A table of texts that many calls share. No two rows have the same values."""

    table: str
    id: str
    columns: Mapping[str, str]
    """Types by name."""
    found_by: tuple[str, ...]
    """The columns of its index."""
    limit: int | None = None

    @property
    def tables(self) -> tuple[str, str]:
        columns = ", ".join(f"{name} {kind}" for name, kind in self.columns.items())
        return (
            f"CREATE TABLE {self.table} ({self.id} INTEGER PRIMARY KEY, {columns}) STRICT",
            f"CREATE INDEX {self.table}_by_value ON {self.table} ({', '.join(self.found_by)})",
        )

    def same(self, row: str) -> str:
        """Return the condition that a row of this table has the values of *row*."""
        return " AND ".join(f"{self.table}.{name} IS {row}.{name}" for name in self.columns)

    def add(self, source: str, values: str = "*") -> str:
        """Return the statement that adds the rows of *source* that are not there."""
        names = ", ".join(self.columns)
        room = f" AND (SELECT COUNT(*) FROM {self.table}) < {self.limit}" if self.limit else ""
        return (
            f"INSERT INTO {self.table} ({names}) SELECT DISTINCT {values} FROM {source} WHERE NOT "
            f"EXISTS (SELECT 1 FROM {self.table} WHERE {self.same('source')}){room}"
        )


KINDS = Dictionary("kinds", "kind_id", KIND, ("provider", "model", "requested_model", "outcome"))
PLACES = Dictionary("places", "place_id", PLACE, ("route", "release", "plan"))
SHAPES = Dictionary(
    "usage_shapes", "shape_id", {"shape": "TEXT NOT NULL"}, ("shape",), limit=MAX_SHAPES
)

PACKED_CALLS = f"""
CREATE TABLE packed_calls (
    occurred_at INTEGER NOT NULL,
    call_key ANY NOT NULL UNIQUE,
    kind_id INTEGER NOT NULL REFERENCES kinds,
    place_id INTEGER NOT NULL REFERENCES places,
    {", ".join(map(_column, _SUMMED))},
    rare TEXT,
    {", ".join(map(_column, _OWN))},
    shape_id INTEGER REFERENCES usage_shapes,
    {", ".join(f"{name} INTEGER NOT NULL" for name in _NUMBER_NAMES)},
    raw_usage TEXT,
    PRIMARY KEY (occurred_at, call_key)
) STRICT, WITHOUT ROWID"""
INDEXES = (
    "CREATE INDEX calls_of_users ON packed_calls (user_id, occurred_at) WHERE user_id IS NOT NULL",
    "CREATE INDEX calls_of_jobs ON packed_calls (job) WHERE job IS NOT NULL",
)


def unpacked(source: str) -> str:
    """Return the query that gives the rows of the view for a table like ``packed_calls``."""
    rare = ", ".join(
        f"IIF(packed.rare IS NULL, NULL, json_extract(packed.rare, '$.{name}')) AS {name}"
        for name in RARE
    )
    return (
        "SELECT packed.occurred_at, packed.call_key, IIF(typeof(packed.call_key) = 'blob', "
        "lower(hex(packed.call_key)), packed.call_key) AS call_id, "
        f"{', '.join(f'kinds.{name}' for name in KIND)}, "
        f"{', '.join(f'places.{name}' for name in PLACE)}, "
        f"{', '.join(f'packed.{name}' for name in PLAIN)}, "
        "IIF(packed.shape_id IS NULL, packed.raw_usage, printf((SELECT usage_shapes.shape FROM "
        "usage_shapes WHERE usage_shapes.shape_id = packed.shape_id), "
        f"{', '.join(f'packed.{name}' for name in _NUMBER_NAMES)})) AS raw_usage, {rare} "
        f"FROM {source} AS packed "
        "LEFT JOIN kinds ON kinds.kind_id = packed.kind_id "
        "LEFT JOIN places ON places.place_id = packed.place_id"
    )


VIEW = f"CREATE VIEW calls AS {unpacked('packed_calls')}"


def _id_of(dictionary: Dictionary) -> str:
    return f"(SELECT MIN({dictionary.id}) FROM {dictionary.table} WHERE {dictionary.same('NEW')})"


def _add_of(dictionary: Dictionary) -> str:
    values = ", ".join(f"NEW.{name}" for name in dictionary.columns)
    return (
        f"INSERT INTO {dictionary.table} ({', '.join(dictionary.columns)}) SELECT {values} WHERE "
        f"NOT EXISTS (SELECT 1 FROM {dictionary.table} WHERE {dictionary.same('NEW')});"
    )


_SAME_CALL = "occurred_at = OLD.occurred_at AND call_key = OLD.call_key"
_NEW_RARE = (
    f"NULLIF(json_patch('{{}}', json_object({', '.join(f'{name!r}, NEW.{name}' for name in RARE)})),"
    " '{}')"
)
_WRONG = " OR ".join(
    (
        "(NEW.cost_femto IS NULL) <> (NEW.cost_status = 'unpriced')",
        "NEW.list_femto < 0",
        *(f"NEW.{name} NOT BETWEEN 0 AND {MAX_COUNT}" for name in _RARE_COUNTS),
    )
)
CHANGE = f"""
SELECT RAISE(ABORT, 'a count or a cost is wrong') WHERE {_WRONG};
{_add_of(KINDS)} {_add_of(PLACES)}
UPDATE packed_calls SET
    kind_id = {_id_of(KINDS)}, place_id = {_id_of(PLACES)},
    {", ".join(f"{name} = NEW.{name}" for name in PLAIN)},
    raw_usage = IIF(NEW.raw_usage IS OLD.raw_usage, raw_usage, NEW.raw_usage),
    shape_id = IIF(NEW.raw_usage IS OLD.raw_usage, shape_id, NULL),
    rare = {_NEW_RARE}
WHERE {_SAME_CALL};"""
"""What an update of the view does in its trigger."""
REMOVE = f"DELETE FROM packed_calls WHERE {_SAME_CALL};"


def call_key(call_id: str) -> bytearray | str:
    """
    Return the id of a call as it is stored: 16 bytes for 32 hexadecimal digits, else its text.

    sqlite3 binds a bytearray in a third of the time of bytes.
    """
    if len(call_id) == 32:
        try:
            key = bytearray.fromhex(call_id)
        except ValueError:
            return call_id
        if key.hex() == call_id:
            return key
    return call_id


def key_ranges(beginning: str) -> list[tuple[bytes | str, bytes | str]]:
    """
    Return the ranges of keys of the ids that begin with *beginning*, stored as text and as bytes.
    """
    ranges: list[tuple[bytes | str, bytes | str]] = [(beginning, beginning + "\U0010ffff")]
    if len(beginning) < 32 and not beginning.strip("0123456789abcdef"):
        first, last = (bytes.fromhex(beginning.ljust(32, digit)) for digit in "0f")
        ranges.append((first, last))
    return ranges


kind_of = attrgetter(*list(KIND)[:-1], "price")
"""Return the values of a call's row in ``kinds``, with its price in place of its row."""
place_of = attrgetter("tags.plan", "tags.route", "tags.release", "attribution")
"""Return the values of a call's row in ``places``."""
_seldom_of = attrgetter(
    "cost_reasons", "tool_calls", "estimated_input", "estimated_output", "list_femto"
)
_seldom_used = attrgetter(*(name for name in RARE if name in Usage.__struct_fields__))
_NO_SELDOM = ((), None, None, None, None)
_NONE_USED = _seldom_used(NO_USAGE)
_PADS = tuple((0,) * (NUMBERS - count) for count in range(NUMBERS + 1))


def usage_values(text: str | None, shape_id: int | None, numbers: tuple[int, ...]) -> Row:
    """
    Return the values of a usage, from ``shape_id`` to ``raw_usage``.

    Args:
        text: The usage, if there is one.
        shape_id: Its shape. None stores the text.
        numbers: The numbers of that shape, at most ``NUMBERS``.
    """
    if shape_id is None:
        return (-1, *_PADS[0], text or "")
    return (shape_id, *numbers, *_PADS[len(numbers)], "")


# Complex: one expression for each column, as a loop over columns is slower for each call.
def plain_values(call: Call) -> Row:
    """
    Return the values of ``COLUMNS`` from ``cost_femto`` to ``job``. An empty text or -1 means no
    value.

    Raises:
        OverflowError: A rare count or cost is out of range.
        ValueError: The cost contradicts its status.
    """
    if (call.cost_femto is None) != (call.cost_status == "unpriced"):
        raise ValueError(
            f"a call cannot be stored: its cost is {call.cost_femto}, and its status "
            f"{call.cost_status}"
        )
    usage = call.usage or NO_USAGE
    tags = call.tags
    return (
        -1 if (number := call.cost_femto) is None else number,
        -1 if (number := usage.input) is None else number,
        -1 if (number := usage.cache_read) is None else number,
        -1 if (number := usage.cache_write) is None else number,
        -1 if (number := usage.cache_write_5m) is None else number,
        -1 if (number := usage.cache_write_1h) is None else number,
        -1 if (number := usage.output) is None else number,
        -1 if (number := usage.reasoning) is None else number,
        -1 if (number := usage.audio_in) is None else number,
        -1 if (number := usage.audio_out) is None else number,
        _rare_text(call),
        tags.user_id or "",
        tags.tenant_id or "",
        tags.session_id or "",
        extra_text(tags.extra) if tags.extra else "",
        -1 if (number := call.duration) is None else number,
        -1 if (number := call.ttft) is None else number,
        call.response_id or "",
        call.job or "",
    )


def placeholder(column: str) -> str:
    """Return the placeholder of a value in a statement that inserts ``COLUMNS``."""
    if column in TEXTS or column in ("raw_usage", "rare"):
        return "NULLIF(?, '')"
    return "NULLIF(?, -1)" if column in PLAIN or column == "shape_id" else "?"


def _rare_text(call: Call) -> str:
    """Return the value of ``rare``, empty for the many calls without any."""
    usage = call.usage
    components = call.components
    if (
        _seldom_of(call) == _NO_SELDOM
        and (usage is None or _seldom_used(usage) == _NONE_USED)
        and (
            components[0].usage is usage and components[0].model is None
            if len(components) == 1
            else components == only(usage)
        )
    ):
        return ""
    usage = usage or NO_USAGE
    values: dict[str, Any] = {
        name: getattr(call if name.startswith("estimated") else usage, name)
        for name in _RARE_COUNTS
    }
    if any(count is not None and not 0 <= count <= MAX_COUNT for count in values.values()):
        raise OverflowError("a count is out of range")
    if call.list_femto is not None and not 0 <= call.list_femto < 2**63:
        raise OverflowError("a cost is out of range")
    values |= {
        "list_femto": call.list_femto,
        "tools": None if usage.tools is None else encode(usage.tools).decode(),
        "components": components_text(call),
        "tool_calls": None if call.tool_calls is None else encode(call.tool_calls).decode(),
        "cost_reasons": encode(call.cost_reasons).decode() if call.cost_reasons else None,
    }
    return encode({name: value for name, value in values.items() if value is not None}).decode()
