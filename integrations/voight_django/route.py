"""The route of a request: its method, and the path template matched by the URL resolver."""

from __future__ import annotations

import re

from django.http import HttpRequest

_GROUP = re.compile(r"\((?:\?P<(?P<name>\w+)>|(?P<special>\?[^P]))?")


def route_of(request: HttpRequest) -> str | None:
    """
    Return the route, such as ``POST /chats/<int:pk>/``, with the application's mount prefix. None
    before the URL is resolved.
    """
    match = request.resolver_match
    if match is None:
        return None
    template = match.route or ""
    if "^" in template or "(?" in template or template.endswith(("$", r"\Z")):
        template = _readable(template)
    prefix = request.META.get("SCRIPT_NAME") or ""
    return f"{request.method} {prefix.rstrip('/')}/{template.removeprefix('/')}"


def _readable(pattern: str) -> str:
    """Return a regular expression as a template: ``^chats/(?P<pk>[0-9]+)/$`` is ``chats/<pk>/``."""
    parts: list[str] = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        if character == "\\":
            escaped = pattern[position + 1 : position + 2]
            parts.append(
                "" if escaped in "AZzbB" else escaped if not escaped.isalnum() else f"\\{escaped}"
            )
            position += 2
        elif character == "(" and (group := _GROUP.match(pattern, position)) is not None:
            position = _end_of_group(pattern, group.end())
            inner = pattern[group.end() : position - 1]
            if group["special"] is None:
                parts.append(f"<{group['name'] or 'var'}>")
            elif group["special"] == "?:":
                parts.append("<var>" if "|" in inner else _readable(inner))
        else:
            parts.append("" if character in "^$?*+" else character)
            position += 1
    return "".join(parts)


def _end_of_group(pattern: str, position: int) -> int:
    """Return the position after the closing bracket of the group at *position*."""
    depth, in_class = 1, False
    while position < len(pattern) and depth:
        character = pattern[position]
        if character == "\\":
            position += 1
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        else:
            depth += {"(": 1, ")": -1}.get(character, 0)
        position += 1
    return position
