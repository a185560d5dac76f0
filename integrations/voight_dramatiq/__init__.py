"""
Dramatiq: the calls of an actor belong to the user who sent the message.

::

    broker = RedisBroker()
    instrument_dramatiq(broker)
"""

try:
    from dramatiq import Broker, Message, Middleware
except ImportError as error:
    raise ImportError(
        "voight_dramatiq needs Dramatiq: pip install 'voight-middleware[dramatiq]'"
    ) from error

import threading
from collections.abc import Mapping
from typing import Any

from voight_middleware.propagation.messages import KEY, NOBODY, bound_to_message, stamp

__all__ = ["CostTagMiddleware", "instrument_dramatiq"]


def instrument_dramatiq(broker: Broker) -> None:
    """
    Carry the tags of a message's sender to the worker that processes it. Repeated calls are
    harmless.

    Call this in a module that both sides import, such as the one that makes the broker. A message
    of a scheduler, or of a process without this line, has no owner, unless the actor sets one
    itself (``voight.set_tags(user_id=...)``).
    """
    if not any(isinstance(middleware, CostTagMiddleware) for middleware in broker.middleware):
        # First: other middleware sends the messages of pipelines and callbacks while the tags are
        # bound.
        first = {"before": type(broker.middleware[0])} if broker.middleware else {}
        broker.add_middleware(CostTagMiddleware(), **first)


class CostTagMiddleware(Middleware):
    """
    Stores the current tags in a message's options, and binds them around the actor.
    ``instrument_dramatiq`` adds it.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int) -> None:
        """Stamp a message without tags. A retry keeps its tags."""
        self._local.stamped = None
        if KEY not in message.options:
            stamp(message.options)
            self._local.stamped = message.options

    def after_enqueue(self, broker: Broker, message: Message[Any], delay: int) -> None:
        """Restore the sender's message, which may be sent again for another user."""
        if self._local.__dict__.get("stamped") is message.options:
            message.options.pop(KEY, None)

    def before_process_message(self, broker: Broker, message: Any) -> None:
        """Bind the tags of a message."""
        text = message.options.get(KEY)
        _stamp_completion(message.options, text)
        bound = bound_to_message(text, message.actor_name)
        bound.__enter__().on_second_user = lambda: _stamp_following(
            message.options.get("pipe_target"), text
        )
        self._local.bound = bound

    def after_process_message(
        self,
        broker: Broker,
        message: Any,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        """Restore the previous tags."""
        bound, self._local.bound = self._local.__dict__.get("bound"), None
        if bound is not None:
            bound.__exit__()

    def after_skip_message(self, broker: Broker, message: Any) -> None:
        """Restore the previous tags."""
        self.after_process_message(broker, message)


def _stamp_completion(options: Mapping[str, Any], text: str | None) -> None:
    """
    Stamp the completion of a group. It belongs to the sender of the group, not to the user of the
    last message.
    """
    for following in options.get("group_completion_callbacks") or ():
        _stamp_following(following, text)
    # the last message of a pipeline completes the group
    if isinstance(target := options.get("pipe_target"), Mapping):
        _stamp_completion(target["options"], text)


def _stamp_following(following: Any, text: str | None) -> None:
    """Stamp a message that will be sent. It is the copy in the current message."""
    if isinstance(following, Mapping):
        following["options"].setdefault(KEY, text or NOBODY)
