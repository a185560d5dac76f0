"""Findings of ``voight doctor`` about installed packages and settings."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping

from voight_middleware.cli.findings import Finding
from voight_middleware.config.ledger_url import shown_url
from voight_middleware.config.paths import default_journal, pseudonym_key_file, state_folder
from voight_middleware.config.private_files import temporary_name
from voight_middleware.config.settings import VARIABLES, Settings
from voight_middleware.config.settings_file import nearest
from voight_middleware.config.values import SettingsError
from voight_middleware.config.version import VERSION
from voight_middleware.pipeline.pseudonyms import finding_keys

_SDKS = {"openai": (1, 109), "anthropic": (0, 49)}
"""The oldest versions whose two patched methods are the same as today."""
_FRAMEWORKS = {
    "starlette": "CostTagMiddleware",
    "fastapi": "CostTagMiddleware",
    "flask": "voight_flask.CostTags(app)",
    "django": "voight_django.CostTagMiddleware in MIDDLEWARE",
    "djangorestframework": "voight_django.CostTagMiddleware in MIDDLEWARE",
    "celery": "voight_celery.instrument_celery()",
    "rq": "voight_rq.CostTagJob",
    "dramatiq": "voight_dramatiq.instrument_dramatiq(broker)",
    "arq": "voight_arq.instrument_arq()",
    "taskiq": "voight_taskiq.CostTagMiddleware",
}
"""The integration that tags the calls of each framework."""
_ALWAYS_NAMED = ("starlette", "fastapi")
_OTHERS = ("httpx2", "httpx", *_FRAMEWORKS, "genai-prices", "rich")
_ELSEWHERE = ("VOIGHT_CONFIG", "VOIGHT_OTLP_TOKEN")
"""Variables that are not settings."""


def of_installed() -> Iterator[Finding]:
    """Report the installed libraries, and the integration that covers each."""
    import sqlite3

    section = "installed"
    yield Finding(
        section,
        "voight-middleware",
        f"{VERSION} (Python {platform.python_version()}, SQLite {sqlite3.sqlite_version})",
    )
    versions = {name: _version(name) for name in (*_SDKS, *_OTHERS)}
    for sdk, oldest in _SDKS.items():
        if versions[sdk] is None:
            advice = (
                "no SDK is installed: only voight.record() stores calls"
                if not any(versions[name] for name in _SDKS)
                else None
            )
            yield Finding(section, sdk, "not installed", advice)
        elif _numbers(versions[sdk]) < oldest:
            advice = f"its calls are not metered: pip install '{sdk}>={'.'.join(map(str, oldest))}'"
            yield Finding(section, sdk, f"{versions[sdk]}, not covered", advice, fatal=True)
        else:
            yield Finding(section, sdk, f"{versions[sdk]}, covered by wrap() and instrument()")
    for name in ("httpx2", "httpx"):
        if versions[name] is not None:
            yield Finding(
                section,
                name,
                f"{versions[name]}, covered below the SDKs; use voight.wrap(client) for direct "
                "calls",
            )
    for name, line in _FRAMEWORKS.items():
        if versions[name] is not None:
            yield Finding(section, name, f"{versions[name]}, covered by {line}")
        elif name in _ALWAYS_NAMED:
            yield Finding(section, name, "not installed")
    prices = versions["genai-prices"]
    yield Finding(
        section,
        "genai-prices",
        prices or "not installed",
        None if prices else "calls are stored without a price: pip install genai-prices",
    )
    rich = versions["rich"]
    yield Finding(
        section,
        "rich",
        rich or "not installed",
        None if rich else "no tables: pip install 'voight-middleware[cli]'",
    )


def of_settings(settings: Settings) -> Iterator[Finding]:
    """Report the settings, each with its source."""
    section = "settings"
    source, advice = settings.sources.get("ledger", "default"), None
    if source == "default" and state_folder().name == temporary_name():
        advice = (
            "there is no home folder, and this folder may be temporary: set VOIGHT_LEDGER or "
            "XDG_STATE_HOME"
        )
    yield Finding(section, "ledger", f"{shown_url(settings.ledger)} ({source})", advice)
    yield _place(settings)
    yield from _delivery(settings)
    yield Finding(
        section,
        "release",
        f"{settings.release or 'none'} ({settings.sources.get('release', 'default')})",
    )
    yield Finding(section, "settings file", "none" if settings.file is None else str(settings.file))
    if settings.tags:
        tags = ",".join(f"{key}={value}" for key, value in settings.tags.items())
        yield Finding(section, "tags", f"{tags} ({settings.sources.get('tags', 'default')})")
    if settings.tz != "UTC":
        yield Finding(
            section, "time zone", f"{settings.tz} ({settings.sources.get('tz', 'default')})"
        )
    yield _prices(settings)
    yield from _privacy(settings)
    source = settings.sources.get("enabled", "default")
    if settings.enabled:
        yield Finding(section, "enabled", f"yes ({source})")
    else:
        yield Finding(
            section,
            "enabled",
            f"no ({source})",
            f"no call is metered or stored: unset {source}, or set it to true",
            fatal=True,
        )


def of_variables(environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Report VOIGHT_ variables that are not settings: a mistyped one has no effect."""
    known = (*VARIABLES.values(), *_ELSEWHERE)
    for name in sorted(environ):
        if name.startswith("VOIGHT_") and name not in known and not name.startswith("VOIGHT_TEST_"):
            yield Finding(
                "settings",
                name,
                "is not a setting, and nothing reads it",
                f"unset it{nearest(name, known)}",
            )


