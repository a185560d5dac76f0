"""
Measures: what of a call goes into metrics, with labels whose number is bounded.

No metric has a user, a tenant, a session or a route. Names that somebody else chooses are kept for the first so many, and are ``other``
afterwards; a model gets a name only once a provider has answered with it, as the model that is asked for may come from a client.
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
"""Bounds of durations: those of ``gen_ai.client.operation.duration`` (https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/)."""
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
"""Bounds of tokens per call: those of ``gen_ai.client.token.usage``, in the same place."""


class Names:
    """
    The first *most* names that are seen, and ``other`` for the rest.

    Args:
        most: How many there may be.
        allowed: The only ones that there may be; None is whichever come first.
    """

    def __init__(self, most: int, allowed: Collection[str] | None = None) -> None:
        self._most = most if allowed is None else 0
        self._known = set(allowed or ())

    def __call__(self, name: str | None, admit: bool = True) -> str:
        """*name* if it has its place, or gets one where *admit* says so."""
        if name is None:
            return NONE
        if name not in self._known:
            if not admit or len(self._known) >= self._most or len(name) > 200 or clean_value(name) != name:
                return OTHER  # half a character in a label would fail every scrape
            self._known.add(name)
        return name


class Labels(NamedTuple):
    """What a call is counted under."""

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
    Finds the labels of calls. In each process on its own: four workers may have four different sets of first names.

    Args:
        plans: The plans that there are. None admits the first *most_plans* that are seen.
        most_models: How many models have a name of their own.
        most_plans: How many plans have.
    """

    def __init__(self, plans: Collection[str] | None = None, most_models: int = 100, most_plans: int = 20) -> None:
        if isinstance(plans, str):
            raise TypeError("plans must be a collection of plans, not one text")
        self._models = Names(most_models)
        self._plans = Names(most_plans, plans)
        self._providers = Names(30)
        self._operations = Names(30)
        self._errors = Names(50)

    def labels(self, call: Call) -> Labels:
        """The labels of a call that has ended and been priced."""
        return Labels(
            provider=self._providers(provider_name(call.provider)),
            operation=self._operations(operation_name(call.endpoint)),
            model=self._models(call.model) if call.model is not None else self._models(call.requested_model, admit=False),
            plan=self._plans(call.tags.plan),
            outcome=call.outcome,
            error=self._errors(error_type(call)) if call.outcome == "error" else None,
            cost_status=call.cost_status,
        )
