"""Answers: the records of calls that ended as usual, as they are in the journal and as calls in the ledger."""

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from voight_middleware.config.settings import Settings
from voight_middleware.instrumentation.request import MeteredRequest
from voight_middleware.pipeline.ingest import drain
from voight_middleware.pipeline.journal import decode, segments
from voight_middleware.pipeline.meter import Meter, swap_meter
from voight_middleware.providers.base import MAX_USAGE_BYTES, Endpoint, ResponseSummary, parse_response
from voight_middleware.records.answer import Answer, usage_on_a_line
from voight_middleware.records.call import Call, is_new_call_id
from voight_middleware.records.tags import NO_TAGS, Owner, Tags

CHAT = Endpoint(name="chat", parse=parse_response)
USAGE = b'{"prompt_tokens": 10, "completion_tokens": 5}'
OWNER = Owner(Tags(user_id="u_1", plan="pro", extra={"feature": "chat"}), "tag")
ANSWER = Answer(1_790_000_000_000_000, 2_500_000, 200, 1, "openai", "chat", "api.openai.com", "m", "m-1", "r_1", None, msgspec.Raw(USAGE))


@pytest.fixture
def meter(tmp_path: Path) -> Iterator[Meter]:
    settings = Settings.from_environment(ledger=tmp_path / "ledger.db", journal=tmp_path / "journal", ingest=False, environ={})
    made = Meter(settings)
    outer = swap_meter(made)
    yield made
    swap_meter(outer)
    made.close(0.2)


def request(*, owner: Owner = OWNER, body: object = None, stream: bool = False) -> MeteredRequest:
    body = {"model": "gpt-4o-mini"} if body is None else body
    metered = MeteredRequest(CHAT, "/chat/completions", body, "api.openai.com", "openai", stream)
    metered.owner = owner
    return metered


def written(meter: Meter) -> list[bytes]:
    (segment,) = segments(meter.settings.journal)
    return segment.path.read_bytes().splitlines()


def as_call(line: bytes) -> Call:
    record = decode(line, "segment:0")
    assert isinstance(record, Call)
    return record


