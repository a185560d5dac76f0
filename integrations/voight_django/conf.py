"""The setting ``VOIGHT`` of a Django project, and its current values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

import voight_middleware as voight
from voight_django.identity import adapted_getter, request_user
from voight_middleware.config.settings import VARIABLES
from voight_middleware.diagnostics import warn_once
from voight_middleware.middleware.getters import Getters
from voight_middleware.pipeline.meter import Meter, current_meter

GETTERS = {
    "USER_GETTER": "user",
    "PLAN_GETTER": "plan",
    "TENANT_GETTER": "tenant",
    "TAGS_GETTER": "tags",
}
"""Dotted paths or callables, sync or async. They get the ``HttpRequest`` at its first LLM call."""
OF_METER = {
    VARIABLES.get(name, name.upper()).removeprefix("VOIGHT_"): name
    for name in inspect.signature(voight.configure).parameters
}
"""The keys for ``voight.configure()``."""
CODE = ("listeners", "batch_owner")
"""Those of them that are code, which a command line cannot read."""
NAMES = (*GETTERS, *OF_METER, "INSTRUMENT")
"""
Every key of ``VOIGHT``. ``INSTRUMENT``: whether to meter every client of this process, as with
``voight.instrument()``.
"""

getters: Getters | None = None
"""The current getters. None before they are read, and after a change of the setting."""
_configured: dict[str, Any] = {}
_meter: Meter | None = None


def project() -> Mapping[str, Any]:
    """
    Return the project's setting ``VOIGHT``.

    Raises:
        ImproperlyConfigured: The setting is not a mapping.
    """
    given = getattr(settings, "VOIGHT", {})
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(
            f"VOIGHT is a {type(given).__name__}: write a dictionary, such as VOIGHT = "
            f"{{'RELEASE': '2026.11.3'}}"
        )
    return given


def meter_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters for ``voight.configure()`` in *given*."""
    values = {name: given[key] for key, name in OF_METER.items() if given.get(key) is not None}
    if "listeners" in values:
        values["listeners"] = [_callable("LISTENERS", listener) for listener in values["listeners"]]
    if "batch_owner" in values:
        values["batch_owner"] = _callable("BATCH_OWNER", values["batch_owner"])
    return values


def make_getters(given: Mapping[str, Any]) -> Getters:
    """
    Return the getters in *given*.

    Raises:
        ImproperlyConfigured: A getter cannot be imported or called.
    """
    named = {
        name: adapted_getter(_callable(key, given[key]))
        for key, name in GETTERS.items()
        if given.get(key) is not None
    }
    return Getters(**({"user": request_user} | named))


def _callable(key: str, value: Any) -> Callable[..., Any]:
    if isinstance(value, str):
        try:
            value = import_string(value)
        except ImportError as error:
            raise ImproperlyConfigured(f"VOIGHT[{key!r}]: {error}") from error
    if not callable(value):
        raise ImproperlyConfigured(
            f"VOIGHT[{key!r}] is {value!r}: name a callable, or its dotted path"
        )
    return value  # type: ignore[no-any-return]


def apply() -> None:
    """
    Apply the setting, unless it is already applied.

    Raises:
        ImproperlyConfigured: The setting cannot be used.
    """
    global getters, _configured, _meter
    given = project()
    getters = make_getters(given)
    values = meter_values(given)
    if values != _configured:
        # without values, the application's own configuration stays
        if values or current_meter() is _meter:
            try:
                voight.configure(**values)
            except voight.SettingsError as error:
                raise ImproperlyConfigured(f"VOIGHT: {error}") from error
        _configured, _meter = values, current_meter()
    if given.get("INSTRUMENT"):
        voight.instrument()  # never undone: uninstrument() would stop wrapped clients too


def read_getters() -> Getters:
    """
    Read and return the getters. Never raises: an unusable setting gives the default user getter.
    """
    global getters
    try:
        getters = make_getters(project())
    except Exception as error:
        warn_once(f"the setting VOIGHT cannot be used: {type(error).__name__}: {error}")
        getters = Getters(request_user)
    return getters


def _changed(*, setting: str, **_: Any) -> None:
    """React to ``override_settings`` and similar tools in the tests of a project."""
    global getters
    if setting == "VOIGHT":
        getters = None
        try:
            apply()
        except Exception as error:
            warn_once(f"the setting VOIGHT cannot be used: {type(error).__name__}: {error}")


setting_changed.connect(_changed, dispatch_uid="voight_django")
