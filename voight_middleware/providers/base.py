"""The parts of a provider's response that identify and bill it. Its text is never kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec

from voight_middleware.lazy import lazy_pattern
from voight_middleware.providers.finish_reasons import in_order, note_reasons, only_reason

MAX_USAGE_BYTES = 16_384
"""A larger JSON object is not a usage object."""

NULL = msgspec.Raw(b"null")


class ResponseSummary(msgspec.Struct, gc=False):
    """The billed facts of one response."""

    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    usage: msgspec.Raw = NULL
    tool_calls: dict[str, int] | None = None
    job: str | None = None
    """The provider's id of a job, whose response may be seen again."""
    created_at: int | None = None
    """When the job was submitted, as the provider reports it: seconds since 1970."""
    failure: str | None = None
    """The provider's name for a failure, of a job or in a response of status 200."""
    batch_endpoint: str | None = None
    """The dialect of the response in a line of a batch."""
    finish_reasons: tuple[str, ...] | None = None
    """Why the model stopped, in the order of the choices."""


class Job(msgspec.Struct, frozen=True):
    """A batch or its output file, as a response of the provider mentions it."""

    id: str
    part_of: str | None = None
    parts: Mapping[str, str] = {}
    """The user ids that the request named, by part."""
    requests: str | None = None
    """The file that contains the requests of a batch."""


class StreamParser(ABC):
    """Reads the events of one stream."""

    def __init__(self) -> None:
        self.done = False
        """Whether the provider reported that the response is complete."""
        self.failure: str | None = None
        """The provider's name for a failure, if the stream reported one."""
        self._characters = 0
        """Characters of output so far."""

    @abstractmethod
    def feed(self, event: Any) -> None:
        """Read one event. It runs for every event, so it must do little, and it never raises."""

    @abstractmethod
    def summary(self) -> ResponseSummary:
        """Return what the provider has reported so far."""

    def estimated_output(self) -> int | None:
        """Return an estimate of the output tokens, or None if the provider reported them."""
        return None

    def _tokens_of_text(self) -> int:
        """Estimate the output tokens: a quarter of the characters."""
        return (self._characters + 3) // 4


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """
    One endpoint of a provider, and how its responses are read.

    Exactly one of *parse*, *parse_jobs* and *parse_line* is set.
    """

    name: str
    """The dialect of its usage: ``chat``, ``responses``, …"""
    parse: Callable[[bytes], ResponseSummary] | None = None
    """Reads a whole response. Raises msgspec.DecodeError if the body is not one."""
    stream_parser: Callable[[], StreamParser] | None = None
    """Makes the parser of a stream."""
    asks_for_usage: bool = False
    """Whether a stream reports usage only if ``stream_options.include_usage`` is set."""
    enrich: Callable[[ResponseSummary, Mapping[str, Any]], ResponseSummary] | None = None
    """Adds facts that only the request contains, such as the number of characters to be spoken."""
    job_phase: Literal["", "upload", "submit", "poll"] = ""
    """
    The part of the request in a job's life, if its responses may be about a job.

    A request may *upload* the requests of a job that is submitted later, *submit* a job, or *poll*
    one.
    """
    parse_jobs: Callable[[bytes, Mapping[str, Any]], Iterable[Job]] | None = None
    """Reads the batches in a response to *body*. Such a request is not a call."""
    parse_line: Callable[[bytes], ResponseSummary | None] | None = None
    """
    Reads one line of a batch output file. Returns None for a line without a billed response.

    Raises NotBatchOutput for any other file.
    """


class NotBatchOutput(Exception):
    """The file is not a batch output file."""


class Routes:
    """
    The endpoints of one provider, by the method and the path of a request.

    Args:
        posts: Endpoints of POST requests by exact path. They are looked up first, and fast.
        patterns: Method, regular expression of the path, and endpoint, for all others.
        prefix: An optional start of the path, for callers who write the whole URL.
    """

    def __init__(
        self,
        posts: Mapping[str, Endpoint],
        patterns: Iterable[tuple[str, str, Endpoint]] = (),
        prefix: str = "",
    ) -> None:
        self._posts = dict(posts)
        self._prefix = prefix
        self._patterns = [
            (method, lazy_pattern(pattern), endpoint) for method, pattern, endpoint in patterns
        ]

    def find(self, method: str, url: str) -> Endpoint | None:
        """
        Return the endpoint of a request, or None.

        Args:
            method: In lower or upper case.
            url: As the SDK has it: mostly a path without the base URL's own, sometimes a whole URL.
        """
        if method in ("post", "POST"):
            endpoint = self._posts.get(url)
            if endpoint is not None:
                return endpoint
        path = _path(url).removeprefix(self._prefix)
        method = method.upper()
        if method == "POST" and path in self._posts:
            return self._posts[path]
        return next(
            (
                endpoint
                for verb, pattern, endpoint in self._patterns
                if verb == method and pattern.fullmatch(path)
            ),
            None,
        )


def _path(url: str) -> str:
    path = url.partition("?")[0]
    if "://" in path:
        path = path.partition("://")[2].partition("/")[2]
    return "/" + path.strip("/")


_NO_ERRORS = frozenset({b"null", b"{}", b'""', b"[]", b"false", b"0"})


