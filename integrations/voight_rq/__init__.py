"""
RQ: the calls of a job belong to the user who enqueued it.

::

    queue = Queue(connection=redis, job_class=CostTagJob)

A worker needs ``--job-class voight_rq.CostTagJob`` only if the modules of its jobs do not import
``voight_rq``. With RQ 3.0 or newer, importing it is enough: jobs and their callbacks get the tags
that they carry.
"""

try:
    from rq.job import Job, get_current_job
except ImportError as error:
    raise ImportError("voight_rq needs RQ: pip install 'voight-middleware[rq]'") from error

import dis
import functools
import inspect
from collections.abc import Callable
from typing import Any

from voight_middleware.diagnostics import warn_once
from voight_middleware.propagation.messages import KEY, bound_to_message, stamp

__all__ = ["CostTagJob"]


class CostTagJob(Job):
    """
    A job that carries the tags of its sender, for the ``job_class`` of queues and workers.

    The tags are resolved when the job is made, and stored in ``job.meta["voight"]``. Retries,
    repeats and callbacks have the same tags. A job of ``rq cron``, or of a queue of plain jobs, has
    no owner, unless it sets one itself (``voight.set_tags(user_id=...)``).
    """

    @classmethod
    def create(cls, *args: Any, **kwargs: Any) -> Job:
        """Make a job, as ``Job.create`` does, with the current tags."""
        job = super().create(*args, **kwargs)
        job.meta = dict(job.meta)  # the caller may reuse the original for another user's job
        stamp(job.meta)
        return job

    def perform(self) -> Any:
        """Run the job with the tags that it carries."""
        with self._bound():
            return super().perform()

    @property
    def success_callback(self) -> Any:
        """The callback, wrapped to run with the tags of the job."""
        return self._inside(super().success_callback)

    @property
    def failure_callback(self) -> Any:
        """The callback, wrapped to run with the tags of the job."""
        return self._inside(super().failure_callback)

    @property
    def stopped_callback(self) -> Any:
        """The callback, wrapped to run with the tags of the job."""
        return self._inside(super().stopped_callback)

    def _inside(self, callback: Any) -> Any:
        if callback is None or inspect.iscoroutinefunction(callback):  # RQ refuses the latter
            return callback

        @functools.wraps(callback)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._bound():
                return callback(*args, **kwargs)

        return run

    def _bound(self) -> bound_to_message:
        try:
            name = self.func_name
        except Exception:  # a job with unreadable data still has callbacks
            name = None
        return bound_to_message(self.meta.get(KEY), name)


class _Begun(CostTagJob):
    """
    A plain job whose module imports this one. RQ then reads the job's function again, and calls it.
    """

    @property
    def func(self) -> Any:
        function = super().func
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def arun(*args: Any, **kwargs: Any) -> Any:
                with self._bound():
                    return await function(*args, **kwargs)

            return arun
        return self._inside(function)


def _as_ours(perform: Callable[[Job], Any]) -> Callable[[Job], Any]:
    """Run plain jobs as ours: a worker without our job class would silently drop their tags."""

    @functools.wraps(perform)
    def run(self: Job) -> Any:
        if type(self) is Job:
            self.__class__ = CostTagJob
            return self.perform()
        return perform(self)

    return run


Job.perform = _as_ours(Job.perform)  # type: ignore[method-assign, assignment]
_running = get_current_job()
if type(_running) is Job:
    _running.__class__ = _Begun
    # RQ before 3.0 has already read the function, so it is too late for the first job of each
    # process.
    if sum(step.argval == "func" for step in dis.get_instructions(Job._execute)) < 2:  # pyright: ignore[reportPrivateUsage]
        warn_once(
            "calls of RQ jobs have no owner here; start the worker with --job-class "
            "voight_rq.CostTagJob"
        )
