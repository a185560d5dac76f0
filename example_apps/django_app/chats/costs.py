"""What the costs are broken down by, beside the user."""

from typing import Any

from django.contrib.auth.models import User


def plan_of(request: Any) -> str | None:
    """The plan of the signed-in user. Asked at the first LLM call of a request; it may read the database, in an async view too."""
    return plan_of_user(request.user)


def plan_of_user(user: User) -> str | None:
    """Plans are groups here."""
    plan = user.groups.first()
    return plan.name if plan is not None else None
