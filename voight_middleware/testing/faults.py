"""
The faults that a request asks for: its ``x-loopback-…`` headers, or the same in brackets in its
prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from voight_middleware.testing.endpoints.errors import Refusal
from voight_middleware.testing.fake_data import Options

_USER = re.compile(r"\[user:([^\]]+)\]")
_IN_PROMPT = re.compile(r"\[(x-loopback-[a-z-]+): *([^\]]+)\]")
_MESSAGES = {
    401: "Incorrect API key provided.",
    429: (
        "Rate limit reached for requests per min (RPM): Limit 500, Used 500, Requested 1. Please "
        "try again in 1ms."
    ),
    500: "The server had an error while processing your request. Sorry about that!",
    503: "The engine is currently overloaded, please try again later.",
    529: "Overloaded",
}
_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


class Faults(
    msgspec.Struct, frozen=True, rename=lambda name: f"x-loopback-{name.replace('_', '-')}"
):
    """The faults of one request. The table in ``testing.provider`` explains them."""

    status: int | None = None
    status_times: int | None = None
    key: str = ""
    delay_ms: float = 0
    chunk_delay_ms: float = 0
    chunks: int = 12
    cut_after: int | None = None
    end_after: int | None = None
    no_usage: Literal[0, 1] = 0
    usage: str | None = None
    reject: str | None = None
    polls: int | None = None
    result: Literal["canceled", "expired"] | None = None
    encoding: Literal["gzip"] | None = None

    @property
    def options(self) -> Options:
        """The options for the endpoint."""
        usage = None if self.usage is None else msgspec.json.decode(self.usage)
        return Options(self.chunks, usage, bool(self.no_usage), self.polls)

    @property
    def refusal(self) -> Refusal:
        """The error of the requested status."""
        status = self.status or 500
        return Refusal(
            status,
            _MESSAGES.get(status, "The request failed."),
            code=_CODES.get(status),
            headers={"retry-after-ms": "1"},
        )


def read_faults(headers: Mapping[str, str], prompt: Iterable[str]) -> Faults:
    """
    Return the faults of one request.

    Raises:
        Refusal: A fault is unknown, or cannot be read.
    """
    values = {name: value for name, value in headers.items() if name.startswith("x-loopback-")}
    values |= {name: value for text in prompt for name, value in _IN_PROMPT.findall(text)}
    if unknown := values.keys() - set(Faults.__struct_encode_fields__):
        raise Refusal(400, f"the loopback provider does not know {', '.join(sorted(unknown))}")
    try:
        if "x-loopback-usage" in values:
            msgspec.json.decode(values["x-loopback-usage"])
        return msgspec.convert(values, Faults, strict=False)
    except msgspec.MsgspecError as error:
        raise Refusal(400, f"a header of the loopback provider cannot be read: {error}") from error


def marked_user(prompt: Iterable[str]) -> str | None:
    """Return the user of the first ``[user:ID]`` in the prompt."""
    return next((match[1] for text in prompt if (match := _USER.search(text))), None)
