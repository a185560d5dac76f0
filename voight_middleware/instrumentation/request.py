"""
MeteredRequest: one request to a provider, from its start to the end of its last response.

A whole response is read from its bytes at once. A response that the caller reads themselves, or one
that is sent as events, is read as it passes. Each response becomes one call, however it ends. Each
response of a batch becomes one call too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar, Token
from typing import Any

import msgspec

from voight_middleware.context.context import NOBODY, TagContext, current_context
from voight_middleware.diagnostics import counters, report_internal_error
from voight_middleware.instrumentation.bodies import Body, Lines
from voight_middleware.instrumentation.streams import StreamCompletion, watch_close
from voight_middleware.pipeline import open_calls
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.pipeline.observers import CallStart, Observed
from voight_middleware.providers.base import (
    MAX_USAGE_BYTES,
    Endpoint,
    NotBatchOutput,
    ResponseSummary,
    StreamParser,
    estimate_tokens,
    is_null,
    named_user,
    usage_text,
)
from voight_middleware.records.answer import Answer, usage_on_a_line
from voight_middleware.records.call import Call, Submission, job_call_id, new_call_id
from voight_middleware.records.tags import Owner

_WITHOUT_RESPONSE = frozenset(
    {
        "ReadTimeout",
        "ReadError",
        "RemoteProtocolError",
        "TimeoutException",
        "CancelledError",
        "Cancelled",
    }
)
"""
Errors of httpx, httpx2 and asyncio after which the provider may have processed and billed a request
without a response. A connection that was never made and a request that was only partly sent are not
among them.
"""
_MAX_BYTES_ON_CALLER = 256 * 1024
"""Batch output files up to this size are read on the caller's thread."""


