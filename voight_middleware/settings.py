"""Settings: where calls are kept and what they are stamped with, from ``voight.configure()``, the environment and the defaults."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import msgspec

from voight_middleware.private_files import check_own, temporary_name
from voight_middleware.tag_values import clean_value

JOURNAL_LIMIT = 1_000_000_000
"""
How much all journals of a folder may have together, in bytes, before calls wait in memory. A call has 240 to 500 bytes there: at ten calls
a second this is two to five days without a ledger, at a thousand forty minutes and more. Small enough for the disk of a container.
"""
EXIT_SECONDS = 5.0
"""How long the end of the process may wait for the ledger: less than the ten seconds that Docker leaves between SIGTERM and SIGKILL."""
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


class Settings(msgspec.Struct, frozen=True):
    """The settings in force, and where each came from (``configure()``, a variable's name, or ``default``)."""

    ledger: str
    """URL of the ledger: ``sqlite:///path``, ``postgresql://…``, ``clickhouse://…``. It may have a password in it: print ``shown_url``."""
    journal: Path
    """The folder of this host's journals."""
    release: str | None = None
    enabled: bool = True
    request_identity: bool | None = None
    """
    Whether the user that a request names to the provider owns a call that has no other owner. None: only outside of web requests and
    jobs, whose bodies may be their client's.
    """
    prices: Path | None = None
    """The file of the user's own prices."""
    pii: Mapping[str, str] = {}
    """What becomes of personal data in a tag, by the tag's key, ``*`` standing for the others: one of ``PII_POLICIES``."""
    pseudonym_keys: tuple[PseudonymKey, ...] = ()
    """The first is written with, all are found with; without any, a local ledger has one in a file beside it."""
    header_keys: tuple[PseudonymKey, ...] = ()
    """What tags are signed with on their way to another service of ours: with the first, and with any of them on arrival."""
    events: EventsTarget | None = None
    """None where no key is set: nothing is sent."""
    ingest: bool = True
    """Whether this process may bring journals into the ledger; where it may not, a ``voight ingest`` beside it does."""
    journal_limit: int = JOURNAL_LIMIT
    """How many bytes all journals of the folder may have together, the segments that are being written left out."""
    exit_timeout: float = EXIT_SECONDS
    """How many seconds the end of the process may wait for the ledger."""
    delivery: str = "background"
    """One of ``DELIVERIES``: whether a call waits until it is in the ledger, where it may."""
    sources: Mapping[str, str] = {}

    def __repr__(self) -> str:
        values = {name: getattr(self, name) for name in self.__struct_fields__} | {"ledger": shown_url(self.ledger)}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    @classmethod
    def from_environment(
        cls,
        *,
        ledger: str | Path | None = None,
        journal: str | Path | None = None,
        release: str | None = None,
        enabled: bool | None = None,
        request_identity: bool | None = None,
        prices: str | Path | None = None,
        pii: str | Mapping[str, str] | None = None,
        pseudonym_key: str | None = None,
        header_key: str | None = None,
        key: str | None = None,
        agent: str | None = None,
        events_url: str | None = None,
        events_per_minute: int | str | None = None,
        ingest: bool | None = None,
        journal_limit: int | str | None = None,
        exit_timeout: float | str | None = None,
        delivery: str | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Settings:
        """
        The given values, then the environment (each under its name, as ``VOIGHT_LEDGER`` and ``VOIGHT_EXIT_TIMEOUT``), then the defaults.
        A release is also taken from the variables of the usual places to deploy to.

        Raises:
            SettingsError: A value cannot be used.
        """
        sources: dict[str, str] = {}

        def first(name: str, given: object, variable: str) -> str | None:
            if given is not None:
                sources[name] = "configure()"
                return str(given)
            if environ.get(variable):
                sources[name] = variable
                return environ[variable]
            sources[name] = "default"
            return None

        def switch(name: str, given: bool | None, variable: str) -> bool:
            word = (first(name, given, variable) or "true").strip().lower()
            if word not in _SWITCH:
                raise SettingsError(f"{sources[name]}: {name} is {word!r}; use one of {', '.join(_SWITCH)}")
            return _SWITCH[word]

        def maybe(name: str, given: bool | None, variable: str) -> bool | None:
            return None if first(name, given, variable) is None else switch(name, given, variable)

        def read(name: str, given: object, variable: str, reader: Callable[[str], _Value], default: _Value) -> _Value:
            text = first(name, given, variable)
            try:
                return default if text is None else reader(text)
            except ValueError as error:
                raise SettingsError(f"{sources[name]}: {name} is {text!r}; {error}") from error

        place = first("ledger", ledger, "VOIGHT_LEDGER")
        url = ledger_url(default_ledger(environ) if place is None else place)
        folder = first("journal", journal, "VOIGHT_JOURNAL")
        own_prices = first("prices", prices, "VOIGHT_PRICES")
        own_release = first("release", release, "VOIGHT_RELEASE")
        if own_release is None:
            own_release, sources["release"] = _deployed(environ) or (None, "default")
        policy = first("pii", None if pii is None else "", "VOIGHT_PII") or ""
        keys = first("pseudonym_key", pseudonym_key, "VOIGHT_PSEUDONYM_KEY")
        signing = first("header_key", header_key, "VOIGHT_HEADER_KEY")
        bearer = first("key", key, "VOIGHT_KEY")
        name = first("agent", agent, "VOIGHT_AGENT") or environ.get("HOSTNAME") or socket.gethostname()
        base = first("events_url", events_url, "VOIGHT_EVENTS_URL") or EVENTS_URL
        rate = first("events_per_minute", events_per_minute, "VOIGHT_EVENTS_PER_MINUTE")
        return cls(
            ledger=url,
            journal=usable_journal(url, environ) if folder is None else _absolute(folder, "the journal"),
            release=clean_value(own_release or ""),
            enabled=switch("enabled", enabled, "VOIGHT_ENABLED"),
            request_identity=maybe("request_identity", request_identity, "VOIGHT_REQUEST_IDENTITY"),
            prices=None if own_prices is None else _absolute(own_prices, "the file of prices"),
            pii=_policies(policy if pii is None else pii, sources["pii"]),
            pseudonym_keys=() if keys is None else read_keys(keys, sources["pseudonym_key"]),
            header_keys=() if signing is None else read_keys(signing, sources["header_key"], "header key"),
            events=None if bearer is None else _events_target(bearer, name, base, rate or str(EVENTS_PER_MINUTE), sources),
            ingest=switch("ingest", ingest, "VOIGHT_INGEST"),
            journal_limit=read("journal_limit", journal_limit, "VOIGHT_JOURNAL_LIMIT", _bytes, JOURNAL_LIMIT),
            exit_timeout=read("exit_timeout", exit_timeout, "VOIGHT_EXIT_TIMEOUT", _seconds, EXIT_SECONDS),
            delivery=read("delivery", delivery, "VOIGHT_DELIVERY", _delivery, "background"),
            sources=sources,
        )


STRICTER = {
    "VOIGHT_ENABLED": "false",
    "VOIGHT_REQUEST_IDENTITY": "false",
    "VOIGHT_PII": "redact",
    "VOIGHT_INGEST": "false",
}
"""What holds in the place of a variable that cannot be read. Every other one has its default then."""
_TO_INGEST = ("VOIGHT_LEDGER", "VOIGHT_PRICES")
"""Where one of these cannot be read, calls wait in the journal: no default can stand for it."""


def usable_settings(environ: Mapping[str, str] = os.environ) -> tuple[Settings, list[SettingsError]]:
    """
    Return the settings of the environment, and what is wrong with it. A variable that cannot be read leaves all others as they are, and
    falls back itself to what does less.
    """
    ours = {name: value for name, value in environ.items() if name.startswith("VOIGHT_")}
    others = {name: value for name, value in environ.items() if name not in ours}
    errors: list[SettingsError] = []
    good: dict[str, str] = {}
    alone = others
    try:
        state_folder(others)
    except SettingsError:  # it is said below, if a variable of ours does not make it good
        alone = {**others, "XDG_STATE_HOME": "/"}
    for name, value in ours.items():
        try:
            Settings.from_environment(environ={**alone, name: value})
        except SettingsError as error:
            errors.append(error if name in str(error) else SettingsError(f"{name}: {error}"))
            if name in STRICTER:
                good[name] = STRICTER[name]
            elif name in _TO_INGEST:
                good["VOIGHT_INGEST"] = "false"
            elif name == "VOIGHT_PSEUDONYM_KEY":
                good["VOIGHT_PII"] = STRICTER["VOIGHT_PII"]
        else:
            good.setdefault(name, value)
    try:
        return Settings.from_environment(environ={**others, **good}), errors
    except SettingsError as error:  # variables that are good alone, and not together; or there is nowhere to write
        return Settings.from_environment(environ={**alone, **STRICTER}), [*errors, error]


_Value = TypeVar("_Value")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
LEAST_JOURNAL = 1_000_000
LARGEST_JOURNAL = 10**18
LONGEST_EXIT = 3600.0


def _bytes(text: str) -> int:
    match = _SIZE.fullmatch(text)
    unit = None if match is None else _UNITS.get(match[2].upper())
    if match is None or unit is None or not LEAST_JOURNAL <= (size := int(Decimal(match[1]) * unit)) <= LARGEST_JOURNAL:
        raise ValueError("write a size of 1MB or more, such as 512MB or 1GB (or 1GiB)")
    return size


def _seconds(text: str) -> float:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*s?\s*", text)
    if match is None or (seconds := float(match[1])) > LONGEST_EXIT:
        raise ValueError(f"write seconds from 0 to {LONGEST_EXIT:.0f}, such as 5 or 2.5")
    return seconds


def _delivery(text: str) -> str:
    if (word := text.strip().lower()) not in DELIVERIES:
        raise ValueError(f"use one of {', '.join(DELIVERIES)}")
    return word


_SWITCH = {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}


PII_POLICIES = ("pseudonym", "redact", "allow")
_POLICY_FORMS = "write pseudonym, redact or allow, or one for each key of a tag: user_id=allow,*=redact"
_TAG_KEY = re.compile(r"\*|[A-Za-z_][A-Za-z0-9_.\-]{0,63}")
_SHORT_FOR = {"user": "user_id", "tenant": "tenant_id", "session": "session_id"}


def _policies(given: str | Mapping[str, str], source: str) -> dict[str, str]:
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


def _events_target(key: str, agent: str, base: str, rate: str, sources: Mapping[str, str]) -> EventsTarget:
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


def _deployed(environ: Mapping[str, str]) -> tuple[str, str] | None:
    for variable in RELEASE_VARIABLES:
        release = environ.get(variable, "").strip()
        if release and release not in _NO_RELEASE:
            return release, variable
    return None


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """
    Return ``$XDG_STATE_HOME/voight``, by default ``~/.local/state/voight``. Without a home, return ``temporary_folder()``.

    A relative ``XDG_STATE_HOME`` is ignored. Source: XDG Base Directory Specification, "Environment variables".

    Raises:
        SettingsError: There is no home, and no folder for temporary files that is safe.
    """
    base = environ.get("XDG_STATE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "voight"
    try:
        return Path("~").expanduser() / ".local" / "state" / "voight"
    except RuntimeError:  # a container that runs as a user without a home
        return temporary_folder()


def temporary_folder() -> Path:
    """
    Return ``/tmp/voight-<uid>``, which ``private_files.make_folder`` makes.

    Raises:
        SettingsError: Another account may have made it, or may put something into it.
    """
    import tempfile

    try:
        folder = Path(tempfile.gettempdir()) / temporary_name()
        with contextlib.suppress(FileNotFoundError):
            check_own(folder)
    except OSError as error:
        raise SettingsError(
            f"there is no home, and no safe folder for temporary files ({error}): set XDG_STATE_HOME to a folder"
        ) from error
    return folder


def _absolute(path: str, what: str) -> Path:
    try:
        if path and "\0" not in path:
            return Path(path).expanduser().absolute()
    except RuntimeError:  # ~user, who does not exist
        pass
    raise SettingsError(f"{what} needs a path that can be used, not {path!r}")


def default_ledger(environ: Mapping[str, str] = os.environ) -> str:
    """The ledger that is used when nothing else is said: ``ledger.db`` in the state folder."""
    return str(state_folder(environ) / "ledger.db")


def pseudonym_key_file(url: str) -> Path | None:
    """Beside an SQLite ledger: ``ledger.db.key``; None for a ledger on a server, whose hosts would have a key each."""
    return Path(sqlite_path(url) + ".key") if url.startswith("sqlite:///") else None


def default_journal(url: str, environ: Mapping[str, str] = os.environ) -> Path:
    """
    Beside an SQLite ledger: ``ledger.db.journal/``. For a ledger on a server a folder of its own in the state folder, the same one
    whoever logs in: what two applications of one account write must not be brought into the ledger of one of them.
    """
    return Path(sqlite_path(url) + ".journal") if url.startswith("sqlite:///") else state_folder(environ) / _journal_name(url, environ)


def usable_journal(url: str, environ: Mapping[str, str] = os.environ) -> Path:
    """
    The default journal; of a ledger on a server, under the folder for temporary files where the state folder cannot be made, as on a
    read-only file system.
    """
    place = default_journal(url, environ)
    if url.startswith("sqlite:///") or can_be_made(place):
        return place
    with contextlib.suppress(SettingsError):
        base = temporary_folder()
        if can_be_made(base / place.name):
            return base / place.name
    return place


def can_be_made(folder: Path) -> bool:
    """Whether *folder* can be written, or made where it is not there yet."""
    try:
        place = next(one for one in (folder, *folder.parents) if one.exists())
        return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    except OSError:  # a folder on the way may not even be looked into
        return False


_LIBPQ = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "dbname": "PGDATABASE", "service": "PGSERVICE"}
"""Where a PostgreSQL ledger is, by parameter and variable. Source: PostgreSQL documentation, "libpq: Environment Variables"."""


def _journal_name(url: str, environ: Mapping[str, str]) -> str:
    """
    Return a name for the place of a ledger on a server, the same for every role.

    It is a digest only: of a URL that is not in order, any part may be a password.
    """
    engine, _, rest = url.partition("://")
    address, _, query = rest.partition("?")
    place = address.rpartition("@")[2]
    given = {name: value for name, _, value in (pair.partition("=") for pair in query.split("&")) if value}
    said = {name: given[name] for name in (*_LIBPQ, "database", "cluster") if name in given}
    if engine.startswith("postgres"):
        engine = "postgresql"
        said = {name: value for name, variable in _LIBPQ.items() if (value := environ.get(variable))} | said
    digest = hashlib.blake2b("\n".join([engine, place, *(f"{name}={said[name]}" for name in sorted(said))]).encode(), digest_size=4)
    return f"{engine}-{digest.hexdigest()}.journal"


SCHEMES = ("sqlite", "postgresql", "postgres", "clickhouse")
_FORMS = "write sqlite:////var/lib/app/ledger.db, postgresql://user@host/database or clickhouse://user@host/database"
_SERVER = "user:password@host/database, with the special characters of a password percent-encoded (@ as %40, / as %2F, : as %3A, ? as %3F)"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_WITHOUT_SLASHES = re.compile(r"(postgres(ql)?|clickhouse|mysql|mariadb|https?)(\+[a-z0-9]+)?:", re.IGNORECASE)
_CONNECTION_STRING = re.compile(
    r"\s*[A-Za-z_ ]{1,40}=.*\b(host|hostaddr|server|service|dbname|database|user|password|port)\s*=|"
    r"\s*(host|hostaddr|service|dbname|user|password|port)\s*=",
    re.IGNORECASE | re.DOTALL,
)
"""``host=db password=…``, as libpq and other drivers read it: taken for a path, it would be a file with the password in its name."""
_ADDRESS = re.compile(r".*://|/{0,2}[^/\s]*:[^\s]*@", re.DOTALL)
"""What no path has: a URL inside of another, or ``user:password@host/database``."""


def ledger_url(place: str) -> str:
    """
    Return *place* as a URL, an SQLite path made absolute.

    Raises:
        SettingsError: *place* is empty, an SQLite URL without a path, a connection string, or of an engine that there is not. The message
            shows no password.
    """
    found = _SCHEME.match(place)
    scheme = found[1].lower() if found is not None else "sqlite"
    if scheme not in SCHEMES or (found is None and _WITHOUT_SLASHES.match(place)):
        raise SettingsError(f"a ledger cannot be {shown_url(place)!r}; {_FORMS}")
    if found is not None and scheme != "sqlite":
        if not _has_port(place[found.end() :]):
            raise SettingsError(f"the port of the ledger {shown_url(place)!r} is not a number: write {scheme}://{_SERVER}")
        return scheme + place[len(scheme) :]
    path = sqlite_path(place) if place.startswith("sqlite:") else place
    if _CONNECTION_STRING.match(path):
        raise SettingsError(f"a ledger cannot be a connection string, such as host=… password=…; {_FORMS}")
    if _ADDRESS.match(path):
        raise SettingsError(f"a ledger cannot be the address of a server without its engine in front; {_FORMS}")
    if not path or path == ":memory:":
        raise SettingsError(f"the ledger needs a file, such as sqlite:////var/lib/app/ledger.db, not {place!r}")
    return f"sqlite:///{_absolute(path, 'the ledger')}"


def _has_port(rest: str) -> bool:
    """Return whether the ports of a URL's hosts are numbers. ``owner:secret?host=db`` has a password there."""
    hosts = rest.partition("?")[0].partition("/")[0].rpartition("@")[2]
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts.split(",")]
    return all(not port or (port.isascii() and port.isdigit()) for port in ports)


_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*:)(/*)(.*)", re.DOTALL)
_SECRET = re.compile(r"passw|pwd|secret|token|key$", re.IGNORECASE)


def shown_url(url: str) -> str:
    """
    *url* as it may be printed: ``***`` in the place of a password, in front of the host and in the query.

    A URL that is not in order, such as one whose password has a slash in it, loses more than the password rather than less.
    """
    found = _URL.fullmatch(url)
    if found is None or url.startswith("sqlite:///"):
        return url
    scheme, slashes, rest = found[1], found[2], found[3]
    if len(slashes) < 2:  # postgres:secret@host
        return f"{scheme}***@{rest.rpartition('@')[2]}" if "@" in rest else url
    address, mark, query = rest.partition("?")
    names, at, host = address.rpartition("@")
    user, colon, _ = names.partition(":")
    if not at:
        server, colon, port = host.partition("/")[0].rpartition(":")
        no_port = bool(colon and port) and not port.isdigit() and not port.endswith("]")  # a password: the host is missing, or behind its ?
        if no_port or ("@" in query and "=" not in query.partition("@")[0]):
            return f"{scheme}{slashes}{server}:***"
        return f"{scheme}{slashes}{host}{mark}{_shown_query(query)}"
    return f"{scheme}{slashes}{user}{':***' if colon else ''}@{host}{mark}{_shown_query(query)}"


def _shown_query(query: str) -> str:
    from urllib.parse import unquote

    parts = [part.partition("=") for part in query.split("&")]
    return "&".join(f"{name}=***" if equals and _SECRET.search(unquote(name)) else name + equals + value for name, equals, value in parts)


def sqlite_path(url: str) -> str:
    """
    The file of an ``sqlite:///path`` URL: three slashes and a relative path, or four and an absolute one.

    Raises:
        SettingsError: The URL has another form.
    """
    if not url.startswith("sqlite:///"):
        raise SettingsError(f"write an SQLite ledger as sqlite:///relative/path or sqlite:////absolute/path, not {shown_url(url)!r}")
    return url.removeprefix("sqlite:///")
