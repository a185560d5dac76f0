"""Batches: each answer is one call, and belongs to who submitted the batch."""

import asyncio
import gzip
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from voight_middleware import tag, wrap
from voight_middleware.context.context import use_scope
from voight_middleware.diagnostics import counters
from voight_middleware.middleware.getters import Getters
from voight_middleware.middleware.request_scope import RequestScope

from ..support.calls import Calls
from ..support.memory_provider import (
    USAGE,
    Answer,
    Provider,
)
from .batches import LINES, SUBMIT, Elsewhere, anthropic_batches, as_json, chat, kept, line, openai_batches, requests
from .entry_points import both_kinds

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def calls(own_calls: Calls) -> Calls:
    """The calls of a test, in a ledger of its own: jobs of other tests have the same names."""
    return own_calls


@pytest.fixture
def elsewhere(calls: Calls, tmp_path: Path) -> Any:
    made = Elsewhere(calls, tmp_path / "elsewhere")
    yield made
    made.meter.close()


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("way", ["content", "raw", "opened"])
async def test_each_answer_of_a_batch_is_one_call(way: str, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """However often the file is read, each custom id is one call at the batch rate, and the submitter's; what failed is not billed."""
    client = wrap(provider.client("openai", asynchronous=asynchronous))
    provider.answer = openai_batches()

    async def done(made: Any) -> Any:
        return await made if asynchronous else made

    async def read() -> bytes:
        if way == "content":
            return (await done(client.files.content("file-out"))).content
        if way == "raw":
            return (await done(client.files.with_raw_response.content("file-out"))).http_response.content
        manager = client.files.with_streaming_response.content("file-out")
        if asynchronous:
            async with manager as response:
                return b"".join([part async for part in response.iter_bytes()])
        with manager as response:
            return b"".join(response.iter_bytes())

    with tag(user_id="u_1", plan="pro"):
        await done(client.batches.create(**SUBMIT))
    assert kept(calls) == []
    with tag(user_id="worker"):
        await done(client.batches.retrieve("batch_1"))
        for _ in range(2):
            assert (await read()).count(b"\n") == len(LINES)

    made = kept(calls)
    assert [(call.endpoint, call.usage) for call in sorted(made, key=lambda call: (call.endpoint, call.response_id or ""))] == [
        ("chat", USAGE["chat"]),
        ("chat", USAGE["chat"]),
        ("embeddings", USAGE["embeddings"]),
        ("responses", USAGE["responses"]),
    ]
    assert {(call.tags.user_id, call.tags.plan, call.batch, call.attribution) for call in made} == {("u_1", "pro", True, "tag")}


def test_a_batch_that_is_only_listed_is_linked_to_its_file(provider: Provider, calls: Calls) -> None:
    """``batches.list()`` names the file as well."""
    client = wrap(provider.client("openai"))
    provider.answer = openai_batches()
    with tag(user_id="u_1"):
        client.batches.create(**SUBMIT)
    list(client.batches.list())
    client.files.content("file-out")

    assert {call.tags.user_id for call in kept(calls)} == {"u_1"}


@pytest.mark.slow
@pytest.mark.parametrize("order", ["submit link read", "read link submit", "link read submit", "read submit link"])
def test_the_submitter_owns_the_answers_in_whatever_order_they_come_in(
    order: str, provider: Provider, calls: Calls, elsewhere: Elsewhere
) -> None:
    """Journals of several processes are ingested in any order."""
    client = wrap(provider.client("openai"))
    provider.answer = openai_batches()

    def submit() -> None:
        with tag(user_id="u_1", plan="pro", feature="night"):
            client.batches.create(**SUBMIT)
        assert calls.meter.flush(30)

    def link() -> None:
        with elsewhere:
            client.batches.retrieve("batch_1")
        elsewhere.flush()

    def read() -> None:
        with elsewhere, tag(user_id="worker"):
            client.files.content("file-out")
        elsewhere.flush()

    for step in order.split():
        {"submit": submit, "link": link, "read": read}[step]()

    made = kept(calls)
    assert len(made) == 4
    assert {(call.tags.user_id, call.tags.plan, call.tags.extra["feature"]) for call in made} == {("u_1", "pro", "night")}


def test_a_batch_of_somebody_unknown_belongs_to_who_reads_it(provider: Provider, calls: Calls) -> None:
    """Submitted by a process that is not metered: better the reader than nobody."""
    client = wrap(provider.client("openai"))
    provider.answer = openai_batches()
    with tag(user_id="worker"):
        client.files.content("file-out")

    assert {call.tags.user_id for call in kept(calls)} == {"worker"}


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_large_file_of_answers_is_read_beside_the_caller(encoding: str, provider: Provider, calls: Calls) -> None:
    """Thousands of answers, whole and while they pass by."""
    many = [line(str(number), {**chat(number), "choices": [{"message": {"content": "x" * 300}}]}) for number in range(2_000)]
    client = wrap(provider.client("openai"))
    answer = openai_batches(many)

    def encoded(path: str, body: dict[str, Any]) -> Answer:
        status, headers, parts = answer(path, body)
        return (
            (status, {**headers, "content-encoding": "gzip"}, [gzip.compress(b"".join(parts))])
            if encoding == "gzip"
            else (status, headers, parts)
        )

    provider.answer = encoded
    whole = client.files.content("file-out").content
    with client.files.with_streaming_response.content("file-out") as response:
        assert b"".join(response.iter_bytes()) == whole
    for thread in [thread for thread in threading.enumerate() if thread.name == "voight-batch"]:
        thread.join(30)

    assert len(kept(calls)) == 2_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"%PDF-1.4",
        b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n',
        b'{"prompt": "x"}\n',
        b"\xff\n",
    ],
    ids=["empty", "blank", "pdf", "input file", "training file", "binary"],
)
def test_any_other_file_is_no_batch(content: bytes, provider: Provider, calls: Calls) -> None:
    """Downloading a file is no call."""
    client = wrap(provider.client("openai"))
    provider.answer = lambda path, body: (200, {"content-type": "application/octet-stream"}, [content])
    assert client.files.content("file-x").content == content
    with client.files.with_streaming_response.content("file-x") as response:
        assert response.read() == content

    assert kept(calls) == []
    assert not +counters


