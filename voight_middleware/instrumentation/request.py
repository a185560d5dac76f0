"""
Entry: one request to a provider, from its entry to the end of its last answer.

An answer that is whole is read from its bytes at once; one that the caller reads by hand, or that comes as server-sent events, is
watched as it passes by. Whatever its end, it becomes one call; the answers of a batch become one call each.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import msgspec

from voight_middleware.context.context import NOBODY, Frame, current_frame
from voight_middleware.diagnostics import counters, report_internal_error
from voight_middleware.instrumentation.bodies import Body, Lines
from voight_middleware.instrumentation.streams import Ending, watch_close
from voight_middleware.pipeline import open_calls
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.pipeline.observers import Beginning, Watched
from voight_middleware.providers.base import Answer, Endpoint, NotLines, StreamReader, estimate_tokens, is_null, kept, named_user
from voight_middleware.records.call import Call, Submission, job_call_id, new_call_id

_UNANSWERED = frozenset({"ReadTimeout", "ReadError", "RemoteProtocolError", "TimeoutException", "CancelledError", "Cancelled"})
"""
Errors of httpx, httpx2 and asyncio after which a request may have been worked on, and billed, without an answer. A connection that
was never made, or a request that was not sent to its end, is not among them.
"""
_AT_ONCE_BYTES = 256 * 1024
"""Up to this size a file of batch answers is read on the caller's thread."""


