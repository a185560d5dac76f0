"""WebSockets of the openai SDK: how connections end, and which of them are metered."""

import gc
import inspect
import subprocess
import sys
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from voight_middleware import Usage, configure, instrument, metered_call, tag, uninstrument, wrap
from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.meter import swap_meter

from ..support.calls import Calls
from .sockets import (
    BYE,
    CREATE,
    CUT,
    PIECES,
    Events,
    Server,
    ask,
    both_kinds,
    done,
    needs_live,
    needs_responses,
    opened,
    read_until,
    realtime_answer,
    realtimes,
    responses_answer,
)

pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # openai, websockets 17


# -- how a connection ends


@pytest.mark.slow
@needs_responses
@both_kinds
@pytest.mark.parametrize("end", ["close", "cut", "bye", "drop"])
async def test_a_connection_that_ends_in_the_middle_is_estimated(end: str, asynchronous: bool, server: Server, calls: Calls) -> None:
    """The response that went on is a call that was aborted, with the tokens that were streamed; and so is one that was asked for."""
    how = {"cut": [CUT], "bye": [BYE]}.get(end, [])
    server.answers = lambda _, event: [*responses_answer(event)[:3], *how] if event["model"] == "a" else []
    client = wrap(server.client(asynchronous=asynchronous))
    manager = client.responses.connect()
    connection = await done(manager.enter())
    line = connection._connection
    if end != "drop":
        await done(connection.send({**CREATE, "model": "b"}))
    await done(connection.send({**CREATE, "model": "a"}))
    if end in ("cut", "bye"):
        with pytest.raises(ConnectionClosed):
            await read_until(connection)
    else:
        await read_until(connection, "response.output_text.delta")
        await done(connection.recv())
    before_closing = len(calls.all())
    if end == "drop":
        del manager, connection
        gc.collect()
    else:
        await done(connection.close())
        await done(connection.close())
    await done(line.close())

    kept = {call.requested_model: call for call in calls.all()}
    assert before_closing == (2 if end in ("cut", "bye") else 0)
    assert len(kept) == len(calls.all()) == (1 if end == "drop" else 2)
    began = kept["a" if end == "drop" else "b"]  # the server answers the second, which is taken for the first
    assert (began.outcome, began.estimated_output) == ("aborted", 3)
    assert (began.estimated_input or 0) >= len(str(CREATE["input"])) // 4
    assert began.error == ({"cut": "ConnectionClosedError", "bye": "ConnectionClosedOK"}.get(end))


@needs_live
def test_a_connection_that_is_open_at_the_end_of_the_process_is_counted(server: Server, scripts: Any) -> None:
    """Nobody has closed it; its seconds are in the ledger all the same."""
    scripts.run(
        """
        import sys, openai, voight_middleware as voight
        client = voight.wrap(openai.OpenAI(api_key="k", base_url=f"http://127.0.0.1:{sys.argv[1]}/v1"))
        connection = client.live.connect().enter()
        connection.send({"type": "session.start", "session": {"model": "gpt-live-1"}})
        while connection.recv().type != "session.usage.updated":
            pass
        """,
        str(server.port),
    )

    ledger = open_ledger(f"sqlite:///{scripts.ledger}")
    try:
        assert [call.usage for call in ledger.calls()] == [Usage(seconds=2)]
    finally:
        ledger.close()


