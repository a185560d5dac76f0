"""The tags of costs other than the user."""

from typing import Any


def plan_of(request: Any) -> str | None:
    """
    Return the plan of the signed-in user. Called at the first LLM call of a request. It may read
    the database, also in an async view.
    """
    plan = request.user.groups.first()  # plans are groups here
    return plan.name if plan is not None else None
