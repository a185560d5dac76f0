"""
Measures: the labels of a call in metrics, bounded in number.

No metric has a user, a tenant, a session or a route. Only a limited number of names that others
choose keep their name; later ones become ``other``. A model keeps its name only after a provider
has responded with it, because a requested model may come from a client.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from voight_middleware.exporters.otel.conventions import error_type, operation_name, provider_name
from voight_middleware.records.call import Call
from voight_middleware.records.tag_values import clean_value

OTHER = "other"
NONE = "none"

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""
Bounds of durations: those of ``gen_ai.client.operation.duration``
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/).
"""
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
"""Bounds of tokens per call: those of ``gen_ai.client.token.usage``, on the same page."""


class Names:
    """
    Keeps the first *most* names, and returns ``other`` for all others.

    Args:
        most: The maximum number of names.
        allowed: The only names to keep. None keeps the first ones.
    """

    def __init__(self, most: int, allowed: Collection[str] | None = None) -> None:
        self._most = most if allowed is None else 0
        self._known = set(allowed or ())

    def __call__(self, name: str | None, admit: bool = True) -> str:
        """Return *name* if it is kept; a new name is kept only with *admit*."""
        if name is None:
            return NONE
        if name not in self._known:
            if (
                not admit
                or len(self._known) >= self._most
                or len(name) > 200
                or clean_value(name) != name
            ):
                # half a character (a lone surrogate) in a label would fail every scrape
                return OTHER
            self._known.add(name)
        return name


class Labels(NamedTuple):
    """The labels of a call in metrics."""

    provider: str
    """As ``gen_ai.provider.name``."""
    operation: str
    model: str
    plan: str
    outcome: str
    error: str | None
    cost_status: str


class Measures:
    """
    Finds the labels of calls, in each process separately. Four workers may keep four sets of names.

    Args:
        plans: The known plans. None keeps the first *most_plans*.
        most_models: How many models keep their name.
        most_plans: How many plans keep their name.
    """

    def __init__(
        self, plans: Collection[str] | None = None, most_models: int = 100, most_plans: int = 20
    ) -> None:
        if isinstance(plans, str):
            raise TypeError("plans must be a collection of plans, not a text: write [plan]")
        self._models = Names(most_models)
        self._plans = Names(most_plans, plans)
        self._providers = Names(30)
        self._operations = Names(30)
        self._errors = Names(50)

    def labels(self, call: Call) -> Labels:
        """Return the labels of a finished and priced call."""
        return Labels(
            provider=self._providers(provider_name(call.provider)),
            operation=self._operations(operation_name(call.endpoint)),
            model=self._models(call.model)
            if call.model is not None
            else self._models(call.requested_model, admit=False),
            plan=self._plans(call.tags.plan),
            outcome=call.outcome,
            error=self._errors(error_type(call)) if call.outcome == "error" else None,
            cost_status=call.cost_status,
        )