class ByHand:
    """Stands in the context while a block of ``metered_call()`` is open: what is sent in there is not metered a second time."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open = True


class Place:
    """
    Where the context keeps the entry of a request that is on its way. It is emptied when the request returns: a pooled connection keeps
    a copy of the context in which it was made, and would keep the prompt with it.
    """

    __slots__ = ("client", "entry", "levels")

    def __init__(self, entry: Entry | None, client: Any = None, level: object = None) -> None:
        self.entry = entry
        self.client = client
        self.levels = [level]
        """The methods ``request`` that the request is in, from the client's own to its base class's."""

    def leave(self) -> None:
        """Forget the request."""
        self.entry = self.client = None


current_entry: ContextVar[Place | ByHand | None] = ContextVar("voight_entry", default=None)
"""Whose request this is a part of."""


def entry_here() -> Entry | None:
    """Return the entry whose request this is a part of; None outside of a request that is metered."""
    here = current_entry.get()
    return here.entry if isinstance(here, Place) else None


def by_hand_here() -> bool:
    """Return whether this is inside a block of ``metered_call()``."""
    here = current_entry.get()
    return isinstance(here, ByHand) and here.open


class Entry:
    """One request to a provider, from its entry to the end of its last answer."""

    __slots__ = (
        "_answers",
        "_of",
        "asked_for_usage",
        "body",
        "endpoint",
        "frame",
        "host",
        "owner",
        "possibly_billed",
        "provider",
        "started",
        "started_at",
        "stream",
        "watched",
    )

    def __init__(self, endpoint: Endpoint, url: str, body: Any, host: str, provider: str, stream: bool) -> None:
        self.started_at = time.time_ns()
        self.started = time.perf_counter_ns()
        self.endpoint = endpoint
        self.frame: Frame = current_frame()
        self.owner = NOBODY
        self.stream = stream
        self.body = body
        self.host = host
        self.provider = provider
        self.asked_for_usage = False
        self.possibly_billed = 0
        self.watched: Watched | None = None
        self._answers = 0
        self._of = url.partition("?")[0].split("/")[-2] if endpoint.lines is not None else ""

    def begin(self, client: Any = None, options: Any = None) -> None:
        """Show the watchers the call that begins, now that its owner is known as far as it can be. Never raises."""
        try:
            meter = current_meter()
            if not meter.watchers.present or self.endpoint.read is None or self.endpoint.later == "tells":
                return  # what makes no call of its own: a file, a batch, a question how a job is going
            model = self.body.get("model") if isinstance(self.body, Mapping) else None
            self.watched = meter.watchers.begin(
                Beginning(
                    provider=self.provider,
                    endpoint=self.endpoint.name,
                    requested_model=meter.guarded_text("requested_model", model) if isinstance(model, str) else None,
                    host=self.host,
                    streamed=self.stream,
                    started_at=self.started_at,
                    owner=self.owner,
                    frame=self.frame,
                    client=client,
                    options=options,
                )
            )
        except Exception as error:
            report_internal_error(error)

    def left(self) -> None:
        """The request was answered or has failed: nothing of the watchers may stay in its caller's context. Never raises."""
        try:
            if self.watched is not None:
                current_meter().watchers.left(self.watched)
        except Exception as error:
            report_internal_error(error)

    def answered(self, answer: Answer, outcome: str = "ok", **more: Any) -> None:
        """One answer has ended. Never raises."""
        try:
            endpoint, job = self.endpoint, None
            if endpoint.later:
                job = None if answer.job is None else f"{self.provider}/{answer.job}"
                if endpoint.later == "tells" and (job is None or (is_null(answer.usage) and answer.failure is None)):
                    return  # of a response that was answered when it was made, or a job that has not ended
            if answer.failure is not None and outcome == "ok":
                outcome, more["error"] = "error", answer.failure
            body = self.body
            if type(body) is dict or isinstance(body, Mapping):
                requested = body.get("model")
                if endpoint.complete is not None:
                    answer = endpoint.complete(answer, body)
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
                raw_usage=kept(answer.usage),
                tool_calls=answer.tool_calls,
                finish_reasons=answer.finish_reasons,
                **more,
            )
            meter = current_meter()
            if job is not None:
                if endpoint.later == "begins":
                    self._submit(job)
                else:
                    call.duration = None
                    if answer.created_at is not None:
                        call.occurred_at = answer.created_at * 1_000_000
            named = named_user(body) if self.owner.tags.user_id is None and self._may_name_its_user() else None
            meter.finish(call, self.frame, self.owner, named, self.watched)
        except Exception as error:
            report_internal_error(error)

    def _may_name_its_user(self) -> bool:
        """Return whether the request's body may say whose call it is: within a web request or a job it may be a client's own text."""
        wanted = current_meter().settings.request_identity
        return self.frame.scope is None if wanted is None else wanted

    def failed(self, error: BaseException) -> None:
        """The request raised; answers that it got before are metered already."""
        if self._answers or self.endpoint.read is None or self.endpoint.later == "tells":
            return
        self.unanswered(error)
        status = getattr(error, "status_code", None)
        self.answered(
            Answer(),
            "error" if isinstance(error, Exception) else "cancelled",
            error=type(error).__name__,
            http_status=status if isinstance(status, int) else None,
            attempts=_attempts(error),
        )

    def unanswered(self, error: BaseException | None) -> None:
        """An attempt has failed: was it sent, and may have been billed?"""
        cause = error.__cause__ if error is not None and error.__cause__ is not None else error
        if type(cause).__name__ in _UNANSWERED:
            self.possibly_billed += 1

    # -- whole answers ---------------------------------------------------------------------------------------------------------

    def body_read(self, body: bytes, status: int, retries: int) -> None:
        """A whole answer is there. Never raises."""
        endpoint, answer = self.endpoint, Answer()
        try:
            if endpoint.read is not None:
                answer = endpoint.read(body)
            elif endpoint.jobs is not None:
                self._submit_all(body)
                return
        except msgspec.DecodeError:
            counters["unreadable_responses"] += 1
        except Exception as error:
            report_internal_error(error)
        if endpoint.read is not None:
            self.answered(answer, http_status=status, attempts=retries + 1)

    def read_when_closed(self, response: Any, retries: int) -> None:
        """A body that has not been read yet passes by while the caller reads it."""
        if self.endpoint.lines is not None:
            lines = Lines(response, self._line)
            watch_close(response, lines.done, lines)
            return
        body, status = Body(response), response.status_code

        def closed() -> None:
            if body.ended:
                self.body_read(body.content(), status, retries)
            elif self.endpoint.read is None:
                pass
            elif body.error is not None:
                self.answered(Answer(), "error", error=type(body.error).__name__, http_status=status, attempts=retries + 1)
            else:
                self.answered(Answer(), "aborted", http_status=status, attempts=retries + 1)

        watch_close(response, closed, body)

    # -- streams ---------------------------------------------------------------------------------------------------------------

    def ending(self, status: int, retries: int) -> Ending | None:
        """What a stream reports its end to; None where the endpoint streams nothing that could be read."""
        if self.endpoint.reader is None:
            return None

        def report(reader: StreamReader, outcome: str, error: BaseException | None, first_event: int | None) -> None:
            self.stream_ended(reader, outcome, error, first_event, status, retries)

        return Ending(self.endpoint.reader(), report, self.asked_for_usage)

    def stream_ended(
        self, reader: StreamReader, outcome: str, error: BaseException | None, first_event: int | None, status: int, retries: int
    ) -> None:
        """A stream has ended, one way or another. Never raises."""
        answer = Answer()
        output = input_tokens = None
        try:
            answer = reader.answer()
            unreported = kept(answer.usage) is None
            output = reader.estimated_output() if outcome != "ok" or unreported else None
            input_tokens = estimate_tokens(self.body) if output is not None and unreported else None
        except Exception as ours:
            report_internal_error(ours)
        self.answered(
            answer,
            outcome,
            error=type(error).__name__ if error is not None else reader.failure,
            http_status=status,
            attempts=retries + 1,
            ttft=None if first_event is None else (first_event - self.started) // 1000,
            estimated_input=input_tokens,
            estimated_output=output,
        )

    def read_by_hand(self, body: Body, ending: Ending) -> None:
        """A stream's body that the caller has read himself."""
        reader = ending.reader
        for event in body.events():
            reader.see(event)
            if event.error:
                reader.failure = reader.failure or "error"
        ending.first_event = body.first_part
        if body.error is not None:
            ending.failed(body.error)
        elif body.ended:
            ending.exhausted()
        else:
            ending.dropped()

    # -- jobs ------------------------------------------------------------------------------------------------------------------

    def _submit(self, job: str, part_of: str | None = None, user: str | None = None) -> None:
        submission = Submission(job=job, submitted_at=self.started_at // 1000, part_of=part_of)
        current_meter().submit(submission, self.frame, self.owner, user)

    def _submit_all(self, body: bytes) -> None:
        """Batches that were begun, or in which a file of answers was seen."""
        endpoint, request = self.endpoint, self.body if isinstance(self.body, Mapping) else {}
        assert endpoint.jobs is not None
        identify = self._may_name_its_user()
        for job in endpoint.jobs(body, request):
            name = f"{self.provider}/{job.id}"
            if job.part_of is not None:
                current_meter().link(Submission(job=name, submitted_at=self.started_at // 1000, part_of=f"{self.provider}/{job.part_of}"))
            elif endpoint.later in ("begins", "names"):
                if endpoint.later == "begins":
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
            assert self.endpoint.lines is not None
            answer = self.endpoint.lines(line)
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
                    raw_usage=kept(answer.usage),
                    tool_calls=answer.tool_calls,
                    finish_reasons=answer.finish_reasons,
                )
                owner = current_meter().owner_of_line(answer.job)
                if owner is not None:
                    current_meter().submit(Submission(job=job, submitted_at=self.started_at // 1000), self.frame, owner)
                current_meter().finish(call, self.frame, self.owner if owner is None else owner)
        except NotLines:
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
