"""The values of settings, as people write them: each reader returns the value, or raises an error that says what to write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from voight_middleware.tag_values import clean_value

DELIVERIES = ("background", "synchronous")


class SettingsError(ValueError):
    """A value given to ``configure()`` or found in a ``VOIGHT_*`` variable cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class PseudonymKey:
    """A secret that pseudonyms are made with, and the version of it that each of them names."""

    version: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class EventsTarget:
    """Where Voight's events of finished calls are sent, in whose name, and how many of them in a minute."""

    url: str
    """Of the server, without ``/v1/events``."""
    key: str = field(repr=False)
    agent: str
    per_minute: int


_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
LEAST_JOURNAL = 1_000_000
LARGEST_JOURNAL = 10**18
LONGEST_EXIT = 3600.0


def read_bytes(text: str) -> int:
    match = _SIZE.fullmatch(text)
    unit = None if match is None else _UNITS.get(match[2].upper())
    if match is None or unit is None or not LEAST_JOURNAL <= (size := int(Decimal(match[1]) * unit)) <= LARGEST_JOURNAL:
        raise ValueError("write a size of 1MB or more, such as 512MB or 1GB (or 1GiB)")
    return size


def read_seconds(text: str) -> float:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*s?\s*", text)
    if match is None or (seconds := float(match[1])) > LONGEST_EXIT:
        raise ValueError(f"write seconds from 0 to {LONGEST_EXIT:.0f}, such as 5 or 2.5")
    return seconds


def read_delivery(text: str) -> str:
    if (word := text.strip().lower()) not in DELIVERIES:
        raise ValueError(f"use one of {', '.join(DELIVERIES)}")
    return word


def read_zone(text: str) -> str:
    """Return the name of a time zone as it is written: ``Europe/Berlin``."""
    from zoneinfo import ZoneInfo

    try:
        ZoneInfo(name := text.strip())
    except (KeyError, ValueError, OSError) as error:
        raise ValueError("write a time zone such as Europe/Berlin or UTC") from error
    return name


_OF_A_CALL = {"user_id": "user", "user": "user", "session_id": "session", "session": "session", "route": "route"}


def read_tags(given: str | Mapping[str, str], source: str) -> dict[str, str]:
    """
    Return what every call of a process is tagged with: ``app=shop,region=eu``.

    Raises:
        SettingsError: A key or value cannot be kept, or is a call's own.
    """
    if isinstance(given, Mapping):
        pairs = [(str(key), value) for key, value in given.items()]
    else:
        parts = [part.partition("=") for part in given.split(",") if part.strip()]
        if any(not equals for _, equals, _ in parts):
            raise SettingsError(f"{source}: tags are {given!r}; write app=shop,region=eu")
        pairs = [(key, value) for key, _, value in parts]
    tags: dict[str, str] = {}
    for key, value in ((key.strip(), value) for key, value in pairs):
        if key in _OF_A_CALL:
            raise SettingsError(
                f"{source}: tags cannot name the {_OF_A_CALL[key]} of every call; write voight.tag({key}=…) around the work"
            )
        if key == "release":
            raise SettingsError(f"{source}: tags cannot name the release; the setting release does")
        name = _SHORT_FOR.get(key, key)
        try:
            text = clean_value(value)
        except TypeError:
            text = None
        if text is None or not TAG_KEY.fullmatch(name) or name in tags:
            form = "a key has letters, digits, '_', '.' or '-'; a value is a text"
            raise SettingsError(f"{source}: tags cannot have {key}={value!s:.80}; {form}")
        tags[name] = text
    return tags


SWITCH = {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}


PII_POLICIES = ("pseudonym", "redact", "allow")
_POLICY_FORMS = "write pseudonym, redact or allow, or one for each key of a tag: user_id=allow,*=redact"
_TAG_KEY = re.compile(r"\*|[A-Za-z_][A-Za-z0-9_.\-]{0,63}")
TAG_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,63}")
_SHORT_FOR = {"user": "user_id", "tenant": "tenant_id", "session": "session_id"}


def read_policies(given: str | Mapping[str, str], source: str) -> dict[str, str]:
    if isinstance(given, Mapping):
        pairs = [(str(key), str(policy)) for key, policy in given.items()]
    else:
        parts = [part.partition("=") for part in given.split(",") if part.strip()]
        pairs = [(key, policy) if equals else ("*", key) for key, equals, policy in parts]
    policies: dict[str, str] = {}
    for key, policy in ((key.strip(), policy.strip().lower()) for key, policy in pairs):
        if key in _SHORT_FOR:
            raise SettingsError(f"{source}: pii names the tag {key!r}; write {_SHORT_FOR[key]}")
        if policy not in PII_POLICIES or not _TAG_KEY.fullmatch(key) or key in policies:
            raise SettingsError(f"{source}: pii cannot be {key}={policy}; {_POLICY_FORMS}")
        policies[key] = policy
    return policies


MIN_SECRET = 32
"""The shortest secret of a pseudonym key, in characters. An e-mail address is easily guessed: the secret alone must not be."""
_KEY = re.compile(r"\s*(v[0-9]{1,4}):(.*)", re.DOTALL)


