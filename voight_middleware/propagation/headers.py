"""
Headers: the tags of a request, carried to the next service of our own.

``voight-tags: user_id=u_7,plan=pro;e=1763748000;k=v1;s=<signature>``. The pairs are as in W3C
Baggage (keys and percent-encoded values). The header is our own, as libraries pass baggage on to
anybody. ``e`` is the second since 1970 (UTC) at which it expires, ``k`` the version of the key, and
``s`` HMAC-SHA256 over everything before it. Route and release are not carried: a service has its
own.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, MutableMapping
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from voight_middleware.config.keys import PseudonymKey
from voight_middleware.context.context import current_context
from voight_middleware.diagnostics import counters, report_internal_error, warn_once
from voight_middleware.lazy import lazy_pattern
from voight_middleware.middleware.getters import Getter
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.records.tags import NO_TAGS, Tags, make_tags

HEADER = "voight-tags"
MAX_AGE = 60.0
"""How many seconds a header is valid."""
CLOCK_SKEW = 30.0
"""By how many seconds the clocks of two services may differ."""
MAX_CHARACTERS = 4096
"""
The maximum length of a header.

If it is exceeded, extra keys are dropped, then all tags but the user. A longer header is not read.
"""

_NAMES = ("user_id", "plan", "tenant_id", "session_id")
_SHORT = ("user", "tenant", "session")
_HOST = lazy_pattern(r"\.?[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?|[0-9a-f:.]*:[0-9a-f:.]*")
_UNCLEAR = lazy_pattern(r"[\x00-\x20\x7f\\]")
_FORM = lazy_pattern(
    r"(?P<signed>(?P<pairs>[!-~]+);e=(?P<expires>[0-9]{1,12});k=(?P<key>v[0-9]{1,4}));s=(?P<signature>[A-Za-z0-9_-]{43})"
)
_PAIR = lazy_pattern(r"([A-Za-z_][A-Za-z0-9_.\-]{0,63})=([A-Za-z0-9_.~%-]+)")

Headers = TypeVar("Headers", bound=MutableMapping[str, Any])


def inject_headers(headers: Headers, *, url: object, hosts: Collection[str]) -> Headers:
    """
    Put the signed current tags into the headers of a request to your own service. Return *headers*.
    Never raises.

    Call it for every request that a client sends, including those that a redirect causes. An
    existing ``voight-tags`` header is removed if the host is not named, or there are no tags or no
    key. With httpx::

        def tags_along(request):
            voight.inject_headers(request.headers, url=request.url, hosts={"reports.internal"})

        client = httpx.Client(event_hooks={"request": [tags_along]})

    Do not pass the header to one request (``headers=…``): it would follow every redirect. httpx,
    requests, aiohttp and urllib remove only passwords. Hooks of httpx, adapters of requests and
    middlewares of aiohttp see every hop.

    Args:
        headers: The headers of the request, changed in place.
        url: The URL of the request: a string, or an object with a ``host``.
        hosts: Names of hosts that may see the user; ``.internal`` stands for all names with that
            end. Never name a provider.
    """
    try:
        if (
            _is_trusted(url, hosts)
            and (value := _value(current_context().resolve().tags)) is not None
        ):
            _without(headers)[HEADER] = value  # a plain dict would keep another spelling too
            return headers
    except Exception as error:
        report_internal_error(error)
    return _without(headers)


async def ainject_headers(headers: Headers, *, url: object, hosts: Collection[str]) -> Headers:
    """As ``inject_headers``, awaiting asynchronous getters: for hooks of ``httpx.AsyncClient``."""
    try:
        if (
            _is_trusted(url, hosts)
            and (value := _value((await current_context().aresolve()).tags)) is not None
        ):
            _without(headers)[HEADER] = value
            return headers
    except Exception as error:
        report_internal_error(error)
    return _without(headers)


def tags_from_signed_headers(tag: str | None = None) -> Getter:
    """
    Return a getter that reads the tags that another service of yours sent with ``inject_headers``::

        app.add_middleware(
            voight.CostTagMiddleware,
            user_getter=voight.tags_from_signed_headers("user_id"),
            plan_getter=voight.tags_from_signed_headers("plan"),
            tenant_getter=voight.tags_from_signed_headers("tenant_id"),
            tags_getter=voight.tags_from_signed_headers(),
        )

    The header needs no trusted proxy: it is signed with ``VOIGHT_HEADER_KEY``, and valid for a
    minute. A missing header names nobody. A header that is forged, expired, cut off, too long or
    sent twice names nobody either. It is counted (``refused_headers``) and logged once for each
    reason.

    Args:
        tag: The tag to return; None for all of them, as a mapping.

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
        return {
            name: value for name in _NAMES if (value := getattr(tags, name)) is not None
        } | dict(tags.extra)

    return from_signed_headers


def _without(headers: Headers) -> Headers:
    try:
        for name in [name for name in headers if name.lower() == HEADER]:
            del headers[name]
    except Exception as error:
        report_internal_error(error)
    return headers


# -- hosts -----------------------------------------------------------------------------------------


