"""
Taskiq: the calls of a task belong to whoever has sent it.

::

    broker = RedisStreamBroker(url).with_middlewares(CostTagMiddleware())
"""

try:
    from taskiq import TaskiqMessage, TaskiqMiddleware, TaskiqResult
except ImportError as error:
    raise ImportError("voight_taskiq needs Taskiq: pip install 'voight-middleware[taskiq]'") from error

from contextvars import ContextVar
from typing import Any

from voight_middleware.propagation.messages import KEY, astamp, bound_to_message

__all__ = ["CostTagMiddleware"]

_bound: ContextVar[bound_to_message | None] = ContextVar("voight_taskiq", default=None)


class CostTagMiddleware(TaskiqMiddleware):
    """
    Carry the tags of whoever sends a task to the worker that runs it.

    They travel in the label ``voight``, resolved when the task is sent; asynchronous getters are awaited. A retry keeps those of the first
    try. A task that is sent by a scheduler is nobody's, unless it says itself whose it is (``voight.set_tags(user_id=...)``).
    """

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """Stamp a message that has no tags yet."""
        await astamp(message.labels)
        return message

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Bind the tags of a message."""
        bound = bound_to_message(message.labels.get(KEY), message.task_name)
        bound.__enter__()
        _bound.set(bound)
        return message

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Put back what was bound before."""
        bound = _bound.get()
        if bound is not None:
            _bound.set(None)
            bound.__exit__()
