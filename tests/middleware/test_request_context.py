"""The tag context of a request: its scope is made at the first use, and it is undone in any copy of the context."""

from __future__ import annotations

import contextvars
import threading
from contextlib import suppress
from typing import Any

import pytest

import voight_middleware as voight
from voight_middleware.context.context import current_context
from voight_middleware.middleware import asgi
from voight_middleware.middleware.getters import Getters
from voight_middleware.middleware.request_scope import RequestContext, RequestScope

SCOPE: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": []}


class Context(RequestContext):
    """Counts the scopes that are made."""

    __slots__ = ("getter", "scopes")

    def __init__(self, getter: Any = lambda request: "alice") -> None:
        self.made, self.ended = None, False
        self.getter = getter
        self.scopes: list[RequestScope] = []

    def make_scope(self) -> RequestScope:
        self.scopes.append(RequestScope(lambda: "the request", Getters(self.getter), None))
        return self.scopes[-1]


async def nothing(*_: Any) -> Any: ...


async def test_a_request_without_a_call_makes_no_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most requests make no LLM call. One that does, or that tags, makes one scope."""
    made: list[asgi.AsgiScope] = []

    class Counted(asgi.AsgiScope):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(asgi, "AsgiScope", Counted)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/tags":
            with voight.tag(feature="summary"):
                assert voight.current_tags().user_id == "alice"
            voight.set_tags(plan="pro")

    middleware = voight.CostTagMiddleware(app, lambda connection: "alice")
    await middleware(dict(SCOPE), nothing, nothing)
    assert made == []
    await middleware({**SCOPE, "path": "/tags"}, nothing, nothing)
    assert len(made) == 1
    assert current_context().scope is None


def test_threads_that_ask_first_at_once_share_the_scope() -> None:
    """The user of a request is found once."""
    ready = threading.Barrier(4)

    class Slow(Context):
        __slots__ = ()

        def make_scope(self) -> RequestScope:
            with suppress(threading.BrokenBarrierError):
                ready.wait(0.01)  # for the others, who are not let in here
            return super().make_scope()

    context, found = Slow(), list[RequestScope]()
    threads = [threading.Thread(target=lambda: found.append(context.scope)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {id(scope) for scope in found} == {id(context.made)}
    assert len(context.scopes) == 1


def test_a_thread_that_makes_the_scope_while_the_request_ends() -> None:
    """The scope has ended as well, whichever is first: it gathers no calls that nobody would attribute."""

    class Slow(Context):
        __slots__ = ()

        def make_scope(self) -> RequestScope:
            made = super().make_scope()
            self.end()  # the request ends just now, and does not know this scope
            return made

    context = Slow(lambda request: None)
    context.scope.defer("a call")
    assert context.scope.pending is None


def test_a_scope_of_a_request_that_has_ended_resolves_once_and_lets_go() -> None:
    """A task may outlive its request and be the first to ask: it gets the user, and the request is let go."""
    context = Context()
    context.end()

    assert context.resolve().tags.user_id == "alice"
    assert context.scope._request is None
    context.scope.defer("a call")
    assert context.scope.pending is None


def test_a_request_whose_steps_run_in_several_contexts() -> None:
    """A server that is not asyncio may do so: the middleware does not fail, and leaves nothing bound where the request ended."""
    seen: list[Any] = []

    class Step:
        def __await__(self) -> Any:
            yield

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(voight.current_tags().user_id)
        await Step()

    request = voight.CostTagMiddleware(app, lambda connection: "alice")(dict(SCOPE), nothing, nothing)
    first, second = contextvars.copy_context(), contextvars.copy_context()
    first.run(request.send, None)  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        second.run(request.send, None)  # type: ignore[attr-defined]

    assert seen == ["alice"]
    assert second.run(current_context).scope is None
    assert current_context().scope is None
