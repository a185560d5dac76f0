"""Getters that raise what ends a task or a process."""

import asyncio
from typing import Any

import pytest

from voight_middleware.diagnostics import counters
from voight_middleware.middleware.getters import Getters
from voight_middleware.middleware.request_scope import RequestScope


def scope_of(getter: Any) -> RequestScope:
    """Return the scope of a request with this getter."""
    return RequestScope(lambda: "the request", Getters(getter), None)


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["def", "async def"])
async def test_what_a_getter_raises_is_counted_and_not_raised_into_the_call(error: BaseException, asynchronous: bool) -> None:
    """The call has no owner, and goes on."""

    def fail(request: Any) -> str:
        raise error

    async def afail(request: Any) -> str:
        raise error

    before = counters["getter_errors"]
    owner = await scope_of(afail if asynchronous else fail).aresolve()
    assert (owner.tags.user_id, owner.attribution) == (None, "error")
    assert scope_of(fail).resolve().attribution == "error"
    assert counters["getter_errors"] == before + 2


async def test_a_task_that_is_cancelled_while_it_asks_is_cancelled() -> None:
    """The cancellation is the application's."""
    asking = asyncio.Event()

    async def wait(request: Any) -> str:
        asking.set()
        await asyncio.Event().wait()
        return "never"

    task = asyncio.create_task(scope_of(wait).aresolve())
    await asking.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_an_interrupt_is_not_kept() -> None:
    """Ctrl-C ends the program."""

    def interrupted(request: Any) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scope_of(interrupted).resolve()
