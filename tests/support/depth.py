"""How much a run repeats, kills and generates: a little in the default run, a lot under ``VOIGHT_TEST_DEEP=1`` (``tox -m full``)."""

import os

import pytest
from hypothesis import HealthCheck, settings

DEEP = bool(os.environ.get("VOIGHT_TEST_DEEP"))


def times(default: int, deep: int) -> int:
    """Return how often this run repeats something: kills a process, generates an example, makes a call."""
    return deep if DEEP else default


def leave_out_deep(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests marked ``deep`` from a run that is not."""
    if not DEEP:
        deep = [item for item in items if item.get_closest_marker("deep")]
        if deep:
            config.hook.pytest_deselected(items=deep)
            items[:] = [item for item in items if item not in deep]


settings.register_profile("default", max_examples=30, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("deep" if DEEP else "default")
