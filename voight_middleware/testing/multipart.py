"""Convert a multipart form to JSON. The openai SDK sends such a form if a request has files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from voight_middleware.testing.fake_data import Json

_NAME = re.compile(r'\bname="([^"]*)"')
_FILENAME = re.compile(r'\bfilename="([^"]*)"')
_FLAGS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a form."""

    name: str
    data: bytes


def read_form(content_type: str, body: bytes) -> Json:
    """Return the fields by name: ``a[]`` is a list, ``a[b]`` an object, and a number a string."""
    boundary = content_type.partition("boundary=")[2].partition(";")[0].strip('" ').encode()
    form: Json = {}
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").removesuffix(b"\r\n").partition(b"\r\n\r\n")
        disposition = head.decode()
        name, filename = _NAME.search(disposition), _FILENAME.search(disposition)
        if name is not None:
            text = "" if filename else content.decode()
            _put(
                form, name[1], Upload(filename[1], content) if filename else _FLAGS.get(text, text)
            )
    return form


def _put(form: Json, name: str, value: Any) -> None:
    outer, bracket, inner = name.removesuffix("]").partition("[")
    if not bracket:
        form[outer] = value
    elif inner:
        form.setdefault(outer, {})[inner] = value
    else:
        form.setdefault(outer, []).append(value)
