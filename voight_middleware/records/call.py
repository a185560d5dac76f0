"""Call: the data of one billable provider call, as in the journal and the ledger."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec
from msgspec.structs import replace

from voight_middleware.records.money import from_femto
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Component, Usage

OUTCOMES = ("ok", "error", "aborted", "cancelled", "truncated")
ATTRIBUTIONS = ("tag", "dependency", "getter", "settled", "request", "none", "error")
REATTRIBUTABLE = ("none", "error", "request")
"""The attributions that a late attribution may still replace."""
FIXED_AT_SUBMISSION = (
    *(
        "occurred_at",
        "call_id",
        "tags",
        "attribution",
        "job",
        "requested_model",
        "duration",
        "streamed",
        "batch",
    ),
)
"""The fields of a job's call that its result does not change."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Ids:
    """
    The ids of this process: a random node and a counter.

    They don't use ``random``: an application that seeds it would repeat ids, and two calls with the
    same id count as one.
    """

    def __init__(self) -> None:
        os.register_at_fork(after_in_child=self.renew)
        self.renew()

    def renew(self) -> None:
        """Pick another node: a forked child must not reuse its parent's."""
        self.node = f"{8 + os.urandom(1)[0] % 4:x}{os.urandom(5).hex()[:9]}"
        self.number = itertools.count(int.from_bytes(os.urandom(4)))


_ids = _Ids()


_NEW_ID = re.compile(r"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}")


def new_call_id() -> str:
    """
    Return a UUID version 7 as 32 hexadecimal digits. It is unique and sorts by time in
    milliseconds.
    """
    number = next(_ids.number)
    return f"{time.time_ns() // 1_000_000:012x}7{number >> 24 & 0xFFF:03x}{_ids.node}{number & 0xFFFFFF:06x}"  # noqa: E501


def is_new_call_id(call_id: str) -> bool:
    """Return whether an id has the form of ``new_call_id``. Such a call is reported only once."""
    return _NEW_ID.fullmatch(call_id) is not None


def job_call_id(job: str) -> str:
    """
    Return the id of a job's call. Every reader of the job's result reports the same call, however
    often.
    """
    return hashlib.blake2b(job.encode(errors="surrogatepass"), digest_size=16).hexdigest()


class Call(msgspec.Struct, omit_defaults=True, kw_only=True, tag="call"):
    """
    One billable provider call.

    The first part is written to the journal when the call ends. The ingester fills in the part
    below the rule.
    """

    call_id: str
    occurred_at: int
    """When the request was sent: microseconds since 1970, UTC."""
    provider: str
    """The billing provider: ``openai``, ``anthropic``, ``azure``, ``openrouter``, …"""
    endpoint: str
    """
    The format of the response: ``chat``, ``responses``, ``embeddings``, ``images``, ``messages``, …
    """
    requested_model: str | None = None
    model: str | None = None
    """The model that served the call, as named in the provider's response."""
    host: str | None = None
    streamed: bool = False
    outcome: str = "ok"
    error: str | None = None
    """
    The class of the exception that the caller got. Messages are never stored: they may quote the
    prompt.
    """
    http_status: int | None = None
    attempts: int = 1
    possibly_billed: int | None = None
    """
    Attempts without a response, because of a timeout or a broken connection. The provider may have
    billed them.
    """
    duration: int | None = None
    """Microseconds from the start of the request to the last byte."""
    ttft: int | None = None
    """
    Time to first token: microseconds from the start of the request to the first event of the
    stream.
    """
    response_id: str | None = None
    finish_reasons: tuple[str, ...] | None = None
    """
    Why the model stopped, in the provider's words, in the order of the choices. None if unknown.

    For listeners and spans. The ledger doesn't store it: no report uses it.
    """
    job: str | None = None
    """
    The name of work that the provider does later: a batch, a background response, a video. Its
    submitter owns the call, no matter who reads the result.
    """
    service_tier: str | None = None
    batch: bool = False
    raw_usage: str | None = None
    """The provider's usage JSON; on one line in the ledger."""
    tool_calls: dict[str, int] | None = None
    """Tool calls counted in the response, if the provider's usage omits them (OpenAI)."""
    estimated_input: int | None = None
    estimated_output: int | None = None
    """Estimated token counts, for a stream that ended before the provider reported them."""
    tags: Tags = Tags()
    attribution: str = "none"
    """How the call got its owner: one of ``ATTRIBUTIONS``."""

    # -- filled in by the ingester -----------------------------------------------------------------
    usage: Usage | None = None
    """Totals over all components. None if the provider reported nothing."""
    components: tuple[Component, ...] = ()
    cost_femto: int | None = None
    """Femto-dollars (1e-15 USD). None if no price is known."""
    list_femto: int | None = None
    """
    The cost by our own prices, if the provider reported the cost itself. ``cost_femto`` is the
    reported cost then.
    """
    cost_status: str = "unpriced"
    """``priced``, ``partial`` or ``unpriced``."""
    cost_reasons: tuple[str, ...] = ()
    price: str | None = None
    """
    The unit prices used, with source, version and rules: one JSON object per component, one per
    line.
    """

    @property
    def cost_usd(self) -> Decimal | None:
        """US dollars. None if no price is known."""
        return None if self.cost_femto is None else from_femto(self.cost_femto)

    @property
    def time(self) -> datetime:
        """``occurred_at`` as an aware UTC datetime."""
        return _EPOCH + timedelta(microseconds=self.occurred_at)

    @property
    def estimated(self) -> bool:
        """Whether any count of this call is an estimate."""
        return self.estimated_input is not None or self.estimated_output is not None


class LateAttribution(msgspec.Struct, kw_only=True, tag="settlement"):
    """
    The owner of calls and submitted jobs that were written before it was known.

    It never replaces an existing owner, except one from a request's body.
    """

    call_ids: tuple[str, ...]
    """Ids of calls, and names of jobs."""
    tags: Tags
    attribution: str = "settled"


class Submission(msgspec.Struct, omit_defaults=True, kw_only=True, tag="submission"):
    """
    The owner of a job. Its result is read later, perhaps in another process, and belongs to the
    submitter.

    ``provider/batch_1/part`` is a part of the job ``provider/batch_1``. *part_of* names a job that
    the name doesn't show, such as the batch of an output file.
    """

    job: str
    submitted_at: int
    """Microseconds since 1970, UTC."""
    part_of: str | None = None
    tags: Tags = Tags()
    attribution: str = "none"


def is_open_job(call: Call) -> bool:
    """Return whether *call* is a job whose usage is not known yet."""
    return call.job is not None and call.raw_usage is None


def with_result(submitted: Call, result: Call) -> Call:
    """Return *result* with the fields of *submitted* that a job's result does not change."""
    return replace(result, **{name: getattr(submitted, name) for name in FIXED_AT_SUBMISSION})


Record = Call | LateAttribution | Submission
"""One line of a journal."""
