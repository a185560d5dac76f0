"""
ARQ: the calls of a job belong to the user who enqueued it.

::

    instrument_arq()

    class WorkerSettings: ...
"""

from importlib import import_module
from typing import Any

try:
    # As untyped modules: the patches below are of ARQ's internals, and ARQ cannot be installed
    # together with Celery's transport.
    _connections: Any = import_module("arq.connections")
    _worker: Any = import_module("arq.worker")
except ImportError as error:
    raise ImportError("voight_arq needs ARQ: pip install 'voight-middleware[arq]'") from error

import functools
import pickle
from collections.abc import Callable
from contextvars import ContextVar

from voight_middleware.propagation.messages import KEY, atags_for_message, bound_to_message

__all__ = ["instrument_arq"]

_Serializer = Callable[[Any], Any]
_text: ContextVar[str | None] = ContextVar("voight_arq", default=None)
_received: ContextVar[list[bound_to_message] | None] = ContextVar(
    "voight_arq_received", default=None
)
_instrumented = False


def instrument_arq() -> None:
    """
    Carry the tags of a job's sender to the worker that runs the job. Repeated calls are harmless.

    Call this in a module that both sides import. ARQ has no headers, so the tags are stored beside
    function and arguments in the job's data. A worker without this line ignores them. The tags are
    resolved when the job is enqueued, and asynchronous getters are awaited. A retry keeps the tags.
    A cron job has no owner, unless it sets one itself (``voight.set_tags(user_id=...)``).
    """
    global _instrumented
    if _instrumented:
        return
    _instrumented = True
    _connections.ArqRedis.enqueue_job = _enqueue_job(_connections.ArqRedis.enqueue_job)
    _connections.serialize_job = _serialize_job(_connections.serialize_job)
    _worker.Worker.run_job = _run_job(_worker.Worker.run_job)
    _worker.deserialize_job_raw = _deserialize_job(_worker.deserialize_job_raw)


def _enqueue_job(original: Any) -> Any:
    @functools.wraps(original)
    async def enqueue_job(*args: Any, **kwargs: Any) -> Any:
        outer = _text.get()
        _text.set(await atags_for_message())
        try:
            return await original(*args, **kwargs)
        finally:
            _text.set(outer)

    return enqueue_job


def _serialize_job(original: Any) -> Any:
    @functools.wraps(original)
    def serialize_job(*args: Any, serializer: _Serializer | None = None, **kwargs: Any) -> Any:
        text = _text.get()
        if text is None:
            return original(*args, serializer=serializer, **kwargs)

        def serialize(data: dict[str, Any]) -> Any:
            return (serializer or pickle.dumps)({**data, KEY: text})

        return original(*args, serializer=serialize, **kwargs)

    return serialize_job


def _run_job(original: Any) -> Any:
    @functools.wraps(original)
    async def run_job(*args: Any, **kwargs: Any) -> Any:
        bound: list[bound_to_message] = []
        _received.set(bound)
        try:
            return await original(*args, **kwargs)
        finally:
            _received.set(None)
            for message in bound:
                message.__exit__()

    return run_job


def _deserialize_job(original: Any) -> Any:
    @functools.wraps(original)
    def deserialize_job_raw(raw: Any, *, deserializer: _Serializer | None = None) -> Any:
        text = None

        def deserialize(raw: Any) -> Any:
            nonlocal text
            data = (deserializer or pickle.loads)(raw)
            text = data.get(KEY)
            return data

        job = original(raw, deserializer=deserialize)
        bound = _received.get()
        if bound is not None:
            # ARQ runs each job in a separate task, so no other job sees this binding.
            bound.append(bound_to_message(text, job[0]))
            bound[-1].__enter__()
        return job

    return deserialize_job_raw
