"""Wait for conditions instead of for a time."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], seconds: float = 30, *, every: float = 0.005) -> None:
    """
    Return once *condition* holds.

    Raises:
        AssertionError: It did not hold within *seconds*.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{condition} did not hold within {seconds} s"
        time.sleep(every)
