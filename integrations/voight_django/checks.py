"""System checks: they report errors in the setting ``VOIGHT``, with hints."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

import voight_middleware as voight
from voight_django import conf
from voight_django.middleware import CostTagMiddleware
from voight_middleware.config.ledger_url import sqlite_path
from voight_middleware.config.settings import Settings


def check_setting(**_: Any) -> list[CheckMessage]:
    """Check the setting ``VOIGHT`` and ``MIDDLEWARE``."""
    try:
        given = conf.project()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="voight_django.E001"), *_middleware()]
    return [*_keys(given), *_getters(given), *_places(given), *_middleware()]


def _keys(given: Mapping[str, Any]) -> Iterator[CheckMessage]:
    for key in given:
        if key not in conf.NAMES:
            near = difflib.get_close_matches(str(key).upper(), conf.NAMES, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Valid keys: {', '.join(conf.NAMES)}."
            yield Error(
                f"VOIGHT has a key that does not exist: {key!r}.",
                hint=hint,
                id="voight_django.E002",
            )


def _getters(given: Mapping[str, Any]) -> Iterator[CheckMessage]:
    for key in conf.GETTERS:
        value = given.get(key)
        if value is None:
            continue
        if isinstance(value, str):
            try:
                value = import_string(value)
            except ImportError as error:
                hint = (
                    "Write the dotted path of a function in an importable module, such as "
                    "'accounts.costs.plan_of'."
                )
                yield Error(
                    f"VOIGHT[{key!r}] cannot be imported: {error}.",
                    hint=hint,
                    id="voight_django.E003",
                )
                continue
        if not _takes_a_request(value):
            hint = (
                "Name a function of one argument, the request. It returns the value, or None if "
                "it is not known yet."
            )
            yield Error(
                f"VOIGHT[{key!r}] is {value!r}, which cannot be called with a request.",
                hint=hint,
                id="voight_django.E004",
            )


def _takes_a_request(value: object) -> bool:
    if not callable(value):
        return False
    try:
        inspect.signature(value).bind(object())
    except ValueError:  # a builtin without a signature
        return True
    except TypeError:
        return False
    return True


def _places(given: Mapping[str, Any]) -> Iterator[CheckMessage]:
    """Check that the meter can use its values, and can write to its ledger and journal."""
    try:
        values = conf.meter_values(given)
    except ImproperlyConfigured as error:
        yield Error(
            f"{error}.", hint="Name callables that take a finished call.", id="voight_django.E004"
        )
        return
    for name in conf.CODE:
        values.pop(name, None)
    try:
        used = Settings.from_environment(**values)
    except (voight.SettingsError, TypeError) as error:
        yield Error(
            f"VOIGHT has a value that cannot be used: {error}.",
            hint="Correct or remove it.",
            id="voight_django.E005",
        )
        return
    places = [("journal", used.journal)]
    if used.ledger.startswith("sqlite:///"):
        file = Path(sqlite_path(used.ledger))
        if file.is_dir():
            hint = "Set VOIGHT['LEDGER'] to the path of a file in it, such as 'ledger.db'."
            yield Error(f"The ledger is a folder: {file}.", hint=hint, id="voight_django.E006")
            return
        places.insert(0, ("ledger", file))
    for name, place in places:
        blocked = _blocked(place)
        if blocked is not None:
            hint = (
                f"Set VOIGHT[{name.upper()!r}] to a path that the server's account can write, or "
                "give it the permission."
            )
            yield Error(
                f"The {name} {place} cannot be written: {blocked}.",
                hint=hint,
                id="voight_django.E006",
            )


def _blocked(place: Path) -> str | None:
    """Return why *place* cannot be written; None if it can."""
    try:
        if place.exists():
            return None if os.access(place, os.W_OK) else f"{place} is not writable"
        parent = next(folder for folder in place.parents if folder.exists())
        if not parent.is_dir():
            return f"{parent} is not a folder"
        return None if os.access(parent, os.W_OK | os.X_OK) else f"{parent} is not writable"
    except OSError as error:
        return error.strerror or type(error).__name__


def _middleware() -> Iterator[CheckMessage]:
    ours = [path for path in settings.MIDDLEWARE if _is_ours(path)]
    if not ours:
        hint = (
            "Add 'voight_django.CostTagMiddleware' to MIDDLEWARE. Without it, the calls of a "
            "request have no user."
        )
        yield checks.Warning(
            "CostTagMiddleware is not in MIDDLEWARE.", hint=hint, id="voight_django.W001"
        )
    elif len(ours) > 1:
        hint = "Keep one of them. Only the inner one is used; the outer one just costs time."
        yield checks.Warning(
            f"CostTagMiddleware is in MIDDLEWARE {len(ours)} times.",
            hint=hint,
            id="voight_django.W002",
        )


def _is_ours(path: str) -> bool:
    try:
        middleware = import_string(path)
    except ImportError:
        return False  # Django reports it when the server starts
    return isinstance(middleware, type) and issubclass(middleware, CostTagMiddleware)
