"""
RQ: the calls of a job belong to whoever has enqueued it.

::

    queue = Queue(connection=redis, job_class=CostTagJob)      # rq worker --job-class voight_rq.CostTagJob
"""

try:
    from rq.job import Job
except ImportError as error:
    raise ImportError("voight_rq needs RQ: pip install 'voight-middleware[rq]'") from error

import functools
import inspect
from typing import Any

from voight_middleware.boundary.jobs import KEY, bound_to_message, stamp

__all__ = ["CostTagJob"]


class CostTagJob(Job):
    """
    A job that carries the tags of whoever has enqueued it, for the ``job_class`` of queues and workers.

    They are kept in ``job.meta["voight"]``, resolved when the job is made; retries and repeats keep them, and callbacks have them. A job
    of ``rq cron``, or of a queue of plain jobs, is nobody's, unless it says itself whose it is (``voight.set_tags(user_id=...)``).
    """

    @classmethod
    def create(cls, *args: Any, **kwargs: Any) -> Job:
        """Make a job, as ``Job.create`` does, with the tags of here and now."""
        job = super().create(*args, **kwargs)
        job.meta = dict(job.meta)  # the caller may use his own for another user's job
        stamp(job.meta)
        return job

    def perform(self) -> Any:
        """Run the job with the tags that it carries."""
        with self._bound():
            return super().perform()

    @property
    def success_callback(self) -> Any:
        """The callback, to be run with the tags of the job."""
        return self._inside(super().success_callback)

    @property
    def failure_callback(self) -> Any:
        """The callback, to be run with the tags of the job."""
        return self._inside(super().failure_callback)

    @property
    def stopped_callback(self) -> Any:
        """The callback, to be run with the tags of the job."""
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
        except Exception:  # a job whose data cannot be read has a callback all the same
            name = None
        return bound_to_message(self.meta.get(KEY), name)