def test_a_file_that_is_only_begun_is_read_as_far_as_it_came(provider: Provider, calls: Calls) -> None:
    """Whole lines that have passed are calls; the rest comes when the file is read again."""
    client = wrap(provider.client("openai"))
    provider.answer = openai_batches([line(str(number), chat(number)) for number in range(20)])
    with client.files.with_streaming_response.content("file-out") as response:
        next(response.iter_bytes())
    some = len(kept(calls))
    assert 0 < some < 20
    client.files.content("file-out")

    assert len(kept(calls)) == 20


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("beta", [False, True], ids=["messages", "beta"])
async def test_each_result_of_a_message_batch_is_one_call(beta: bool, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """Read twice, and with a caller who sees every line."""
    client = wrap(provider.client("anthropic", asynchronous=asynchronous))
    batches = client.beta.messages.batches if beta else client.messages.batches
    provider.answer = anthropic_batches
    with tag(user_id="u_1", plan="pro"):
        made = batches.create(requests=requests())
        batch = await made if asynchronous else made
    with tag(user_id="worker"):
        for _ in range(2):
            found = batches.results(batch.id)
            seen = [one.custom_id async for one in await found] if asynchronous else [one.custom_id for one in found]
            assert seen == list("abcde")

    both = kept(calls)
    assert [(call.usage, call.batch, call.service_tier, call.model) for call in both] == [
        (USAGE["messages"], True, "batch", "claude-opus-4-8-20260101")
    ] * 2
    assert {(call.tags.user_id, call.tags.plan) for call in both} == {("u_1", "pro")}


def test_the_users_of_a_batch_that_names_them_are_kept_apart(provider: Provider, calls: Calls) -> None:
    """A batch that nobody owns, whose requests name a user each: the owner of last resort."""
    client = wrap(provider.client("anthropic"))
    provider.answer = anthropic_batches
    client.messages.batches.create(requests=requests(a="u_7"))
    list(client.messages.batches.results("msgbatch_1"))

    assert [(call.tags.user_id, call.attribution) for call in sorted(kept(calls), key=lambda call: call.tags.user_id or "")] == [
        (None, "none"),
        ("u_7", "request"),
    ]


def asked(**users: Any) -> bytes:
    """The file of a batch of OpenAI, whose requests name users in each way that there is."""
    return b"".join(
        json.dumps({"custom_id": name, "body": {"messages": ["secret"], **users.get(name, {})}}).encode() + b"\n" for name in "abcd"
    )


NAMED = {"a": {"user": "u_a"}, "b": {"safety_identifier": "u_b"}, "c": {"metadata": {"user_id": "u_c"}}}


def upload(client: Any, file: Any) -> None:
    client.files.create(file=file, purpose="batch")


def with_files(path: str, body: Any) -> Answer:
    return as_json({"id": "file-in", "object": "file"}) if path.endswith("/files") else openai_batches()(path, body)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "named", "path", "open", "text"])