@pytest.mark.slow
@realtimes
async def test_speech_that_is_broken_off_is_estimated_by_its_transcript(path: str, server: Server, calls: Calls) -> None:
    """Audio is not counted as text; what the session remembers, and bills as input, is not known."""
    server.answers = lambda *_: realtime_answer()[:-1]
    async with opened(wrap(server.client()), path) as connection:
        await done(connection.send({"type": "response.create"}))
        for _ in range(7):
            await done(connection.recv())

    call = calls.one()
    assert (call.outcome, call.model) == ("aborted", "gpt-realtime-2025-08-28")
    assert (call.estimated_output, call.estimated_input) == ((len("".join(PIECES)) + 3) // 4, None)


@pytest.mark.slow
@needs_responses
@both_kinds
async def test_a_reconnection_keeps_the_owner(asynchronous: bool, server: Server, calls: Calls) -> None:
    """What went on when the line broke was aborted; what follows over the new one belongs to the same user."""

    def answers(_: str, event: dict[str, Any]) -> Events:
        return [*responses_answer(event)[:2], CUT] if len(server.received) == 1 else responses_answer(event)

    server.answers = answers
    server.greeting = lambda _: [] if len(server.paths) == 1 else [{"type": "response.queued", "response": {"id": "resp_0"}}]
    client = wrap(server.client(asynchronous=asynchronous))
    with tag(user_id="u_1"):
        manager = opened(client, "responses", on_reconnecting=lambda _: None, initial_delay=0.001)
    async with manager as connection:
        await done(connection.send(CREATE))
        if asynchronous:
            async for event in connection:
                if event.type == "response.queued":
                    await connection.send(CREATE)
                elif event.type == "response.completed":
                    break
        else:
            for event in connection:
                if event.type == "response.queued":
                    connection.send(CREATE)
                elif event.type == "response.completed":
                    break

    assert len(server.paths) == 2
    assert [(call.outcome, call.tags.user_id) for call in calls.all()] == [("aborted", "u_1"), ("ok", "u_1")]


@needs_responses
async def test_what_could_not_be_sent_is_no_call(server: Server, calls: Calls) -> None:
    """The line was closed already."""
    async with opened(wrap(server.client()), "responses") as connection:
        await done(connection.close())
        with pytest.raises(ConnectionClosed):
            await done(connection.send(CREATE))

    assert calls.all() == []


# -- what is metered, and what is not


@pytest.mark.slow
@realtimes
@both_kinds
async def test_only_wrapped_clients_are_metered(path: str, asynchronous: bool, server: Server, calls: Calls) -> None:
    """A client beside them is not, even if the classes are patched by then; a copy of a wrapped one is."""
    client = wrap(server.client(asynchronous=asynchronous))
    other = server.client(asynchronous=asynchronous)
    for number, one in enumerate((client, other, client.with_options(timeout=5), client.copy())):
        with tag(user_id=f"u_{number}"):
            async with opened(one, path) as connection:
                await ask(connection, {"type": "response.create"})

    assert [call.tags.user_id for call in calls.all()] == ["u_0", "u_2", "u_3"]


@pytest.mark.slow
@realtimes
@both_kinds
@pytest.mark.parametrize("when", ["before", "after"])
async def test_every_client_of_an_instrumented_process(when: str, path: str, asynchronous: bool, server: Server, calls: Calls) -> None:
    """Those too whose resources were made before; and a client that is wrapped besides counts once."""
    client = server.client(asynchronous=asynchronous)
    if when == "before":
        opened(client, path)
    instrument()
    wrap(client)
    async with opened(client, path) as connection:
        await ask(connection, {"type": "response.create"})

    calls.one()


@realtimes
async def test_nothing_is_metered_while_it_is_switched_off(path: str, server: Server, calls: Calls, tmp_path: Any) -> None:
    """``enabled=False`` leaves the connection alone."""
    outer = swap_meter(None)
    try:
        configure(ledger=tmp_path / "off.db", enabled=False)
        async with opened(wrap(server.client()), path) as connection:
            await ask(connection, {"type": "response.create"})
            assert not [name for name in vars(connection) if "voight" in name]
    finally:
        swap_meter(outer)

    assert calls.all() == []


@realtimes
async def test_what_is_metered_by_hand_is_not_counted_again(path: str, server: Server, calls: Calls) -> None:
    """Inside a ``metered_call()`` block the block is the call; before and after it the connection is metered."""
    async with opened(wrap(server.client()), path) as connection:
        await ask(connection, {"type": "response.create"})
        with metered_call(provider="router", model="m") as call:
            await ask(connection, {"type": "response.create"})
            call.report(input=1)
        await ask(connection, {"type": "response.create"})
    with metered_call(provider="router", model="m") as call:
        async with opened(wrap(server.client()), path) as connection:
            await ask(connection, {"type": "response.create"})
        call.report(input=1)

    assert [call.provider for call in calls.all()] == ["openai", "router", "openai", "router"]


def connection_classes() -> set[type]:
    """The classes of the SDK that a connection passes."""
    modules = [module for name, module in sys.modules.items() if name.startswith("openai.") and module is not None]
    parts = ("Connection", "ConnectionManager", "ConnectionBase", "APIResource", "Realtime", "Responses", "Live")
    classes = {cls for module in modules for cls in vars(module).values() if inspect.isclass(cls) and cls.__name__.endswith(parts)}
    return {cls for cls in classes if cls.__module__.startswith("openai.")}


@pytest.mark.slow
@realtimes
@both_kinds
async def test_uninstrument_leaves_the_classes_as_they_were(path: str, asynchronous: bool, server: Server, calls: Calls) -> None:
    """Open connections go on, unmetered."""
    client = server.client(asynchronous=asynchronous)
    opened(client, path)
    before = {cls: dict(vars(cls)) for cls in connection_classes()}
    instrument()
    async with opened(client, path) as connection:
        await ask(connection, {"type": "response.create"})
        changed = [cls for cls, names in before.items() if dict(vars(cls)) != names]
        uninstrument()
        await ask(connection, {"type": "response.create"})
    async with opened(client, path) as connection:
        await ask(connection, {"type": "response.create"})

    assert len(changed) >= 3
    assert [cls for cls, names in before.items() if dict(vars(cls)) != names] == []
    calls.one()


@pytest.mark.server
def test_nothing_heavy_is_imported() -> None:
    """Neither wrapping nor instrumenting imports a resource that the application may never use."""
    script = """
        import sys
        sys.modules["anthropic"] = None  # as if it were not installed: importing it takes two seconds
        import openai, voight_middleware as voight
        before = set(sys.modules)
        voight.wrap(openai.OpenAI(api_key="k"))
        voight.instrument()
        print(sorted(name for name in set(sys.modules) - before if name.startswith(("openai.resources", "openai.types", "websockets"))))
    """
    source = "\n".join(line.strip() for line in script.splitlines())
    ran = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "[]"
