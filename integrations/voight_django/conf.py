"""The setting ``VOIGHT`` of a Django project, and what is in force of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

import voight_middleware as voight
from voight_django.identity import request_user, two_faced
from voight_middleware.diagnostics import warn_once
from voight_middleware.middleware.getters import Getters
from voight_middleware.pipeline.meter import Meter, current_meter

GETTERS = {"USER_GETTER": "user", "PLAN_GETTER": "plan", "TENANT_GETTER": "tenant", "TAGS_GETTER": "tags"}
"""Called with the ``HttpRequest`` at its first LLM call; a dotted path or a callable, synchronous or not."""
OF_METER = {name.upper(): name for name in inspect.signature(voight.configure).parameters}
"""Handed to ``voight.configure()``."""
CODE = ("listeners", "batch_owner")
"""What of it is code, and no setting that a command line could read."""
NAMES = (*GETTERS, *OF_METER, "INSTRUMENT")
"""Every key that ``VOIGHT`` may have. ``INSTRUMENT``: whether every client of this process is metered, as by ``voight.instrument()``."""

getters: Getters | None = None
"""The getters in force; None until they are read, and again when the setting has changed."""
_configured: dict[str, Any] = {}
_meter: Meter | None = None


def project() -> Mapping[str, Any]:
    """
    The setting, as the project has written it.

    Raises:
        ImproperlyConfigured: It is no mapping.
    """
    given = getattr(settings, "VOIGHT", {})
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f"VOIGHT is a {type(given).__name__}: write a dictionary, such as VOIGHT = {{'RELEASE': '2026.11.3'}}")
    return given


def meter_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """What of *given* goes to ``voight.configure()``, by its names there."""
    values = {name: given[key] for key, name in OF_METER.items() if given.get(key) is not None}
    if "listeners" in values:
        values["listeners"] = [_callable("LISTENERS", listener) for listener in values["listeners"]]
    if "batch_owner" in values:
        values["batch_owner"] = _callable("BATCH_OWNER", values["batch_owner"])
    return values


def make_getters(given: Mapping[str, Any]) -> Getters:
    """
    The getters that *given* names.

    Raises:
        ImproperlyConfigured: One cannot be imported or called.
    """
    found = {name: two_faced(_callable(key, given[key])) for key, name in GETTERS.items() if given.get(key) is not None}
    return Getters(**({"user": request_user} | found))


def _callable(key: str, value: Any) -> Callable[..., Any]:
    if isinstance(value, str):
        try:
            value = import_string(value)
        except ImportError as error:
            raise ImproperlyConfigured(f"VOIGHT[{key!r}]: {error}") from error
    if not callable(value):
        raise ImproperlyConfigured(f"VOIGHT[{key!r}] is {value!r}: name a callable, or its dotted path")
    return value  # type: ignore[no-any-return]


def apply() -> None:
    """
    Bring the setting into force; nothing happens where it is in force already.

    Raises:
        ImproperlyConfigured: It cannot be used.
    """
    global getters, _configured, _meter
    given = project()
    getters = make_getters(given)
    values = meter_values(given)
    if values != _configured:
        if values or current_meter() is _meter:  # without values: what the application has configured itself stays
            try:
                voight.configure(**values)
            except voight.SettingsError as error:
                raise ImproperlyConfigured(f"VOIGHT: {error}") from error
        _configured, _meter = values, current_meter()
    if given.get("INSTRUMENT"):
        voight.instrument()  # never undone: uninstrument() would stop wrapped clients too


def read_getters() -> Getters:
    """The getters in force, read anew; never raises: a setting that cannot be used has the default user."""
    global getters
    try:
        getters = make_getters(project())
    except Exception as error:
        warn_once(f"the setting VOIGHT cannot be used: {type(error).__name__}: {error}")
        getters = Getters(request_user)
    return getters


def _changed(*, setting: str, **_: Any) -> None:
    """``override_settings`` and its like, in the tests of a project."""
    global getters
    if setting == "VOIGHT":
        getters = None
        try:
            apply()
        except Exception as error:
            warn_once(f"the setting VOIGHT cannot be used: {type(error).__name__}: {error}")


setting_changed.connect(_changed, dispatch_uid="voight_django")
