"""What the costs are broken down by, beside the user."""

from typing import Any


def plan_of(request: Any) -> str | None:
    """The plan of the signed-in user. Asked at the first LLM call of a request; it may read the database, in an async view too."""
    plan = request.user.groups.first()  # plans are groups here
    return plan.name if plan is not None else None
