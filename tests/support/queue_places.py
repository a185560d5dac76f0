"""Wait for the calls of a task queue's workers."""

from collections.abc import Iterable

from .waiting import wait_until
from .workers import Workers


def wait_for_places(workers: Workers, places: Iterable[str], seconds: float = 60) -> None:
    """
    Return once a call was made in each of *places*.

    Raises:
        AssertionError: Some are missing after *seconds*; it says which, and what the workers have said last.
    """
    missing = set(places)

    def all_called() -> bool:
        missing.difference_update(call.tags.extra["place"] for call in workers.calls_so_far())
        return not missing

    try:
        wait_until(all_called, seconds, every=0.2)
    except AssertionError:
        said = workers.log.read_text(errors="replace")[-5000:]
        raise AssertionError(f"no call in {sorted(missing)}; the workers have said:\n{said}") from None