def test_the_users_of_the_requests_of_openai(kind: str, provider: Provider, calls: Calls, tmp_path: Path) -> None:
    """A batch that nobody owns, whose requests name a user each, as calls do; the SDK sends the whole file all the same."""
    client = wrap(provider.client("openai"))
    provider.answer = with_files
    (file := tmp_path / "requests.jsonl").write_bytes(asked(**NAMED))
    with file.open("rb") as opened:
        given = {
            "bytes": asked(**NAMED),
            "named": ("x.jsonl", asked(**NAMED)),
            "path": file,
            "open": opened,
            "text": ("x", asked(**NAMED).decode()),
        }
        upload(client, given[kind])
    client.batches.create(**SUBMIT)
    client.batches.retrieve("batch_1")
    client.files.content("file-out")
    owners = sorted((call.tags.user_id or "", call.attribution) for call in kept(calls))
    assert owners == [("", "none"), ("u_a", "request"), ("u_b", "request"), ("u_c", "request")]


@pytest.mark.parametrize("where", ["upload", "batch"])
def test_an_owner_is_above_what_the_requests_name(where: str, provider: Provider, calls: Calls) -> None:
    """A tag at the upload keeps the requests from being read. A tag at the submission owns the whole batch."""
    client = wrap(provider.client("openai"))
    provider.answer = with_files
    with tag(user_id="u_1" if where == "upload" else None):
        upload(client, asked(**NAMED))
    with tag(user_id="u_1" if where == "batch" else None):
        client.batches.create(**SUBMIT)
    client.batches.retrieve("batch_1")
    client.files.content("file-out")
    assert {call.tags.user_id for call in kept(calls)} == ({None} if where == "upload" else {"u_1"})


def test_a_client_of_a_web_request_names_nobody(provider: Provider, calls: Calls) -> None:
    """As for calls: inside of a request the file may be what an anonymous client has sent."""
    client = wrap(provider.client("openai"))
    provider.answer = with_files
    with use_scope(RequestScope(lambda: None, Getters(lambda request: None), None)):
        upload(client, asked(**NAMED))
    client.batches.create(**SUBMIT)
    client.batches.retrieve("batch_1")
    client.files.content("file-out")
    assert {call.tags.user_id for call in kept(calls)} == {None}


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
def test_a_callback_says_whose_a_request_is(sdk: str, provider: Provider, calls: Calls) -> None:
    """It is above the owner of the batch, and what it does not know is the batch's. A mapping may have more tags. It may raise."""

    def owner(custom_id: str) -> object:
        answers: dict[str, object] = {"a": "u_a", "b": {"user_id": "u_b", "plan": "pro"}, "c": None}
        return answers[custom_id]

    calls.meter._batch_owner = owner
    client = wrap(provider.client(sdk))
    provider.answer = with_files if sdk == "openai" else anthropic_batches
    with tag(user_id="u_1"):
        made = client.batches.create(**SUBMIT) if sdk == "openai" else client.messages.batches.create(requests=requests())
    if sdk == "openai":
        client.batches.retrieve("batch_1")
        client.files.content("file-out")
    else:
        list(client.messages.batches.results(made.id))
    found = sorted((call.tags.user_id or "", call.tags.plan, call.attribution) for call in kept(calls))
    rest = [("u_1", None, "tag")] * 2 if sdk == "openai" else []
    assert found == sorted([*rest, ("u_a", None, "tag"), ("u_b", "pro", "tag")], key=lambda one: (one[0], one[1] or "", one[2]))
    assert counters["getter_errors"] == (sdk == "openai"), "of the line that it did not expect"


def test_a_batch_of_somebody_belongs_to_him_whomever_it_names(provider: Provider, calls: Calls) -> None:
    """An explicit tag is above what a request says."""
    client = wrap(provider.client("anthropic"))
    provider.answer = anthropic_batches
    with tag(user_id="u_1"):
        client.messages.batches.create(requests=requests(a="u_7", b="u_8"))
    list(client.messages.batches.results("msgbatch_1"))

    assert {call.tags.user_id for call in kept(calls)} == {"u_1"}


async def test_results_that_are_left_are_completed_later(provider: Provider, calls: Calls) -> None:
    """Broken off after the first line, and read again."""
    client = wrap(provider.client("anthropic", asynchronous=True))
    provider.answer = anthropic_batches
    found = await client.messages.batches.results("msgbatch_1")
    async for _ in found:
        break
    await found.close()
    assert len(await asyncio.to_thread(kept, calls)) <= 2
    async for _ in await client.messages.batches.results("msgbatch_1"):
        pass

    assert len(await asyncio.to_thread(kept, calls)) == 2
