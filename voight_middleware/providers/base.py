"""What is taken from a provider's answer: never its text, only what identifies and bills it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol

import msgspec

from voight_middleware.providers.finish_reasons import in_order, note_reasons, only_reason

MAX_USAGE_BYTES = 16_384
"""A usage object beyond this is no usage object."""

NULL = msgspec.Raw(b"null")


class ResponseSummary(msgspec.Struct):
    """The billing side of one answer."""

    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    usage: msgspec.Raw = NULL
    tool_calls: dict[str, int] | None = None
    job: str | None = None
    """The provider's id of what it does later, or did before it was asked: this answer may be seen again."""
    created_at: int | None = None
    """When the job was begun, as the provider says it: seconds since 1970."""
    failure: str | None = None
    """What the provider called its failure: of a job, or of an answer of status 200 that is none."""
    batch_endpoint: str | None = None
    """Of a line of a batch: the dialect of its answer."""
    finish_reasons: tuple[str, ...] | None = None
    """Why the model stopped, in the order of the choices."""


class Job(msgspec.Struct, frozen=True):
    """A batch or its file of answers, as an answer of the provider mentions it."""

    id: str
    part_of: str | None = None
    parts: Mapping[str, str] = {}
    """The user ids that the request named, by part."""
    requests: str | None = None
    """The file that the requests of a batch are in."""


