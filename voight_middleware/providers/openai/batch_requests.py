"""
The requests of a batch of OpenAI, as they are uploaded: whom each of them names to the provider.

Source of the shape: OpenAI API reference, batch, "The request input object".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from voight_middleware.diagnostics import warn_once
from voight_middleware.providers.base import Job, named_user

MAX_FILE = 64 * 1024 * 1024
"""The largest file that is looked at: it takes about a tenth of a second, on the caller's thread."""


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
    """The users that requests name, as read here: no field of a request is taken for them."""


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_file = msgspec.json.Decoder(_File).decode


def uploaded(body: Any, files: Any) -> dict[str, Any]:
    """
    Return what ``read_upload`` needs of a request that uploads a file, without a byte of a prompt.

    Args:
        body: The fields of the request beside the file.
        files: What the SDK sends as files. One that can only be read once is left alone.
    """
    if not is_batch(body):
        return {}
    named: dict[str, str] = {}
    for line in _lines(files):
        try:
            request = _decode_request(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if (user := named_user(msgspec.structs.asdict(request.body))) is not None:
            named[request.custom_id] = user
    return {"parts": _Parts(named)}


def is_batch(body: Any) -> bool:
    """Return whether the fields of an upload say that it is of a batch."""
    return isinstance(body, Mapping) and body.get("purpose") == "batch"


def read_upload(body: bytes, request: Mapping[str, Any]) -> Iterable[Job]:
    """The file that was uploaded, and the users that its requests name."""
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
                warn_once("the users that a batch names are not read: its file has more than 64 MiB; give batch_owner= to configure()")
        elif getattr(content, "seekable", bool)() and getattr(content, "mode", "rb").count("b"):
            begin = content.tell()
            try:
                read = content.read(MAX_FILE + 1)
            finally:
                content.seek(begin)
            yield from _lines([("file", read)])
