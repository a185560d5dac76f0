"""
The requests of an OpenAI batch, as they are uploaded, and the users that they name to the provider.

Source of the shape: OpenAI API reference, batch, "The request input object".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from voight_middleware.diagnostics import warn_once
from voight_middleware.providers.base import Job, named_user

MAX_FILE = 64 * 1024 * 1024
"""The maximum size of a file that is read, which takes about 0.1 seconds on the caller's thread."""


class _Named(msgspec.Struct, frozen=True):
    safety_identifier: Any = None
    user: Any = None
    metadata: Any = None


class _Request(msgspec.Struct):
    custom_id: str
    body: _Named = _Named()


class _File(msgspec.Struct):
    id: str


class _Parts(dict[str, str]):
    """The users that requests name, as read here. No field of a request is mistaken for them."""


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_file = msgspec.json.Decoder(_File).decode


def uploaded(body: Any, files: Any) -> dict[str, Any]:
    """
    Return the parts of an upload that ``read_upload`` needs, without a byte of a prompt.

    Args:
        body: The fields of the request beside the file.
        files: The files as the SDK sends them. A file that can only be read once is skipped.
    """
    if not is_batch(body):
        return {}
    users: dict[str, str] = {}
    for line in _lines(files):
        try:
            request = _decode_request(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if (user := named_user(msgspec.structs.asdict(request.body))) is not None:
            users[request.custom_id] = user
    return {"parts": _Parts(users)}


def is_batch(body: Any) -> bool:
    """Return whether an upload is for a batch, by its fields."""
    return isinstance(body, Mapping) and body.get("purpose") == "batch"


def read_upload(body: bytes, request: Mapping[str, Any]) -> Iterable[Job]:
    """Return the file that was uploaded, with the users that its requests name."""
    parts = request.get("parts")
    return [Job(_decode_file(body).id, parts=parts)] if isinstance(parts, _Parts) and parts else []


def _lines(files: Any) -> Iterable[bytes]:
    pairs = files.items() if isinstance(files, Mapping) else files or ()
    for _, file in pairs:
        content = file[1] if isinstance(file, tuple) else file
        if isinstance(content, str):
            content = content.encode()
        if isinstance(content, bytes | bytearray):
            if len(content) <= MAX_FILE:
                yield from bytes(content).splitlines()
            else:
                warn_once(
                    "the users that a batch names are not read: its file has more than 64 MiB; "
                    "pass batch_owner= to configure()"
                )
        elif getattr(content, "seekable", bool)() and getattr(content, "mode", "rb").count("b"):
            position = content.tell()
            try:
                text = content.read(MAX_FILE + 1)
            finally:
                content.seek(position)
            yield from _lines([("file", text)])