@pytest.mark.parametrize(
    "summary",
    [
        ResponseSummary("r_1", "gpt-4o-mini-2024-07-18", "default", msgspec.Raw(USAGE), finish_reasons=("stop",)),
        ResponseSummary(),
        ResponseSummary("r_2", "m", None, msgspec.Raw(b'{\n  "prompt_tokens": 1\r\n}'), {"web_search": 2}),
        ResponseSummary("r_3", "m", None, msgspec.Raw(b'{"note": "' + "\u00fc\u2028".encode() + b'"}')),
        ResponseSummary("r_4", "m", None, msgspec.Raw(b'{"note": "' + b"x" * MAX_USAGE_BYTES + b'"}')),
        ResponseSummary("r" * 600, "m" * 600, "t" * 600, msgspec.Raw(USAGE)),
        ResponseSummary("r_5", "alice@example.com", None, msgspec.Raw(USAGE)),
        ResponseSummary("r_6", "half \ud800", None, msgspec.Raw(USAGE)),
    ],
    ids=["chat", "empty", "lines", "text", "large", "long", "address", "surrogate"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_makes_the_same_call(summary: ResponseSummary, stream: bool, meter: Meter) -> None:
    """Whichever record is written, the ledger gets the same call, but for its id and its duration."""
    metered = request(stream=stream)
    if metered._finish_as_usual(summary, 200, 1, metered.started + 5_000 if stream else None):
        assert written(meter)[0].startswith(b"[")
    else:
        metered.finish(summary, http_status=200, attempts=2, ttft=5 if stream else None)
    metered.finish(summary, http_status=200, attempts=2, ttft=5 if stream else None)
    answer, call = map(as_call, written(meter))
    assert is_new_call_id(answer.call_id)
    assert answer.duration is not None

    def comparable(one: Call) -> Call:
        raw = None if one.raw_usage is None else json.dumps(json.loads(one.raw_usage))
        return msgspec.structs.replace(one, call_id="", duration=None, finish_reasons=None, raw_usage=raw)

    assert comparable(answer) == comparable(call)


@pytest.mark.parametrize(
    "unusual",
    ["no user", "failure", "job", "possibly billed", "text"],
)
def test_what_is_unusual_is_written_as_a_call(unusual: str, meter: Meter) -> None:
    """An answer has no place for it."""
    metered = request(owner=Owner(NO_TAGS, "none") if unusual == "no user" else OWNER)
    summary = ResponseSummary("r_1", "m", None, msgspec.Raw(USAGE))
    if unusual == "failure":
        summary.failure = "error"
    elif unusual == "job":
        summary.job = "r_1"
    elif unusual == "possibly billed":
        metered.possibly_billed = 1
    elif unusual == "text":
        summary.usage = msgspec.Raw(b'{"note": "' + "\u00fc".encode() + b'"}')
    assert not metered._finish_as_usual(summary, 200, 0)
    assert not meter.settings.journal.exists()


def test_the_id_of_an_answer_follows_from_its_place() -> None:
    """The same at every reading, another for each place, and in the order of the ends."""
    ids = [ANSWER.call(f"segment:{position}").call_id for position in range(1000)]
    assert len(set(ids)) == 1000
    assert all(map(is_new_call_id, ids))
    assert ANSWER.call("segment:7").call_id == ids[7]
    assert {one[:12] for one in ids} == {f"{(ANSWER.occurred_at + ANSWER.duration) // 1000:012x}"}


def test_an_answer_read_twice_is_one_call(tmp_path: Path, meter: Meter) -> None:
    """After a crash, a journal is read again from its beginning."""
    for number in range(3):
        assert request()._finish_as_usual(ResponseSummary(f"r_{number}", "m", None, msgspec.Raw(USAGE)), 200, 0)
    (segment,) = segments(meter.settings.journal)
    data, name = segment.path.read_bytes(), segment.name
    meter.close(0.2)
    other = tmp_path / "again"
    other.mkdir()
    for folder in (meter.settings.journal, other, other):
        (folder / name).write_bytes(data)
        drain(meter.settings.ledger, folder)
    from voight_middleware.ledger import open_ledger

    ledger = open_ledger(meter.settings.ledger)
    assert sorted(str(call.response_id) for call in ledger.calls()) == ["r_0", "r_1", "r_2"]
    ledger.close()


def test_a_listener_gets_the_finish_reasons(tmp_path: Path) -> None:
    """The journal keeps them only where somebody listens."""
    heard: list[Call] = []
    settings = Settings.from_environment(ledger=tmp_path / "ledger.db", environ={})
    made = Meter(settings, [heard.append])
    outer = swap_meter(made)
    try:
        summary = ResponseSummary("r_1", "m", None, msgspec.Raw(USAGE), finish_reasons=("stop",))
        assert request()._finish_as_usual(summary, 200, 0)
        assert made.flush(30)
    finally:
        swap_meter(outer)
        made.close(5)
    assert [(call.response_id, call.finish_reasons, call.tags.user_id) for call in heard] == [("r_1", ("stop",), "u_1")]


@pytest.mark.parametrize("more", [0, 1, 2])
def test_the_record_of_an_older_release(more: int) -> None:
    """Fields that a release adds at the end have a default."""
    whole = json.loads(msgspec.json.encode(ANSWER))
    line = json.dumps([*whole[: len(whole) - more]]).encode()
    assert as_call(line) == ANSWER.call("segment:0")


def test_half_a_line_is_no_answer() -> None:
    """As for every other record."""
    line = msgspec.json.encode(ANSWER)
    for length in range(1, len(line)):
        with pytest.raises(msgspec.DecodeError):
            decode(line[:length], "segment:0")


def test_a_usage_on_a_line() -> None:
    """Line ends between tokens become spaces; what must be checked as text is told."""
    assert usage_on_a_line(msgspec.Raw(b'{"a":\n1}'), 100) == msgspec.Raw(b'{"a": 1}')
    assert usage_on_a_line(msgspec.Raw(b"null"), 100) == msgspec.Raw(b"null")
    assert usage_on_a_line(msgspec.Raw(b'{"a": 1}'), 7) == msgspec.Raw(b"null")
    assert usage_on_a_line(msgspec.Raw('{"a": "\u00fc"}'.encode()), 100) is None