def read_keys(text: str, source: str, what: str = "pseudonym key") -> tuple[PseudonymKey, ...]:
    """
    The keys in ``v2:<secret>,v1:<the secret before>``, or in one plain secret, which is version v1.

    Raises:
        SettingsError: They cannot be used; the message shows none of them.
    """
    parts = [_KEY.fullmatch(part) for part in text.split(",")]
    if not any(parts):
        keys = [PseudonymKey("v1", text.strip())]
    elif not all(parts):
        raise SettingsError(f"{source}: write {what}s as v2:<secret>,v1:<secret before>, without a comma in a secret")
    else:
        keys = [PseudonymKey(match[1], match[2].strip()) for match in parts if match is not None]
    for key in keys:
        if len(key.secret) < MIN_SECRET:
            advice = f"at least {MIN_SECRET} characters, such as those of: openssl rand -hex 32"
            raise SettingsError(f"{source}: the secret of {what} {key.version} has {len(key.secret)} characters; it needs {advice}")
    if len({key.version for key in keys}) < len(keys):
        raise SettingsError(f"{source}: two {what}s have the same version; give the new one the next number")
    return tuple(keys)


EVENTS_URL = "https://api.voight.xyz"
EVENTS_PER_MINUTE = 60
"""What Voight's free plan takes; its Pro plan takes 600. Source: Voight's documentation, "Events API", limits."""
_BEARER = re.compile(r"vk_[!-~]{1,512}")
_BASE = re.compile(r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?")
_LOOPBACK = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|\[::1\]")


def read_events(key: str, agent: str, base: str, rate: str, sources: Mapping[str, str]) -> EventsTarget:
    if not _BEARER.fullmatch(key.strip()):
        raise SettingsError(
            f"{sources['key']}: this is no key of Voight's, which begins with vk_; another service's must not be sent there"
        )
    name = clean_value(agent)
    if name is None or len(name) > 120:
        raise SettingsError(f"{sources['agent']}: an agent has a name of 1 to 120 characters")
    match = _BASE.fullmatch(base.strip())
    if match is None or (match["scheme"] == "http" and not _LOOPBACK.fullmatch(match["host"])):
        advice = "write https://host, without a user, a query or /v1/events; http only for this machine, as the key is sent along"
        raise SettingsError(f"{sources['events_url']}: events cannot be sent to this URL; {advice}")
    if not re.fullmatch(r"[0-9]{1,6}", rate.strip()) or not 1 <= (per_minute := int(rate)) <= 100_000:
        raise SettingsError(f"{sources['events_per_minute']}: events per minute are a whole number from 1 to 100000, not {rate!r}")
    return EventsTarget(base.strip().rstrip("/"), key.strip(), name, per_minute)


RELEASE_VARIABLES = (
    "SENTRY_RELEASE",  # docs.sentry.io/platforms/python/configuration/releases: what a team calls its release already
    "DD_VERSION",  # docs.datadoghq.com/getting_started/tagging/unified_service_tagging
    "HEROKU_RELEASE_VERSION",  # devcenter.heroku.com/articles/dyno-metadata; HEROKU_SLUG_COMMIT may be of an older deployment
    "HEROKU_BUILD_COMMIT",
    "HEROKU_SLUG_COMMIT",
    "RENDER_GIT_COMMIT",  # render.com/docs/environment-variables
    "RAILWAY_GIT_COMMIT_SHA",  # docs.railway.com/reference/variables
    "KOYEB_GIT_SHA",  # koyeb.com/docs/build-and-deploy/environment-variables
    "VERCEL_GIT_COMMIT_SHA",  # vercel.com/docs/environment-variables/system-environment-variables
    "KAMAL_VERSION",  # kamal-deploy.org
    "FLY_IMAGE_REF",  # fly.io/docs/machines/runtime-environment; FLY_MACHINE_VERSION differs from machine to machine
    "CONTAINER_VERSION",  # doc.scalingo.com/app/runtime-environment
    "K_REVISION",  # cloud.google.com/run/docs/container-contract
    "GAE_VERSION",  # cloud.google.com/appengine/docs/standard/python3/runtime
    "CONTAINER_APP_REVISION",  # learn.microsoft.com/azure/container-apps/environment-variables
    "AWS_LAMBDA_FUNCTION_VERSION",  # docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html
    "SOURCE_VERSION",  # from here on: variables of builds, which many images are given under the same name
    "CODEBUILD_RESOLVED_SOURCE_VERSION",
    "CIRCLE_SHA1",
    "GIT_COMMIT",
    "CI_COMMIT_SHA",
    "GITHUB_SHA",
)
"""Where a release is named by what the application is deployed with, and the page that says so; the first that is set counts."""
_NO_RELEASE = frozenset({"$LATEST"})  # AWS Lambda, where no version is published


def deployed_release(environ: Mapping[str, str]) -> tuple[str, str] | None:
    for variable in RELEASE_VARIABLES:
        release = environ.get(variable, "").strip()
        if release and release not in _NO_RELEASE:
            return release, variable
    return None
