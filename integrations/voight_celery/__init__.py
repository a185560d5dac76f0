"""
Celery: the calls of a task belong to whoever has caused it.

::

    app = Celery(...)
    instrument_celery()
"""

try:
    from celery import signals
except ImportError as error:
    raise ImportError("voight_celery needs Celery: pip install 'voight-middleware[celery]'") from error

from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

from celery import current_task

from voight_middleware.pipeline.meter import current_meter
from voight_middleware.pipeline.open_calls import end_all
from voight_middleware.propagation.messages import KEY, NOBODY, bound_to_message, stamp

__all__ = ["instrument_celery"]

_bound: ContextVar[bound_to_message | None] = ContextVar("voight_celery", default=None)


def instrument_celery(app: object = None) -> None:  # noqa: ARG001
    """
    Carry the tags of whoever sends a task to the worker that runs it; repeated calls are harmless.

    To be called where both sides import it, such as the module that makes the Celery application. The tags travel as JSON in the
    message's header ``voight``, resolved when the task is sent; a retry keeps those of the first try. A task that is sent by beat, or by
    a process without this line, is nobody's, unless it says itself whose it is (``voight.set_tags(user_id=...)``). A task that runs in
    place (``task_always_eager``, ``apply()``) is part of its caller.

    Args:
        app: For the reader. Celery's signals are those of the process, so all of its applications are instrumented.
    """
    signals.before_task_publish.connect(_before_publish, weak=False, dispatch_uid="voight")
    signals.task_prerun.connect(_before_task, weak=False, dispatch_uid="voight")
    signals.task_postrun.connect(_after_task, weak=False, dispatch_uid="voight")
    signals.worker_process_shutdown.connect(_before_exit, weak=False, dispatch_uid="voight")


def _before_publish(headers: MutableMapping[str, Any] | None = None, body: Any = None, **_: Any) -> None:
    if headers is not None and not _is_retry(headers):
        stamp(headers)
        # Where a task is killed, its error callbacks are sent by the worker's parent process, which has bound nothing.
        embed = body[2] if isinstance(body, tuple) and len(body) == 3 else None
        if KEY in headers and isinstance(embed, dict) and embed.get("errbacks"):
            embed["errbacks"] = [_stamped(callback, headers[KEY]) for callback in embed["errbacks"]]


def _is_retry(headers: MutableMapping[str, Any]) -> bool:
    """Whether the running task sends itself again: it does so with the headers that it came with, and with none if there were none."""
    if not current_task:  # type: ignore[truthy-bool]  # a proxy of what may be None
        return False
    request = current_task.request
    return request.id is not None and headers.get("id") == request.id and (headers.get("retries") or 0) > request.retries


def _before_task(task: Any, **_: Any) -> None:
    request = task.request
    if request.is_eager:
        return
    text = (request.headers or {}).get(KEY)
    # One chord may have tasks of many users: what comes after them is of whom has sent it, and not of the last one's.
    _stamp_signature(request.chord, text)
    bound = bound_to_message(text, task.name)
    bound.__enter__().on_second_user = lambda: _stamp_next(request, text)
    _bound.set(bound)


def _after_task(task: Any, **_: Any) -> None:
    bound = _bound.get()
    if bound is not None and not task.request.is_eager:
        _bound.set(None)
        bound.__exit__()


def _before_exit(**_: Any) -> None:
    end_all()  # a process of the pool ends without `atexit`
    current_meter().close()


def _stamp_next(request: Any, text: str | None) -> None:
    """Name whose the tasks are that Celery sends when the one of *request* has ended: its callbacks, and the rest of its chain."""
    for signature in (*(request.callbacks or ()), *(request.chain or ())):
        _stamp_signature(signature, text)


def _stamp_signature(signature: Any, text: str | None) -> None:
    """Name whose the task of a signature is. It is the copy that came with the message of the running one."""
    if isinstance(signature, dict):
        signature["options"] = _stamped(signature, text)["options"]


def _stamped(signature: Any, text: str | None) -> Any:
    """A copy of *signature* that names whose its task is; the sender may use his own for somebody else."""
    if not isinstance(signature, dict):
        return signature
    options = signature.get("options") or {}
    return {**signature, "options": {**options, "headers": {KEY: text or NOBODY, **(options.get("headers") or {})}}}