def _place(settings: Settings) -> Finding:
    source = settings.sources.get("journal", "default")
    advice = None
    if source == "default" and settings.journal != default_journal(settings.ledger):
        advice = (
            f"{default_journal(settings.ledger).parent} cannot be created, and this folder may be "
            "temporary: set VOIGHT_JOURNAL"
        )
    return Finding("settings", "journal", f"{settings.journal} ({source})", advice)


def _delivery(settings: Settings) -> Iterator[Finding]:
    values = (
        ("ingest", "yes" if settings.ingest else "no: voight ingest on the same folder does it"),
        ("delivery", settings.delivery),
        ("exit_timeout", f"{settings.exit_timeout:g} seconds"),
    )
    for name, value in values:
        yield Finding(
            "settings", name.replace("_", " "), f"{value} ({settings.sources.get(name, 'default')})"
        )


def _privacy(settings: Settings) -> Iterator[Finding]:
    section, policies = "settings", {"*": "pseudonym"} | dict(settings.pii)
    text = ", ".join(
        f"{key}={policies[key]}" for key in sorted(policies, key=lambda key: (key == "*", key))
    )
    yield Finding(
        section, "pii", f"{text.removeprefix('*=')} ({settings.sources.get('pii', 'default')})"
    )
    if "pseudonym" not in policies.values():
        return
    name = "pseudonym key"
    source = settings.sources.get("pseudonym_key", "default")
    file = pseudonym_key_file(settings.ledger)
    try:
        keys = finding_keys(settings)
    except SettingsError as error:
        lost = (
            ""
            if settings.pseudonym_keys
            else "; personal data becomes redacted:<kind>, and all such users are one row"
        )
        yield Finding(
            section,
            name,
            str(error),
            f"make it readable for this account, or set VOIGHT_PSEUDONYM_KEY{lost}",
        )
        return
    if settings.pseudonym_keys:
        older = f"; accepted too: {', '.join(key.version for key in keys[1:])}" if keys[1:] else ""
        yield Finding(section, name, f"{keys[0].version}{older} ({source})")
    elif file is None:
        advice = (
            "set VOIGHT_PSEUDONYM_KEY on every host to the same secret: voight migrate --new-key"
        )
        value = (
            "none: personal data becomes redacted:<kind>, and all users with e-mail addresses as "
            f"ids are one row ({source})"
        )
        yield Finding(section, name, value, advice)
    elif keys:
        others = file.stat().st_mode & 0o077
        yield Finding(
            section,
            name,
            f"{', '.join(key.version for key in keys)}, in {file}",
            f"chmod 600 {file}" if others else None,
        )
    else:
        yield Finding(section, name, f"none yet: {file} is created when personal data first occurs")


def _prices(settings: Settings) -> Finding:
    from voight_middleware.pricing import OverridesError, read_overrides

    section, name, source = "settings", "prices", settings.sources.get("prices", "default")
    if settings.prices is None:
        return Finding(section, name, f"none of your own ({source})")
    try:
        count = len(read_overrides(settings.prices).rules)
    except OverridesError as error:
        value = f"{settings.prices} cannot be used, {len(error.problems)} mistakes ({source})"
        return Finding(
            section,
            name,
            value,
            "calls wait in the journal until this is fixed: voight prices check",
            fatal=True,
        )
    return Finding(section, name, f"{settings.prices}, {count:,} of your own ({source})")


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"[0-9]+", text or "")[:2])
