"""
Headers: the tags of whoever has caused a request, carried to the next service of our own.

``voight-tags: user_id=u_7,plan=pro;e=1763748000;k=v1;s=<signature>``. Pairs as in W3C Baggage (keys and percent-encoded values), in a
header of our own, as baggage is handed on to anybody: ``e`` is the second since 1970 (UTC) at which it expires, ``k`` the version of the
key, ``s`` HMAC-SHA256 over all that stands before it. Route and release are not carried: a service has its own.
"""

from __future__ import annotations

import functools
import hmac
import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Collection, MutableMapping
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from voight_middleware.config.keys import PseudonymKey
from voight_middleware.context.context import current_context
from voight_middleware.diagnostics import counters, report_internal_error, warn_once
from voight_middleware.middleware.getters import Getter
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.records.tags import NO_TAGS, Tags, make_tags

HEADER = "voight-tags"
MAX_AGE = 60.0
"""How many seconds a header is good for."""
CLOCK_SKEW = 30.0
"""By how many seconds the clocks of two services may differ."""
MAX_CHARACTERS = 4096
"""How long a header is at most. Extra keys are left out of a longer one, then all but the user; a longer one is not read."""

_NAMES = ("user_id", "plan", "tenant_id", "session_id")
_SHORT = ("user", "tenant", "session")
_HOST = re.compile(r"\.?[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?|[0-9a-f:.]*:[0-9a-f:.]*")
_UNCLEAR = re.compile(r"[\x00-\x20\x7f\\]")
_FORM = re.compile(r"(?P<signed>(?P<pairs>[!-~]+);e=(?P<expires>[0-9]{1,12});k=(?P<key>v[0-9]{1,4}));s=(?P<signature>[A-Za-z0-9_-]{43})")
_PAIR = re.compile(r"([A-Za-z_][A-Za-z0-9_.\-]{0,63})=([A-Za-z0-9_.~%-]+)")

Headers = TypeVar("Headers", bound=MutableMapping[str, Any])


def inject_headers(headers: Headers, *, url: object, hosts: Collection[str]) -> Headers:
    """
    Put the signed tags of here and now into the headers of a request to a service of our own; answers *headers*. Never raises.

    Call it for every request that a client sends, those that a redirect causes included: for a host that is not named, and where there are
    no tags or no key, a ``voight-tags`` header that is there already is taken away. With httpx::

        def tags_along(request):
            voight.inject_headers(request.headers, url=request.url, hosts={"reports.internal"})

        client = httpx.Client(event_hooks={"request": [tags_along]})

    A header that is given to one request (``headers=…``) goes along wherever that is redirected: httpx, requests, aiohttp and urllib take
    away passwords alone. Hooks of httpx, adapters of requests and middlewares of aiohttp see every hop.

    Args:
        headers: Those of the request, changed in place.
        url: Where it goes: text, or an object with a ``host``.
        hosts: The names of hosts that may see who the user is; ``.internal`` stands for all names that end so. Never name a provider.
    """
    try:
        if _goes_to(url, hosts) and (value := _value(current_context().resolve().tags)) is not None:
            _without(headers)[HEADER] = value  # a plain dict would keep another spelling beside it
            return headers
    except Exception as error:
        report_internal_error(error)
    return _without(headers)


async def ainject_headers(headers: Headers, *, url: object, hosts: Collection[str]) -> Headers:
    """As ``inject_headers``, awaiting asynchronous getters: for the event hooks of an ``httpx.AsyncClient``."""
    try:
        if _goes_to(url, hosts) and (value := _value((await current_context().aresolve()).tags)) is not None:
            _without(headers)[HEADER] = value
            return headers
    except Exception as error:
        report_internal_error(error)
    return _without(headers)


def tags_from_signed_headers(tag: str | None = None) -> Getter:
    """
    A getter that answers what another service of ours has put into a request with ``inject_headers``::

        app.add_middleware(
            voight.CostTagMiddleware,
            user_getter=voight.signed_headers("user_id"),
            plan_getter=voight.signed_headers("plan"),
            tenant_getter=voight.signed_headers("tenant_id"),
            tags_getter=voight.signed_headers(),
        )

    The header needs no trusted proxy: it is signed with ``VOIGHT_HEADER_KEY``, and good for a minute. One that is missing names nobody; one
    that is forged, expired, cut off, too long or sent twice neither, and is counted (``refused_headers``) and logged once for each reason.

    Args:
        tag: The tag that is wanted; None for all of them, as a mapping.

    Raises:
        ValueError: *tag* is the short form of a tag's name, which no header carries.
    """
    if tag in _SHORT:
        raise ValueError(f"no header carries a tag {tag!r}; write {tag}_id")

    def from_signed_headers(request: Any) -> Any:
        tags = _verified(request.headers)
        if tags is None:
            return None
        if tag is not None:
            return getattr(tags, tag) if tag in _NAMES else tags.extra.get(tag)
        return {name: value for name in _NAMES if (value := getattr(tags, name)) is not None} | dict(tags.extra)

    return from_signed_headers


