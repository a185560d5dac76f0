"""
Parsers of OpenAI's jobs: batches, their output files, and the runs of assistants.

Source of the shapes: OpenAI API reference (batch, "The request output object"; runs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from voight_middleware.diagnostics import report_internal_error
from voight_middleware.providers.base import (
    NULL,
    Endpoint,
    Job,
    NotBatchOutput,
    ResponseSummary,
    StreamParser,
    parse_response,
    text_or_none,
    usage_json,
)
from voight_middleware.providers.openai.batch_requests import read_upload

# -- batches ---------------------------------------------------------------------------------------


class _Batch(msgspec.Struct):
    id: str = ""
    object: str | None = None
    output_file_id: str | None = None
    input_file_id: str | None = None
    data: list[_Batch] | None = None


_decode_batch = msgspec.json.Decoder(_Batch).decode


def parse_batches(body: bytes, _request: Mapping[str, Any]) -> Iterable[Job]:
    """Return the batches in a response, and their output files."""
    decoded = _decode_batch(body)
    for batch in [decoded] if decoded.object == "batch" else decoded.data or ():
        yield Job(batch.id, requests=batch.input_file_id)
        if batch.output_file_id:
            yield Job(batch.output_file_id, part_of=batch.id)


class _LineResponse(msgspec.Struct):
    status_code: int = 0
    body: msgspec.Raw = NULL


class _Line(msgspec.Struct):
    custom_id: str
    response: _LineResponse | None


class _Object(msgspec.Struct):
    object: str | None = None


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_object = msgspec.json.Decoder(_Object).decode
_DIALECTS = {
    "chat.completion": "chat",
    "text_completion": "completions",
    "response": "responses",
    "list": "embeddings",
}


def parse_line(
    line: bytes, parsers: Mapping[str, Callable[[bytes], ResponseSummary]]
) -> ResponseSummary | None:
    """
    Return one line of a batch output file; None for a failed request, which is not billed.

    Args:
        parsers: Parsers of a line's body, by its ``object``; ``parse_response`` for any other.

    Raises:
        NotBatchOutput: The file is not a batch output file.
    """
    try:
        output_line = _decode_line(line)
    except msgspec.DecodeError as error:
        raise NotBatchOutput from error
    response = output_line.response
    if response is None or not 200 <= response.status_code < 300:
        return None
    kind = _decode_object(response.body).object or ""
    summary = parsers.get(kind, parse_response)(bytes(response.body))
    summary.batch_endpoint = _DIALECTS.get(kind, "batch")
    summary.job = output_line.custom_id
    return summary


# -- assistants ------------------------------------------------------------------------------------


class _Run(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    status: str | None = None
    usage: msgspec.Raw = NULL
    created_at: int | None = None


_decode_run = msgspec.json.Decoder(_Run).decode
_FAILED = ("failed", "expired", "cancelled")


def parse_run(body: bytes) -> ResponseSummary:
    """Read a run. It has its usage when it has ended."""
    run = _decode_run(body)
    failure = run.status if run.status in _FAILED else None
    return ResponseSummary(
        text_or_none(run.id),
        run.model,
        None,
        run.usage,
        None,
        text_or_none(run.id),
        run.created_at,
        failure,
    )


class RunParser(StreamParser):
    """A stream of an assistant's events. The run carries the usage of all of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self._run: Any = None

    def feed(self, event: Any) -> None:
        try:
            kind = event.event
            if kind.startswith("thread.run.") and not kind.startswith("thread.run.step."):
                self._run = event.data
                status = event.data.status
                if status in ("completed", "incomplete", "requires_action", *_FAILED):
                    self.done = True
                    self.failure = kind if status in _FAILED else None
            elif kind == "error":
                self.failure = kind
        except Exception as error:
            report_internal_error(error)

    def summary(self) -> ResponseSummary:
        run = self._run
        if run is None:
            return ResponseSummary()
        usage = NULL if run.usage is None else usage_json(run.usage)
        return ResponseSummary(
            run.id, text_or_none(run.model), None, usage, None, run.id, run.created_at, self.failure
        )


_BATCHES = Endpoint(name="batch", parse_jobs=parse_batches)
_NEW_BATCH = Endpoint(name="batch", parse_jobs=parse_batches, job_phase="submit")
_NEW_RUN = Endpoint(name="runs", parse=parse_run, stream_parser=RunParser, job_phase="submit")
_RUN = Endpoint(name="runs", parse=parse_run, stream_parser=RunParser, job_phase="poll")

_UPLOAD = Endpoint(name="batch", parse_jobs=read_upload, job_phase="upload")

POSTS = {"/files": _UPLOAD, "/batches": _NEW_BATCH, "/threads/runs": _NEW_RUN}
PATTERNS = [
    ("GET", r"/batches(?:/[^/]+)?", _BATCHES),
    ("POST", r"/batches/[^/]+/cancel", _BATCHES),
    ("POST", r"/threads/[^/]+/runs", _NEW_RUN),
    ("GET", r"/threads/[^/]+/runs/[^/]+", _RUN),
    ("POST", r"/threads/[^/]+/runs/[^/]+/(?:cancel|submit_tool_outputs)", _RUN),
]