class ManualBlock:
    """In the context during a ``metered_call()`` block. Requests inside are not metered again."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open = True


class RequestSlot:
    """
    Holds a running request in the context for the length of a ``with`` block, and is emptied after
    it.

    A pooled connection keeps a copy of the context in which it was made. Without the emptying it
    would keep the prompt too.

    Args:
        metered: The request; None for one that is not metered but runs inside one that is.
        client: The SDK client that sends it.
        level: Identifies the ``request`` method that was called: a class, or the id of the client's
            own.
    """

    __slots__ = ("_token", "client", "levels", "metered")

    def __init__(
        self, metered: MeteredRequest | None, client: Any = None, level: object = None
    ) -> None:
        self.metered = metered
        self.client = client
        self.levels: tuple[object, ...] = (level,)
        """The ``request`` methods that it is in, from the client's own to its base class's."""

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *exc_info: object) -> None:
        self.leave()

    def enter(self) -> None:
        """Put this slot into the context."""
        self._token = current_request.set(self)

    def leave(self) -> None:
        """Restore what was in the context before, and empty this slot. Never raises."""
        try:
            current_request.reset(self._token)
        except ValueError:  # a coroutine that is closed elsewhere
            outer = self._token.old_value
            current_request.set(None if outer is Token.MISSING else outer)
        metered = self.metered
        self.metered = self.client = None
        del self._token
        if metered is not None and metered.observed is not None:
            metered.responded()


current_request: ContextVar[RequestSlot | ManualBlock | None] = ContextVar(
    "voight_entry", default=None
)
"""The request or manual block that the current code is part of."""


def request_here() -> MeteredRequest | None:
    """Return the metered request that the current code is part of, or None."""
    slot = current_request.get()
    return slot.metered if isinstance(slot, RequestSlot) else None


def in_manual_block() -> bool:
    """Return whether the current code is inside a ``metered_call()`` block."""
    block = current_request.get()
    return isinstance(block, ManualBlock) and block.open


def resolve_owner(context: TagContext) -> Owner:
    """Return the owner of a call made in *context*; nobody on an error of ours. Never raises."""
    try:
        return context.resolve()
    except Exception as error:
        report_internal_error(error)
        return NOBODY


async def aresolve_owner(context: TagContext) -> Owner:
    """As ``resolve_owner``, awaiting asynchronous getters."""
    try:
        return context.owner() if context.scope is None else await context.aresolve()
    except Exception as error:
        report_internal_error(error)
        return NOBODY


class MeteredRequest:
    """One request to a provider, from its start to the end of its last response."""

    __slots__ = (
        "_responses",
        "asked_for_usage",
        "body",
        "context",
        "endpoint",
        "host",
        "observed",
        "owner",
        "possibly_billed",
        "provider",
        "started",
        "started_at",
        "stream",
        "url",
    )

    def __init__(
        self, endpoint: Endpoint, url: str, body: Any, host: str, provider: str, stream: bool
    ) -> None:
        self.started_at = time.time_ns()
        self.started = time.perf_counter_ns()
        self.endpoint = endpoint
        self.context: TagContext = current_context()
        self.owner = NOBODY
        self.stream = stream
        self.body = body
        self.host = host
        self.provider = provider
        self.asked_for_usage = False
        self.possibly_billed = 0
        self.observed: Observed | None = None
        self.url = url
        self._responses = 0

    def start(self, client: Any = None, options: Any = None) -> None:
        """Call the observers' ``on_call_start``, with the owner as far as known. Never raises."""
        try:
            meter = current_meter()
            if (
                not meter.observers.present
                or self.endpoint.parse is None
                or self.endpoint.job_phase == "poll"
            ):
                return  # not a call of its own: a file, a batch, the polling of a job
            model = self.body.get("model") if isinstance(self.body, Mapping) else None
            self.observed = meter.observers.start(
                CallStart(
                    provider=self.provider,
                    endpoint=self.endpoint.name,
                    requested_model=meter.pseudonymized_text("requested_model", model)
                    if isinstance(model, str)
                    else None,
                    host=self.host,
                    streamed=self.stream,
                    started_at=self.started_at,
                    owner=self.owner,
                    context=self.context,
                    client=client,
                    options=options,
                )
            )
        except Exception as error:
            report_internal_error(error)

    def responded(self) -> None:
        """
        Call the observers' ``on_call_response``. The request has returned or raised. Never raises.

        An observer must leave nothing in the caller's context.
        """
        try:
            if self.observed is not None:
                current_meter().observers.respond(self.observed)
        except Exception as error:
            report_internal_error(error)

    # Complex: plain calls, jobs and polls end here; more functions would cost time at each call.
    def finish(self, summary: ResponseSummary, outcome: str = "ok", **more: Any) -> None:
        """Write the call of one finished response. Never raises."""
        try:
            endpoint, job = self.endpoint, None
            if endpoint.job_phase:
                job = None if summary.job is None else f"{self.provider}/{summary.job}"
                if endpoint.job_phase == "poll" and (
                    job is None or (is_null(summary.usage) and summary.failure is None)
                ):
                    # a response that was complete when it was made, or a job that still runs
                    return
            if summary.failure is not None and outcome == "ok":
                outcome, more["error"] = "error", summary.failure
            body = self.body
            if type(body) is dict or isinstance(body, Mapping):
                requested = body.get("model")
                if endpoint.enrich is not None:
                    summary = endpoint.enrich(summary, body)
            else:
                requested = None
            call = Call(
                call_id=new_call_id() if job is None else job_call_id(job),
                occurred_at=self.started_at // 1000,
                provider=self.provider,
                endpoint=endpoint.name,
                requested_model=requested if isinstance(requested, str) else None,
                model=summary.model,
                host=self.host,
                streamed=self.stream,
                outcome=outcome,
                possibly_billed=self.possibly_billed or None,
                duration=(time.perf_counter_ns() - self.started) // 1000,
                response_id=summary.id,
                job=job,
                service_tier=summary.service_tier,
                raw_usage=usage_text(summary.usage),
                tool_calls=summary.tool_calls,
                finish_reasons=summary.finish_reasons,
                **more,
            )
            meter = current_meter()
            if job is not None:
                if endpoint.job_phase == "submit":
                    self._submit(job)
                else:
                    call.duration = None
                    if summary.created_at is not None:
                        call.occurred_at = summary.created_at * 1_000_000
            named = (
                named_user(body)
                if self.owner.tags.user_id is None and self._may_name_its_user()
                else None
            )
            meter.finish(call, self.context, self.owner, named, self.observed)
        except Exception as error:
            report_internal_error(error)

    def _finish_as_usual(
        self, summary: ResponseSummary, status: int, retries: int, first_event: int | None = None
    ) -> bool:
        """
        Write the call of a whole answer as an ``Answer``, which is written quickly. Never raises.

        Return False, and write nothing, if the call takes a ``Call``: its owner is not known yet,
        an observer sees it, or anything about it is unusual.
        """
        try:
            endpoint, body, meter = self.endpoint, self.body, current_meter()
            if (
                self.owner.tags.user_id is None
                or summary.failure is not None
                or summary.job is not None
                or self.possibly_billed
                or self.observed is not None
                or meter.observers.present
                or endpoint.job_phase == "poll"
                or endpoint.enrich is not None
                or (usage := usage_on_a_line(summary.usage, MAX_USAGE_BYTES)) is None
            ):
                return False
            requested = (
                body.get("model") if type(body) is dict or isinstance(body, Mapping) else None
            )
            meter.finish_answer(
                Answer(
                    self.started_at // 1000,
                    (time.perf_counter_ns() - self.started) // 1000,
                    status,
                    retries + 1,
                    self.provider,
                    endpoint.name,
                    self.host,
                    requested if isinstance(requested, str) else None,
                    summary.model,
                    summary.id,
                    summary.service_tier,
                    usage,
                    None if first_event is None else (first_event - self.started) // 1000,
                    self.stream,
                    summary.tool_calls,
                ),
                self.owner,
                summary.finish_reasons,
            )
        except Exception as error:
            report_internal_error(error)
        return True

    def _may_name_its_user(self) -> bool:
        """
        Return whether the user in the request's body may own the call.

        Within a web request or a job, the body may be a client's own text.
        """
        allowed = current_meter().settings.request_identity
        return self.context.scope is None if allowed is None else allowed

    def fail(self, error: BaseException) -> None:
        """Write the call of a request that raised. Its earlier responses have their own calls."""
        if self._responses or self.endpoint.parse is None or self.endpoint.job_phase == "poll":
            return
        self.note_failed_attempt(error)
        status = getattr(error, "status_code", None)
        self.finish(
            ResponseSummary(),
            "error" if isinstance(error, Exception) else "cancelled",
            error=type(error).__name__,
            http_status=status if isinstance(status, int) else None,
            attempts=_attempts(error),
        )

    def note_failed_attempt(self, error: BaseException | None) -> None:
        """Count a failed attempt as possibly billed if it was sent and got no response."""
        cause = error.__cause__ if error is not None and error.__cause__ is not None else error
        if type(cause).__name__ in _WITHOUT_RESPONSE:
            self.possibly_billed += 1

    # -- whole responses ---------------------------------------------------------------------------

    def body_read(self, body: bytes, status: int, retries: int) -> None:
        """Write the call of a whole response. Never raises."""
        endpoint, summary = self.endpoint, ResponseSummary()
        try:
            if endpoint.parse is not None:
                summary = endpoint.parse(body)
            elif endpoint.parse_jobs is not None:
                self._submit_all(body)
                return
        except msgspec.DecodeError:
            counters["unreadable_responses"] += 1
        except Exception as error:
            report_internal_error(error)
        if endpoint.parse is not None and not self._finish_as_usual(summary, status, retries):
            self.finish(summary, http_status=status, attempts=retries + 1)

    def read_when_closed(self, response: Any, retries: int) -> None:
        """Read a body as the caller reads it, and write its call when it is closed."""
        if self.endpoint.parse_line is not None:
            lines = Lines(response, self._line)
            watch_close(response, lines.done, lines)
            return
        body, status = Body(response), response.status_code

        def closed() -> None:
            if body.ended:
                self.body_read(body.content(), status, retries)
            elif self.endpoint.parse is None:
                pass
            elif body.error is not None:
                self.finish(
                    ResponseSummary(),
                    "error",
                    error=type(body.error).__name__,
                    http_status=status,
                    attempts=retries + 1,
                )
            else:
                self.finish(ResponseSummary(), "aborted", http_status=status, attempts=retries + 1)

        watch_close(response, closed, body)

    # -- streams -----------------------------------------------------------------------------------

    def completion(self, status: int, retries: int) -> StreamCompletion | None:
        """Return the completion of a stream; None if the endpoint's streams cannot be read."""
        if self.endpoint.stream_parser is None:
            return None

        def report(
            parser: StreamParser, outcome: str, error: BaseException | None, first_event: int | None
        ) -> None:
            self.stream_ended(parser, outcome, error, first_event, status, retries)

        return StreamCompletion(self.endpoint.stream_parser(), report, self.asked_for_usage)

    def stream_ended(
        self,
        parser: StreamParser,
        outcome: str,
        error: BaseException | None,
        first_event: int | None,
        status: int,
        retries: int,
    ) -> None:
        """Write the call of a stream, however it ended. Never raises."""
        summary = ResponseSummary()
        output = input_tokens = None
        try:
            summary = parser.summary()
            unreported = usage_text(summary.usage) is None
            output = parser.estimated_output() if outcome != "ok" or unreported else None
            input_tokens = estimate_tokens(self.body) if output is not None and unreported else None
        except Exception as ours:
            report_internal_error(ours)
        if (
            outcome == "ok"
            and output is None
            and error is None
            and parser.failure is None
            and self._finish_as_usual(summary, status, retries, first_event)
        ):
            return
        self.finish(
            summary,
            outcome,
            error=type(error).__name__ if error is not None else parser.failure,
            http_status=status,
            attempts=retries + 1,
            ttft=None if first_event is None else (first_event - self.started) // 1000,
            estimated_input=input_tokens,
            estimated_output=output,
        )

    def read_by_hand(self, body: Body, completion: StreamCompletion) -> None:
        """Parse the body of a stream that the caller has read themselves, and complete it."""
        parser = completion.parser
        for event in body.events():
            parser.feed(event)
            if event.error:
                parser.failure = parser.failure or "error"
        completion.first_event = body.first_part
        if body.error is not None:
            completion.fail(body.error)
        elif body.ended:
            completion.complete()
        else:
            completion.drop()

    # -- jobs --------------------------------------------------------------------------------------

    def _submit(self, job: str, part_of: str | None = None, user: str | None = None) -> None:
        submission = Submission(job=job, submitted_at=self.started_at // 1000, part_of=part_of)
        current_meter().submit(submission, self.context, self.owner, user)

    def _submit_all(self, body: bytes) -> None:
        """Write the batches that were submitted, and link batches to their output files."""
        endpoint, request = self.endpoint, self.body if isinstance(self.body, Mapping) else {}
        assert endpoint.parse_jobs is not None
        identify = self._may_name_its_user()
        for job in endpoint.parse_jobs(body, request):
            name = f"{self.provider}/{job.id}"
            if job.part_of is not None:
                current_meter().link(
                    Submission(
                        job=name,
                        submitted_at=self.started_at // 1000,
                        part_of=f"{self.provider}/{job.part_of}",
                    )
                )
            elif endpoint.job_phase in ("submit", "upload"):
                if endpoint.job_phase == "submit":
                    self._submit(
                        name,
                        f"{self.provider}/{job.requests}" if job.requests is not None else None,
                    )
                for part, user in (
                    job.parts.items() if identify and self.owner.tags.user_id is None else ()
                ):
                    self._submit(f"{name}/{_digest(part)}", name, user)

    def lines_read(self, body: bytes) -> None:
        """
        Read a whole batch output file.

        A large one may take a second, so it is read in a thread of its own. ``flush()`` waits for
        it.
        """
        if len(body) > _MAX_BYTES_ON_CALLER:
            open_calls.read_in_thread(lambda: self._all_lines(body), "voight-batch")
        else:
            self._all_lines(body)

    def _all_lines(self, body: bytes) -> None:
        for line in body.splitlines():
            if line and not self._line(line):
                return

    def _line(self, line: bytes) -> bool:
        """
        Write the call of one line of a batch output file. Never raises.

        Return whether the file is a batch output file at all.
        """
        try:
            assert self.endpoint.parse_line is not None
            summary = self.endpoint.parse_line(line)
            if summary is not None and summary.job is not None:
                batch = self.url.partition("?")[0].split("/")[-2]
                job = f"{self.provider}/{batch}/{_digest(summary.job)}"
                call = Call(
                    call_id=job_call_id(job),
                    occurred_at=self.started_at // 1000,
                    provider=self.provider,
                    endpoint=summary.batch_endpoint or "batch",
                    model=summary.model,
                    host=self.host,
                    http_status=200,
                    outcome="ok" if summary.failure is None else "error",
                    error=summary.failure,
                    response_id=summary.id,
                    job=job,
                    service_tier=summary.service_tier,
                    batch=True,
                    raw_usage=usage_text(summary.usage),
                    tool_calls=summary.tool_calls,
                    finish_reasons=summary.finish_reasons,
                )
                owner = current_meter().owner_of_line(summary.job)
                if owner is not None:
                    current_meter().submit(
                        Submission(job=job, submitted_at=self.started_at // 1000),
                        self.context,
                        owner,
                    )
                current_meter().finish(call, self.context, self.owner if owner is None else owner)
        except NotBatchOutput:
            return False
        except msgspec.DecodeError:
            counters["unreadable_responses"] += 1
        except Exception as error:
            report_internal_error(error)
        return True


def _digest(part: str) -> str:
    """Return a short name for a part of a job. Its own may be long or contain personal data."""
    import hashlib

    return hashlib.blake2b(part.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _attempts(error: BaseException) -> int:
    """Return how often a failed request was sent, from a header of the last attempt."""
    try:
        return 1 + int(error.request.headers["x-stainless-retry-count"])  # type: ignore[attr-defined]
    except Exception:
        return 1
