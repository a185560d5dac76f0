"""
Entry: one request to a provider, from its start to the end of its last answer.

An answer that is whole is read from its bytes at once; one that the caller reads by hand, or that comes as server-sent events, is
observed as it passes by. Whatever its end, it becomes one call; the answers of a batch become one call each.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextvars import ContextVar
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
    Endpoint,
    NotBatchOutput,
    ResponseSummary,
    StreamParser,
    estimate_tokens,
    is_null,
    named_user,
    usage_text,
)
from voight_middleware.records.call import Call, Submission, job_call_id, new_call_id

_UNANSWERED = frozenset({"ReadTimeout", "ReadError", "RemoteProtocolError", "TimeoutException", "CancelledError", "Cancelled"})
"""
Errors of httpx, httpx2 and asyncio after which a request may have been worked on, and billed, without an answer. A connection that
was never made, or a request that was not sent to its end, is not among them.
"""
_AT_ONCE_BYTES = 256 * 1024
"""Up to this size a file of batch answers is read on the caller's thread."""


class ManualBlock:
    """Stands in the context while a block of ``metered_call()`` is open: what is sent in there is not metered a second time."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open = True


class RequestSlot:
    """
    Where the context keeps the request that is on its way. It is emptied when the request returns: a pooled connection keeps
    a copy of the context in which it was made, and would keep the prompt with it.
    """

    __slots__ = ("client", "levels", "metered")

    def __init__(self, request: MeteredRequest | None, client: Any = None, level: object = None) -> None:
        self.metered = request
        self.client = client
        self.levels = [level]
        """The methods ``request`` that the request is in, from the client's own to its base class's."""

    def leave(self) -> None:
        """Forget the request."""
        self.metered = self.client = None


current_request: ContextVar[RequestSlot | ManualBlock | None] = ContextVar("voight_entry", default=None)
"""Whose request this is a part of."""


def request_here() -> MeteredRequest | None:
    """Return the metered request that this is a part of; None outside of a request that is metered."""
    here = current_request.get()
    return here.metered if isinstance(here, RequestSlot) else None


def in_manual_block() -> bool:
    """Return whether this is inside a block of ``metered_call()``."""
    here = current_request.get()
    return isinstance(here, ManualBlock) and here.open


class MeteredRequest:
    """One request to a provider, from its start to the end of its last answer."""

    __slots__ = (
        "_of",
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
    )

    def __init__(self, endpoint: Endpoint, url: str, body: Any, host: str, provider: str, stream: bool) -> None:
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
        self._responses = 0
        self._of = url.partition("?")[0].split("/")[-2] if endpoint.parse_line is not None else ""

    def start(self, client: Any = None, options: Any = None) -> None:
        """Show the watchers the call that begins, now that its owner is known as far as it can be. Never raises."""
        try:
            meter = current_meter()
            if not meter.observers.present or self.endpoint.parse is None or self.endpoint.job_phase == "tells":
                return  # what makes no call of its own: a file, a batch, a question how a job is going
            model = self.body.get("model") if isinstance(self.body, Mapping) else None
            self.observed = meter.observers.start(
                CallStart(
                    provider=self.provider,
                    endpoint=self.endpoint.name,
                    requested_model=meter.pseudonymized_text("requested_model", model) if isinstance(model, str) else None,
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
        """The request was answered or has failed: nothing of the watchers may stay in its caller's context. Never raises."""
        try:
            if self.observed is not None:
                current_meter().observers.respond(self.observed)
        except Exception as error:
            report_internal_error(error)

    def finish(self, answer: ResponseSummary, outcome: str = "ok", **more: Any) -> None:
        """One answer has ended. Never raises."""
        try:
            endpoint, job = self.endpoint, None
            if endpoint.job_phase:
                job = None if answer.job is None else f"{self.provider}/{answer.job}"
                if endpoint.job_phase == "tells" and (job is None or (is_null(answer.usage) and answer.failure is None)):
                    return  # of a response that was answered when it was made, or a job that has not ended
            if answer.failure is not None and outcome == "ok":
                outcome, more["error"] = "error", answer.failure
            body = self.body
            if type(body) is dict or isinstance(body, Mapping):
                requested = body.get("model")
                if endpoint.enrich is not None:
                    answer = endpoint.enrich(answer, body)
            else:
                requested = None
            call = Call(
                call_id=new_call_id() if job is None else job_call_id(job),
                occurred_at=self.started_at // 1000,
                provider=self.provider,
                endpoint=endpoint.name,
                requested_model=requested if isinstance(requested, str) else None,
                model=answer.model,
                host=self.host,
                streamed=self.stream,
                outcome=outcome,
                possibly_billed=self.possibly_billed or None,
                duration=(time.perf_counter_ns() - self.started) // 1000,
                response_id=answer.id,
                job=job,
                service_tier=answer.service_tier,
                raw_usage=usage_text(answer.usage),
                tool_calls=answer.tool_calls,
                finish_reasons=answer.finish_reasons,
                **more,
            )
            meter = current_meter()
            if job is not None:
                if endpoint.job_phase == "begins":
                    self._submit(job)
                else:
                    call.duration = None
                    if answer.created_at is not None:
                        call.occurred_at = answer.created_at * 1_000_000
            named = named_user(body) if self.owner.tags.user_id is None and self._may_name_its_user() else None
            meter.finish(call, self.context, self.owner, named, self.observed)
        except Exception as error:
            report_internal_error(error)

    def _may_name_its_user(self) -> bool:
        """Return whether the request's body may say whose call it is: within a web request or a job it may be a client's own text."""
        wanted = current_meter().settings.request_identity
        return self.context.scope is None if wanted is None else wanted

    def fail(self, error: BaseException) -> None:
        """The request raised; answers that it got before are metered already."""
        if self._responses or self.endpoint.parse is None or self.endpoint.job_phase == "tells":
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
        """An attempt has failed: was it sent, and may have been billed?"""
        cause = error.__cause__ if error is not None and error.__cause__ is not None else error
        if type(cause).__name__ in _UNANSWERED:
            self.possibly_billed += 1

    # -- whole answers ---------------------------------------------------------------------------------------------------------

    def body_read(self, body: bytes, status: int, retries: int) -> None:
        """A whole answer is there. Never raises."""
        endpoint, answer = self.endpoint, ResponseSummary()
        try:
            if endpoint.parse is not None:
                answer = endpoint.parse(body)
            elif endpoint.parse_jobs is not None:
                self._submit_all(body)
                return
        except msgspec.DecodeError:
            counters["unreadable_responses"] += 1
        except Exception as error:
            report_internal_error(error)
        if endpoint.parse is not None:
            self.finish(answer, http_status=status, attempts=retries + 1)

    def read_when_closed(self, response: Any, retries: int) -> None:
        """A body that has not been read yet passes by while the caller reads it."""
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
                self.finish(ResponseSummary(), "error", error=type(body.error).__name__, http_status=status, attempts=retries + 1)
            else:
                self.finish(ResponseSummary(), "aborted", http_status=status, attempts=retries + 1)

        watch_close(response, closed, body)

    # -- streams ---------------------------------------------------------------------------------------------------------------

    def completion(self, status: int, retries: int) -> StreamCompletion | None:
        """What a stream reports its end to; None where the endpoint streams nothing that could be read."""
        if self.endpoint.stream_parser is None:
            return None

        def report(reader: StreamParser, outcome: str, error: BaseException | None, first_event: int | None) -> None:
            self.stream_ended(reader, outcome, error, first_event, status, retries)

        return StreamCompletion(self.endpoint.stream_parser(), report, self.asked_for_usage)

    def stream_ended(
        self, reader: StreamParser, outcome: str, error: BaseException | None, first_event: int | None, status: int, retries: int
    ) -> None:
        """A stream has ended, one way or another. Never raises."""
        answer = ResponseSummary()
        output = input_tokens = None
        try:
            answer = reader.summary()
            unreported = usage_text(answer.usage) is None
            output = reader.estimated_output() if outcome != "ok" or unreported else None
            input_tokens = estimate_tokens(self.body) if output is not None and unreported else None
        except Exception as ours:
            report_internal_error(ours)
        self.finish(
            answer,
            outcome,
            error=type(error).__name__ if error is not None else reader.failure,
            http_status=status,
            attempts=retries + 1,
            ttft=None if first_event is None else (first_event - self.started) // 1000,
            estimated_input=input_tokens,
            estimated_output=output,
        )

    def read_by_hand(self, body: Body, completion: StreamCompletion) -> None:
        """A stream's body that the caller has read himself."""
        reader = completion.reader
        for event in body.events():
            reader.feed(event)
            if event.error:
                reader.failure = reader.failure or "error"
        completion.first_event = body.first_part
        if body.error is not None:
            completion.fail(body.error)
        elif body.ended:
            completion.complete()
        else:
            completion.drop()

    # -- jobs ------------------------------------------------------------------------------------------------------------------

    def _submit(self, job: str, part_of: str | None = None, user: str | None = None) -> None:
        submission = Submission(job=job, submitted_at=self.started_at // 1000, part_of=part_of)
        current_meter().submit(submission, self.context, self.owner, user)

    def _submit_all(self, body: bytes) -> None:
        """Batches that were begun, or in which a file of answers was seen."""
        endpoint, request = self.endpoint, self.body if isinstance(self.body, Mapping) else {}
        assert endpoint.parse_jobs is not None
        identify = self._may_name_its_user()
        for job in endpoint.parse_jobs(body, request):
            name = f"{self.provider}/{job.id}"
            if job.part_of is not None:
                current_meter().link(Submission(job=name, submitted_at=self.started_at // 1000, part_of=f"{self.provider}/{job.part_of}"))
            elif endpoint.job_phase in ("begins", "names"):
                if endpoint.job_phase == "begins":
                    self._submit(name, f"{self.provider}/{job.requests}" if job.requests is not None else None)
                for part, user in job.parts.items() if identify and self.owner.tags.user_id is None else ():
                    self._submit(f"{name}/{_digest(part)}", name, user)

    def lines_read(self, body: bytes) -> None:
        """Read a whole file of batch answers; a large one in a thread of its own, as it may take a second. ``flush()`` waits for it."""
        if len(body) > _AT_ONCE_BYTES:
            open_calls.read_in_thread(lambda: self._all_lines(body), "voight-batch")
        else:
            self._all_lines(body)

    def _all_lines(self, body: bytes) -> None:
        for line in body.splitlines():
            if line and not self._line(line):
                return

    def _line(self, line: bytes) -> bool:
        """One line of a file of batch answers; whether the file is one at all. Never raises."""
        try:
            assert self.endpoint.parse_line is not None
            answer = self.endpoint.parse_line(line)
            if answer is not None and answer.job is not None:
                job = f"{self.provider}/{self._of}/{_digest(answer.job)}"
                call = Call(
                    call_id=job_call_id(job),
                    occurred_at=self.started_at // 1000,
                    provider=self.provider,
                    endpoint=answer.batch_endpoint or "batch",
                    model=answer.model,
                    host=self.host,
                    http_status=200,
                    outcome="ok" if answer.failure is None else "error",
                    error=answer.failure,
                    response_id=answer.id,
                    job=job,
                    service_tier=answer.service_tier,
                    batch=True,
                    raw_usage=usage_text(answer.usage),
                    tool_calls=answer.tool_calls,
                    finish_reasons=answer.finish_reasons,
                )
                owner = current_meter().owner_of_line(answer.job)
                if owner is not None:
                    current_meter().submit(Submission(job=job, submitted_at=self.started_at // 1000), self.context, owner)
                current_meter().finish(call, self.context, self.owner if owner is None else owner)
        except NotBatchOutput:
            return False
        except msgspec.DecodeError:
            counters["unreadable_responses"] += 1
        except Exception as error:
            report_internal_error(error)
        return True


def _digest(part: str) -> str:
    """A part of a job by a short name: its own may be long, or say too much."""
    return hashlib.blake2b(part.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _attempts(error: BaseException) -> int:
    """How often a request was sent that failed; the SDK says it in a header of the last one."""
    try:
        return 1 + int(error.request.headers["x-stainless-retry-count"])  # type: ignore[attr-defined]
    except Exception:
        return 1