def _without(headers: Headers) -> Headers:
    try:
        for name in [name for name in headers if name.lower() == HEADER]:
            del headers[name]
    except Exception as error:
        report_internal_error(error)
    return headers


# -- to where -----------------------------------------------------------------------------------------------------------------


def _goes_to(url: object, hosts: Collection[str]) -> bool:
    names = _named(hosts if isinstance(hosts, str) else tuple(hosts))
    host = getattr(url, "host", None)
    if not isinstance(host, str):
        text = str(url)
        if _UNCLEAR.search(text):  # a library may read another host in it than this one does
            return False
        host = urlsplit(text).hostname or ""
    host = host.lower()
    if _HOST.fullmatch(host) is None:  # "evil.com%2f.internal" ends like a name of ours
        return False
    return host in names or any(name.startswith(".") and host.endswith(name) for name in names)


@functools.lru_cache(64)
def _named(hosts: str | tuple[str, ...]) -> frozenset[str]:
    names = frozenset(name.lower().strip("[]") for name in ((hosts,) if isinstance(hosts, str) else hosts))
    for name in names:
        if not _HOST.fullmatch(name):
            warn_once(f"no tags are sent to {name[:80]!r}: name a host without scheme and port, such as reports.internal or .internal")
    return frozenset(filter(_HOST.fullmatch, names))


# -- out ----------------------------------------------------------------------------------------------------------------------


def _value(tags: Tags) -> str | None:
    meter = current_meter()
    if tags is NO_TAGS or not meter.settings.enabled:
        return None
    if not meter.settings.header_keys:
        warn_once("no tags are sent to other services: set VOIGHT_HEADER_KEY, in all of them to the same secret (openssl rand -hex 32)")
        return None
    tags = meter.pseudonymized(tags)
    named = {name: value for name in _NAMES if (value := getattr(tags, name)) is not None}
    for carried in ({**tags.extra, **named}, named, {"user_id": tags.user_id} if tags.user_id is not None else {}):
        if not carried:
            return None
        value = sign(carried, meter.settings.header_keys[0], time.time() + MAX_AGE)
        if len(value) <= MAX_CHARACTERS:
            return value
        warn_once(f"tags are left out of a header to another service: together they have more than {MAX_CHARACTERS} characters")
    return None


def sign(tags: dict[str, str], key: PseudonymKey, expires: float) -> str:
    """*tags* as the value of the header, good until *expires*, in seconds since 1970 UTC."""
    pairs = ",".join([f"{name}={quote(value, safe='', errors='surrogatepass')}" for name, value in tags.items()])
    signed = f"{pairs};e={int(expires)};k={key.version}"
    return f"{signed};s={_signature(key, signed)}"


def _signature(key: PseudonymKey, signed: str) -> str:
    digest = hmac.digest(key.secret.encode(errors="surrogatepass"), f"{HEADER}\0{signed}".encode(), "sha256")
    return urlsafe_b64encode(digest)[:43].decode()


# -- in -----------------------------------------------------------------------------------------------------------------------


def _verified(headers: Any) -> Tags | None:
    several = getattr(headers, "getlist", None)  # Starlette keeps what was sent twice apart, WSGI has joined it with a comma
    values = several(HEADER) if several is not None else [value for value in [headers.get(HEADER)] if value is not None]
    if not values:
        return None
    keys = current_meter().settings.header_keys
    if len(values) > 1:
        found: tuple[Tags, int] | str = "it was sent twice"
    elif len(values[0]) > MAX_CHARACTERS:
        found = "it is too long"
    else:
        found = _read(values[0], keys) if keys else "VOIGHT_HEADER_KEY is not set here"
    if not isinstance(found, str):
        tags, expires = found
        now = time.time()
        if now > expires + CLOCK_SKEW:
            found = "it has expired, or the clocks of the two services differ"
        elif expires > now + MAX_AGE + CLOCK_SKEW:
            found = "it is good for longer than it may be, or the clocks of the two services differ"
        else:
            return tags
    counters["refused_headers"] += 1
    warn_once(f"a {HEADER} header is not believed: {found}")
    return None


@functools.lru_cache(256)  # several getters ask for the tags of one request
def _read(value: str, keys: tuple[PseudonymKey, ...]) -> tuple[Tags, int] | str:
    """The tags of a header and when it expires, or what is wrong with it."""
    form = _FORM.fullmatch(value)
    if form is None:
        return "it has another form, or is cut off"
    key = next((key for key in keys if key.version == form["key"]), None)
    if key is None:
        return "it is signed with a key that is not set here"
    if not hmac.compare_digest(form["signature"], _signature(key, form["signed"])):
        return "its signature is wrong"
    pairs = [_PAIR.fullmatch(pair) for pair in form["pairs"].split(",")]
    if not all(pairs):
        return "it has another form, or is cut off"
    values = {pair[1]: unquote(pair[2], errors="replace") for pair in pairs if pair is not None}
    named = {name: values.pop(name, None) for name in _NAMES}
    extra = {name: value for name, value in values.items() if name not in Tags.__struct_fields__}
    return make_tags({"extra": extra, **named}), int(form["expires"])
