"""
Taskiq: the calls of a task belong to the user who sent it.

::

    broker = RedisStreamBroker(url).with_middlewares(CostTagMiddleware())
"""

try:
    from taskiq import TaskiqMessage, TaskiqMiddleware, TaskiqResult
except ImportError as error:
    raise ImportError(
        "voight_taskiq needs Taskiq: pip install 'voight-middleware[taskiq]'"
    ) from error

from contextvars import ContextVar
from typing import Any

from voight_middleware.propagation.messages import KEY, astamp, bound_to_message

__all__ = ["CostTagMiddleware"]

_bound: ContextVar[bound_to_message | None] = ContextVar("voight_taskiq", default=None)


class CostTagMiddleware(TaskiqMiddleware):
    """
    Carry the tags of a task's sender to the worker that runs the task.

    The tags are resolved when the task is sent, and travel in the label ``voight``. Asynchronous
    getters are awaited. A retry keeps the tags of the first try. A task of a scheduler has no
    owner, unless it sets one itself (``voight.set_tags(user_id=...)``).
    """

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """Stamp a message without tags."""
        await astamp(message.labels)
        return message

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Bind the tags of a message."""
        bound = bound_to_message(message.labels.get(KEY), message.task_name)
        bound.__enter__()
        _bound.set(bound)
        return message

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Restore the previous tags."""
        bound = _bound.get()
        if bound is not None:
            _bound.set(None)
            bound.__exit__()