class StreamParser(Protocol):
    """Watches the events of one stream. ``see`` runs for every event: it does the least it can and never raises."""

    done: bool
    """Whether the provider said that the answer is complete."""
    failure: str | None
    """What the provider called its failure, where the stream reported one."""

    def feed(self, event: Any) -> None:
        """Take note of *event*."""
        ...

    def summary(self) -> ResponseSummary:
        """What the provider has reported so far."""
        ...

    def estimated_output(self) -> int | None:
        """Output tokens estimated from what was streamed, where the provider has not reported them."""
        ...


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint of a provider, and how its answers are read. Exactly one of *read*, *jobs* and *lines* is there."""

    name: str
    """The dialect of its usage: ``chat``, ``responses``, …"""
    parse: Callable[[bytes], ResponseSummary] | None = None
    """Reads a whole answer; raises msgspec.DecodeError for one that is none."""
    stream_parser: Callable[[], StreamParser] | None = None
    """Makes the reader of a stream."""
    asks_for_usage: bool = False
    """Whether a stream reports usage only where ``stream_options.include_usage`` is set."""
    enrich: Callable[[ResponseSummary, Mapping[str, Any]], ResponseSummary] | None = None
    """Lays in what only the request says, such as the characters that are to be spoken."""
    job_phase: Literal["", "names", "begins", "tells"] = ""
    """
    Whether its answers may be about a job: one that this request *begins*, one of which it only *tells* how it went, or one that is begun
    later, whose requests it *names*.
    """
    parse_jobs: Callable[[bytes, Mapping[str, Any]], Iterable[Job]] | None = None
    """Reads the batches in an answer to *body*; such a request is no call."""
    parse_line: Callable[[bytes], ResponseSummary | None] | None = None
    """Reads one line of a file of batch answers; None for a line without a billed answer. Raises NotLines for any other file."""


class NotBatchOutput(Exception):
    """A file that is no file of batch answers."""


class Routes:
    """
    The endpoints of one provider, found by the method and the path of a request.

    Args:
        posts: What is posted, by its path: found first, and fast.
        patterns: Method, regular expression of the path, and endpoint of everything else.
        prefix: What a path may begin with besides, where a caller writes the whole URL.
    """

    def __init__(self, posts: Mapping[str, Endpoint], patterns: Iterable[tuple[str, str, Endpoint]] = (), prefix: str = "") -> None:
        self._posts = dict(posts)
        self._prefix = prefix
        self._patterns = [(method, re.compile(pattern), endpoint) for method, pattern, endpoint in patterns]

    def find(self, method: str, url: str) -> Endpoint | None:
        """
        The endpoint of a request, or None.

        Args:
            method: In lower or upper case.
            url: As the SDK has it: mostly a path without the base URL's own, at times the whole of a URL.
        """
        if method in ("post", "POST"):
            found = self._posts.get(url)
            if found is not None:
                return found
        path = _path(url).removeprefix(self._prefix)
        method = method.upper()
        if method == "POST" and path in self._posts:
            return self._posts[path]
        return next((endpoint for verb, pattern, endpoint in self._patterns if verb == method and pattern.fullmatch(path)), None)


def _path(url: str) -> str:
    path = url.partition("?")[0]
    if "://" in path:
        path = path.partition("://")[2].partition("/")[2]
    return "/" + path.strip("/")


_NO_ERRORS = frozenset({b"null", b"{}", b'""', b"[]", b"false", b"0"})


def failure_of(error: msgspec.Raw) -> str | None:
    """
    Return the failure in the ``error`` of an answer of status 200, or None.

    Source: OpenRouter API reference, "Errors": a failure after the request was accepted has status 200.
    """
    return None if error is NULL or bytes(error) in _NO_ERRORS else "error"


class _Choice(msgspec.Struct, gc=False):  # JSON has no cycles, and a tracked object costs the collector's time
    finish_reason: Any = None
    index: Any = None


class _End(msgspec.Struct, gc=False):
    """How an answer says why it ended: OpenAI's, Anthropic's, and that of Bedrock's ``converse``."""

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
    Read a whole answer.

    Raises:
        msgspec.DecodeError: *body* is no JSON object.
    """
    try:
        read = _read_strictly(body)
        reasons = _reasons(read)
        failure = "error" if reasons == _FAILED else failure_of(read.error)
        return ResponseSummary(read.id, read.model, read.service_tier, read.usage, failure=failure, finish_reasons=reasons)
    except msgspec.ValidationError:  # a compatible server's own idea of an id or a tier must not cost the usage
        plain = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        identity, model, tier = (text_or_none(msgspec.json.decode(plain.get(name, NULL))) for name in ("id", "model", "service_tier"))
        try:
            reasons = _reasons(_read_end(body))
        except msgspec.ValidationError:
            reasons = None
        failure = "error" if reasons == _FAILED else failure_of(plain.get("error", NULL))
        return ResponseSummary(identity, model, tier, plain.get("usage", NULL), failure=failure, finish_reasons=reasons)


def _reasons(end: _End) -> tuple[str, ...] | None:
    choices = end.choices
    if not choices:
        return only_reason(end.stop_reason or end.stop)
    if len(choices) == 1:
        return only_reason(choices[0].finish_reason)
    found: dict[int, str | None] = {}
    note_reasons(found, choices)
    return in_order(found)


def with_usage(usage: msgspec.Raw, **more: Any) -> msgspec.Raw:
    """A usage object with what the provider reports, or the request says, beside it."""
    return msgspec.Raw(msgspec.json.encode({**(_decode_plain(usage) or {}), **more}))


_decode_plain = msgspec.json.Decoder(dict[str, Any] | None).decode


def is_null(raw: msgspec.Raw) -> bool:
    """Whether nothing was there."""
    return bytes(raw) == b"null"


def text_or_none(value: object) -> str | None:
    """*value* where it is a text that says something."""
    return value if isinstance(value, str) and value else None


def usage_json(usage: Any) -> msgspec.Raw:
    """The usage JSON of an SDK model as the provider sent it: fields that were not sent are left out."""
    try:
        return msgspec.Raw(usage.__pydantic_serializer__.to_json(usage, exclude_unset=True, warnings=False))
    except AttributeError:  # a plain mapping, or an SDK on pydantic 1
        plain = usage if isinstance(usage, Mapping) else usage.dict(exclude_unset=True)
        return msgspec.Raw(msgspec.json.encode(plain))


def usage_text(usage: msgspec.Raw) -> str | None:
    """*usage* as a call keeps it; None for a missing one."""
    data = bytes(usage)
    if data == b"null" or len(data) > MAX_USAGE_BYTES:
        return None
    return data.decode()


def estimate_tokens(body: Any, limit: int = 200_000) -> int:
    """
    A rough count of the input tokens of a request body: a quarter of the characters of its text, images and files left out.

    Args:
        limit: The most characters that are looked at.
    """
    characters = 0
    stack = (
        [body.get(key) for key in ("messages", "input", "prompt", "system", "instructions", "tools")] if isinstance(body, Mapping) else []
    )
    while stack and characters < limit:
        item = stack.pop()
        if isinstance(item, str):
            characters += 0 if item.startswith("data:") else len(item)
        elif isinstance(item, Mapping):
            stack.extend(value for key, value in item.items() if key not in ("data", "image_url", "file_data"))
        elif isinstance(item, list | tuple):
            stack.extend(item)
    return (characters + 3) // 4


_NAMED_BY = ("safety_identifier", "user", "user_profile_id")


def named_user(body: Any) -> str | None:
    """The user that a request names to the provider: the owner of last resort."""
    if not isinstance(body, Mapping):
        return None
    for name in _NAMED_BY:
        if (user := text_or_none(body.get(name))) is not None:
            return user
    metadata = body.get("metadata")
    return text_or_none(metadata.get("user_id")) if isinstance(metadata, Mapping) else None
