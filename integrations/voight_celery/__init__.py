"""
Celery: the calls of a task belong to the user who sent it.

::

    app = Celery(...)
    instrument_celery()
"""

try:
    from celery import signals
except ImportError as error:
    raise ImportError(
        "voight_celery needs Celery: pip install 'voight-middleware[celery]'"
    ) from error

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
    Carry the tags of a task's sender to the worker that runs the task. Repeated calls are harmless.

    Call this in a module that both sides import, such as the one that makes the Celery application.
    The tags are resolved when the task is sent, and travel as JSON in the message header
    ``voight``. A retry keeps the tags of the first try. A task of beat, or of a process without
    this line, has no owner, unless it sets one itself (``voight.set_tags(user_id=...)``). A task
    that runs in place (``task_always_eager``, ``apply()``) is part of its caller.

    Args:
        app: Ignored; it documents your intent. Celery's signals belong to the process, so all its
            applications are instrumented.
    """
    signals.before_task_publish.connect(_before_publish, weak=False, dispatch_uid="voight")
    signals.task_prerun.connect(_before_task, weak=False, dispatch_uid="voight")
    signals.task_postrun.connect(_after_task, weak=False, dispatch_uid="voight")
    signals.worker_process_shutdown.connect(_before_exit, weak=False, dispatch_uid="voight")


def _before_publish(
    headers: MutableMapping[str, Any] | None = None, body: Any = None, **_: Any
) -> None:
    if headers is not None and not _is_retry(headers):
        stamp(headers)
        # After a task is killed, the worker's parent process sends its error callbacks. That
        # process has no tags bound.
        embed = body[2] if isinstance(body, tuple) and len(body) == 3 else None
        if KEY in headers and isinstance(embed, dict) and embed.get("errbacks"):
            embed["errbacks"] = [_stamped(callback, headers[KEY]) for callback in embed["errbacks"]]


def _is_retry(headers: MutableMapping[str, Any]) -> bool:
    """
    Return whether the running task sends itself again. It does so with the headers that it had, or
    with none.
    """
    if not current_task:  # type: ignore[truthy-bool]  # a proxy that may be None
        return False
    request = current_task.request
    return (
        request.id is not None
        and headers.get("id") == request.id
        and (headers.get("retries") or 0) > request.retries
    )


def _before_task(task: Any, **_: Any) -> None:
    request = task.request
    if request.is_eager:
        return
    text = (request.headers or {}).get(KEY)
    # One chord may have tasks of many users. Its callback belongs to the sender of the chord, not
    # to the last task's user.
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
    end_all()  # a pool process ends without `atexit`
    current_meter().close()


def _stamp_next(request: Any, text: str | None) -> None:
    """
    Stamp the tasks that Celery sends after the task of *request*: its callbacks, and the rest of
    its chain.
    """
    for signature in (*(request.callbacks or ()), *(request.chain or ())):
        _stamp_signature(signature, text)


def _stamp_signature(signature: Any, text: str | None) -> None:
    """Stamp the task of a signature. The signature is the copy in the running task's message."""
    if isinstance(signature, dict):
        signature["options"] = _stamped(signature, text)["options"]


def _stamped(signature: Any, text: str | None) -> Any:
    """Return a stamped copy of *signature*. The sender may reuse the original for another user."""
    if not isinstance(signature, dict):
        return signature
    options = signature.get("options") or {}
    return {
        **signature,
        "options": {**options, "headers": {KEY: text or NOBODY, **(options.get("headers") or {})}},
    }