def failure_of(error: msgspec.Raw) -> str | None:
    """
    Return the failure in the ``error`` of a response of status 200, or None.

    Source: OpenRouter API reference, "Errors": a failure after the request was accepted has status
    200.
    """
    return None if error is NULL or bytes(error) in _NO_ERRORS else "error"


# JSON has no cycles, and the garbage collector would spend time on a tracked object
class _Choice(msgspec.Struct, gc=False):
    finish_reason: Any = None
    index: Any = None


class _End(msgspec.Struct, gc=False):
    """The finish reason's fields: OpenAI's, Anthropic's, and those of Bedrock's ``converse``."""

    choices: list[_Choice] | None = None
    stop_reason: Any = None
    stop: Any = msgspec.field(name="stopReason", default=None)


class _Body(_End, gc=False):
    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    usage: msgspec.Raw = NULL
    error: msgspec.Raw = NULL


_FAILED = ("error",)
_read_strictly = msgspec.json.Decoder(_Body).decode
_read_end = msgspec.json.Decoder(_End).decode


def parse_response(body: bytes) -> ResponseSummary:
    """
    Read a whole response.

    Raises:
        msgspec.DecodeError: *body* is not a JSON object.
    """
    try:
        fields = _read_strictly(body)
        reasons = _reasons(fields)
        failure = "error" if reasons == _FAILED else failure_of(fields.error)
        return ResponseSummary(
            fields.id,
            fields.model,
            fields.service_tier,
            fields.usage,
            failure=failure,
            finish_reasons=reasons,
        )
    except msgspec.ValidationError:
        # the usage must not be lost to a compatible server's odd id or tier
        plain = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        identity, model, tier = (
            text_or_none(msgspec.json.decode(plain.get(name, NULL)))
            for name in ("id", "model", "service_tier")
        )
        try:
            reasons = _reasons(_read_end(body))
        except msgspec.ValidationError:
            reasons = None
        failure = "error" if reasons == _FAILED else failure_of(plain.get("error", NULL))
        return ResponseSummary(
            identity, model, tier, plain.get("usage", NULL), failure=failure, finish_reasons=reasons
        )


def _reasons(end: _End) -> tuple[str, ...] | None:
    choices = end.choices
    if not choices:
        return only_reason(end.stop_reason or end.stop)
    if len(choices) == 1:
        return only_reason(choices[0].finish_reason)
    noted: dict[int, str | None] = {}
    note_reasons(noted, choices)
    return in_order(noted)


def with_usage(usage: msgspec.Raw, **more: Any) -> msgspec.Raw:
    """Return a usage object with more fields, from the response or the request."""
    return msgspec.Raw(msgspec.json.encode({**(_decode_plain(usage) or {}), **more}))


_decode_plain = msgspec.json.Decoder(dict[str, Any] | None).decode


def is_null(raw: msgspec.Raw) -> bool:
    """Return whether a field was missing or null."""
    return bytes(raw) == b"null"


def text_or_none(value: object) -> str | None:
    """Return *value* if it is a string that is not empty, else None."""
    return value if isinstance(value, str) and value else None


def usage_json(usage: Any) -> msgspec.Raw:
    """Return an SDK model's usage JSON as the provider sent it, without unset fields."""
    try:
        return msgspec.Raw(
            usage.__pydantic_serializer__.to_json(usage, exclude_unset=True, warnings=False)
        )
    except AttributeError:  # a plain mapping, or an SDK on pydantic 1
        plain = usage if isinstance(usage, Mapping) else usage.dict(exclude_unset=True)
        return msgspec.Raw(msgspec.json.encode(plain))


def usage_text(usage: msgspec.Raw) -> str | None:
    """Return *usage* as a call keeps it; None if it is missing or too large."""
    data = bytes(usage)
    if data == b"null" or len(data) > MAX_USAGE_BYTES:
        return None
    return data.decode()


def estimate_tokens(body: Any, limit: int = 200_000) -> int:
    """
    Estimate the input tokens of a request body: a quarter of the characters of its text.

    Images and files are skipped.

    Args:
        limit: The maximum number of characters that are counted.
    """
    characters = 0
    stack = (
        [
            body.get(key)
            for key in ("messages", "input", "prompt", "system", "instructions", "tools")
        ]
        if isinstance(body, Mapping)
        else []
    )
    while stack and characters < limit:
        item = stack.pop()
        if isinstance(item, str):
            characters += 0 if item.startswith("data:") else len(item)
        elif isinstance(item, Mapping):
            stack.extend(
                value
                for key, value in item.items()
                if key not in ("data", "image_url", "file_data")
            )
        elif isinstance(item, list | tuple):
            stack.extend(item)
    return (characters + 3) // 4


_NAMED_BY = ("safety_identifier", "user", "user_profile_id")


def named_user(body: Any) -> str | None:
    """Return the user that a request names to the provider: the owner of last resort."""
    if not isinstance(body, Mapping):
        return None
    for name in _NAMED_BY:
        if (user := text_or_none(body.get(name))) is not None:
            return user
    metadata = body.get("metadata")
    return text_or_none(metadata.get("user_id")) if isinstance(metadata, Mapping) else None