def _is_trusted(url: object, hosts: Collection[str]) -> bool:
    names = _host_names(hosts if isinstance(hosts, str) else tuple(hosts))
    host = getattr(url, "host", None)
    if not isinstance(host, str):
        text = str(url)
        if _UNCLEAR.search(text):  # a library may read another host in it than this function does
            return False
        host = urlsplit(text).hostname or ""
    host = host.lower()
    if _HOST.fullmatch(host) is None:  # "evil.com%2f.internal" ends like one of our names
        return False
    return host in names or any(name.startswith(".") and host.endswith(name) for name in names)


@functools.lru_cache(64)
def _host_names(hosts: str | tuple[str, ...]) -> frozenset[str]:
    names = frozenset(
        name.lower().strip("[]") for name in ((hosts,) if isinstance(hosts, str) else hosts)
    )
    for name in names:
        if not _HOST.fullmatch(name):
            warn_once(
                f"no tags are sent to {name[:80]!r}: pass a host without scheme and port, such as "
                "reports.internal or .internal"
            )
    return frozenset(filter(_HOST.fullmatch, names))


# -- writing ---------------------------------------------------------------------------------------


def _value(tags: Tags) -> str | None:
    meter = current_meter()
    if tags is NO_TAGS or not meter.settings.enabled:
        return None
    if not meter.settings.header_keys:
        warn_once(
            "no tags are sent to other services: set VOIGHT_HEADER_KEY to the same secret in all "
            "of them (openssl rand -hex 32)"
        )
        return None
    tags = meter.pseudonymized(tags)
    named = {name: value for name in _NAMES if (value := getattr(tags, name)) is not None}
    for carried in (
        {**tags.extra, **named},
        named,
        {"user_id": tags.user_id} if tags.user_id is not None else {},
    ):
        if not carried:
            return None
        value = sign(carried, meter.settings.header_keys[0], time.time() + MAX_AGE)
        if len(value) <= MAX_CHARACTERS:
            return value
        warn_once(
            "tags are dropped from a header to another service: it has more than "
            f"{MAX_CHARACTERS} characters"
        )
    return None


def sign(tags: dict[str, str], key: PseudonymKey, expires: float) -> str:
    """Return *tags* as the value of the header, valid until *expires* (seconds since 1970, UTC)."""
    pairs = ",".join(
        [f"{name}={quote(value, safe='', errors='surrogatepass')}" for name, value in tags.items()]
    )
    signed = f"{pairs};e={int(expires)};k={key.version}"
    return f"{signed};s={_signature(key, signed)}"


def _signature(key: PseudonymKey, signed: str) -> str:
    import hmac
    from base64 import urlsafe_b64encode

    digest = hmac.digest(
        key.secret.encode(errors="surrogatepass"), f"{HEADER}\0{signed}".encode(), "sha256"
    )
    return urlsafe_b64encode(digest)[:43].decode()


# -- reading ---------------------------------------------------------------------------------------


def _verified(headers: Any) -> Tags | None:
    # Starlette keeps repeated headers apart; WSGI has joined them with a comma.
    getlist = getattr(headers, "getlist", None)
    values = (
        getlist(HEADER)
        if getlist is not None
        else [value for value in [headers.get(HEADER)] if value is not None]
    )
    if not values:
        return None
    keys = current_meter().settings.header_keys
    if len(values) > 1:
        result: tuple[Tags, int] | str = "it was sent twice"
    elif len(values[0]) > MAX_CHARACTERS:
        result = "it is too long"
    else:
        result = _read(values[0], keys) if keys else "VOIGHT_HEADER_KEY is not set in this service"
    if not isinstance(result, str):
        tags, expires = result
        now = time.time()
        if now > expires + CLOCK_SKEW:
            result = "it has expired, or the clocks of the two services differ"
        elif expires > now + MAX_AGE + CLOCK_SKEW:
            result = "it is valid for longer than allowed, or the clocks of the two services differ"
        else:
            return tags
    counters["refused_headers"] += 1
    warn_once(f"a {HEADER} header is refused: {result}")
    return None


@functools.lru_cache(256)  # several getters read the tags of one request
def _read(value: str, keys: tuple[PseudonymKey, ...]) -> tuple[Tags, int] | str:
    """Return the tags of a header and its expiry, or the reason why it is refused."""
    form = _FORM.fullmatch(value)
    if form is None:
        return "it has another form, or is cut off"
    key = next((key for key in keys if key.version == form["key"]), None)
    if key is None:
        return "it is signed with a key that is not set in this service"
    import hmac

    if not hmac.compare_digest(form["signature"], _signature(key, form["signed"])):
        return "its signature is wrong"
    pairs = [_PAIR.fullmatch(pair) for pair in form["pairs"].split(",")]
    if not all(pairs):
        return "it has another form, or is cut off"
    values = {pair[1]: unquote(pair[2], errors="replace") for pair in pairs if pair is not None}
    named = {name: values.pop(name, None) for name in _NAMES}
    extra = {name: value for name, value in values.items() if name not in Tags.__struct_fields__}
    return make_tags({"extra": extra, **named}), int(form["expires"])
