"""
Dramatiq: the calls of an actor belong to whoever has sent the message.

::

    broker = RedisBroker()
    instrument_dramatiq(broker)
"""

try:
    from dramatiq import Broker, Message, Middleware
except ImportError as error:
    raise ImportError("voight_dramatiq needs Dramatiq: pip install 'voight-middleware[dramatiq]'") from error

import threading
from collections.abc import Mapping
from typing import Any

from voight_middleware.propagation.messages import KEY, NOBODY, bound_to_message, stamp

__all__ = ["CostTagMiddleware", "instrument_dramatiq"]


def instrument_dramatiq(broker: Broker) -> None:
    """
    Carry the tags of whoever sends a message to the worker that processes it; repeated calls are harmless.

    To be called where both sides import it, such as the module that makes the broker. A message that is sent by a scheduler, or by a
    process without this line, is nobody's, unless the actor says itself whose it is (``voight.set_tags(user_id=...)``).
    """
    if not any(isinstance(middleware, CostTagMiddleware) for middleware in broker.middleware):
        # First in and last out: pipelines and callbacks of the other middleware send their messages while the tags are bound.
        first = {"before": type(broker.middleware[0])} if broker.middleware else {}
        broker.add_middleware(CostTagMiddleware(), **first)


class CostTagMiddleware(Middleware):
    """Puts the tags of here and now into a message's options, and binds them around the actor. ``instrument_dramatiq`` adds it."""

    def __init__(self) -> None:
        self._local = threading.local()

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int) -> None:
        """Stamp a message that has no tags yet: a retry keeps its own."""
        self._local.stamped = None
        if KEY not in message.options:
            stamp(message.options)
            self._local.stamped = message.options

    def after_enqueue(self, broker: Broker, message: Message[Any], delay: int) -> None:
        """Leave the sender's own message as it was: he may send it again, for somebody else."""
        if self._local.__dict__.get("stamped") is message.options:
            message.options.pop(KEY, None)

    def before_process_message(self, broker: Broker, message: Any) -> None:
        """Bind the tags of a message."""
        text = message.options.get(KEY)
        _stamp_completion(message.options, text)
        bound = bound_to_message(text, message.actor_name)
        bound.__enter__().on_second_user = lambda: _stamp_following(message.options.get("pipe_target"), text)
        self._local.bound = bound

    def after_process_message(self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None) -> None:
        """Put back what was bound before."""
        bound, self._local.bound = self._local.__dict__.get("bound"), None
        if bound is not None:
            bound.__exit__()

    def after_skip_message(self, broker: Broker, message: Any) -> None:
        """Put back what was bound before."""
        self.after_process_message(broker, message)


def _stamp_completion(options: Mapping[str, Any], text: str | None) -> None:
    """A group may have messages of many users: what comes after them is of whom has sent it, and not of the last one's."""
    for following in options.get("group_completion_callbacks") or ():
        _stamp_following(following, text)
    if isinstance(target := options.get("pipe_target"), Mapping):  # the last message of a pipeline completes it
        _stamp_completion(target["options"], text)


def _stamp_following(following: Any, text: str | None) -> None:
    """Name whose a message is that will be sent. It is the copy that came with the one that is being processed."""
    if isinstance(following, Mapping):
        following["options"].setdefault(KEY, text or NOBODY)
