"""Pseudonyms: personal data in a tag never reaches the disk, and each user is one row all the same."""

import asyncio
import json
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

import voight_middleware as voight
from voight_middleware.config.keys import PseudonymKey
from voight_middleware.config.settings import Settings
from voight_middleware.config.values import SettingsError
from voight_middleware.context.context import use_scope
from voight_middleware.context.tag import current_tags
from voight_middleware.diagnostics import counters
from voight_middleware.ledger import open_ledger
from voight_middleware.middleware.getters import Getters
from voight_middleware.middleware.request_scope import RequestScope
from voight_middleware.pipeline.lock import IngestLock
from voight_middleware.pipeline.meter import Meter, swap_meter
from voight_middleware.pipeline.pseudonyms import Pseudonymizer, known_as, pseudonym
from voight_middleware.records.call import Call
from voight_middleware.records.pii import find
from voight_middleware.records.tags import Tags

from ..support.patching import Patch

ALICE = "alice@example.com"
SECRET, OTHER = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
FORM = re.compile(r"(email|phone|card|wallet|key):v[0-9]+:[a-z2-7]{26}(\.[a-z2-7]{8})?")
Make = Callable[..., Settings]


@pytest.fixture
def settings(tmp_path: Path) -> Make:
    """Makes settings with a ledger of this test's own, and nothing from the environment."""

    def make(**values: Any) -> Settings:
        return Settings.from_environment(
            **{"ledger": tmp_path / "ledger.db", **values}, environ={"XDG_STATE_HOME": str(tmp_path / "state")}
        )

    return make


@pytest.fixture(autouse=True)
def said(patch: Patch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged, as in a process that has logged nothing yet."""
    patch("_warned", set(), within="diagnostics")
    caplog.set_level(logging.WARNING)
    return caplog


def user(settings: Settings, user_id: str) -> str | None:
    return Pseudonymizer(settings)(Tags(user_id=user_id)).user_id


# -- what a value becomes ------------------------------------------------------------------------------------------------------


def test_a_pseudonym_is_stable_and_says_what_it_is(settings: Make) -> None:
    """The same key and address give the same pseudonym on every machine and in every release of ours: this very one."""
    keyed = settings(pseudonym_key=SECRET)
    assert user(keyed, ALICE) == user(keyed, ALICE) == "email:v1:k6l4gkqtnugkrbckzoro7hzpus"


@pytest.mark.parametrize("spelling", ["Alice@Example.com", "Alice Liddell <alice@EXAMPLE.com>", "mailto:alice@example.com"])
def test_one_user_is_one_row(settings: Make, spelling: str) -> None:
    """The spellings of one address have one pseudonym."""
    keyed = settings(pseudonym_key=SECRET)
    assert user(keyed, spelling) == user(keyed, ALICE)


def test_two_users_are_two_rows(settings: Make) -> None:
    """Other addresses, and other values around one address, have other pseudonyms; the latter begin alike."""
    keyed = settings(pseudonym_key=SECRET)
    values = [ALICE, "bob@example.com", "red|alice@example.com", "blue|alice@example.com", "+14155552671", "4111 1111 1111 1111"]
    names = [str(user(keyed, value)) for value in values]
    assert len(set(names)) == len(names)
    assert all(FORM.fullmatch(name) for name in names)
    assert names[2].partition(".")[0] == names[3].partition(".")[0] == names[0]
    assert user(keyed, "red|Alice@example.com") == names[2]


def test_another_secret_gives_another_pseudonym(settings: Make) -> None:
    """Nobody without the secret can tell whose it is; the version alone changes nothing but the version."""
    names = [user(settings(pseudonym_key=key), ALICE) for key in (SECRET, OTHER, f"v9:{SECRET}")]
    assert names[0] != names[1]
    assert names[2] == str(names[0]).replace(":v1:", ":v9:")


@given(
    st.sampled_from([ALICE, "+14155552671", f"x|{ALICE}", "4111111111111111", "sk-proj-a1B2c3D4e5F6g7H8i9"]), st.text("01ab,x", min_size=32)
)
def test_a_pseudonym_is_never_guarded_again(value: str, secret: str) -> None:
    """What a worker gets in a message stays as it is there."""
    found = find(value)
    assert found is not None
    name = pseudonym(found, value, PseudonymKey("v1", secret))
    assert FORM.fullmatch(name)
    assert find(name) is None


def test_every_tag_is_guarded(settings: Make) -> None:
    """All named tags and all extra keys; what is no personal data stays, and tags without any are the same object."""
    guard = Pseudonymizer(settings(pseudonym_key=SECRET))
    hers = str(user(settings(pseudonym_key=SECRET), ALICE))
    names = [name for name in Tags.__struct_fields__ if name != "extra"]
    dirty = Tags(**dict.fromkeys(names, ALICE), extra={"owner": ALICE, "feature": "summary"})  # type: ignore[arg-type]
    expected = Tags(**dict.fromkeys(names, hers), extra={"owner": hers, "feature": "summary"})  # type: ignore[arg-type]
    assert guard(dirty) == guard(dirty) == expected
    for name in names:
        assert guard(Tags(**{name: ALICE})) == Tags(**{name: hers})  # type: ignore[arg-type]
    clean = Tags(user_id="u_7", plan="pro", extra={"feature": "summary"})
    assert guard(clean) == clean
    assert guard(clean) is clean


def test_the_policy_of_each_key(settings: Make) -> None:
    """`allow` keeps the value of that key only, `redact` keeps its kind only, and the star stands for the other keys."""
    tags = Tags(user_id=ALICE, tenant_id=ALICE, plan="+14155552671", extra={"card": "4111111111111111"})
    guard = Pseudonymizer(settings(pii={"user_id": "allow", "*": "redact"}))
    expected = Tags(user_id=ALICE, tenant_id="redacted:email", plan="redacted:phone", extra={"card": "redacted:card"})
    assert guard(tags) == guard(tags) == expected
    assert Pseudonymizer(settings(pii="allow"))(tags) == tags
    guard = Pseudonymizer(settings(pii="tenant_id=redact", pseudonym_key=SECRET))
    assert guard(tags).tenant_id == "redacted:email"
    assert FORM.fullmatch(str(guard(tags).user_id))


def test_many_users_do_not_fill_the_memory(settings: Make, patch: Patch) -> None:
    """What is remembered is bounded, and forgetting changes no answer."""
    patch("MAX_KNOWN", 10)
    guard = Pseudonymizer(settings(pseudonym_key=SECRET))
    first = guard(Tags(user_id=ALICE))
    for number in range(100):
        assert guard(Tags(user_id=f"u_{number}", plan=f"p{number}@example.com")).user_id == f"u_{number}"
    assert guard(Tags(user_id=ALICE)) == first


def test_tags_that_were_never_cleaned(settings: Make) -> None:
    """`Tags` made by hand may hold anything: it is cut to length, and looked at."""
    guard = Pseudonymizer(settings(pseudonym_key=SECRET))
    long = guard(Tags(user_id="x" * 500 + f" {ALICE}")).user_id
    assert FORM.fullmatch(str(long))
    assert guard(Tags(user_id=7)).user_id == "7"  # type: ignore[arg-type]
    assert len(str(guard(Tags(user_id="y" * 10_000)).user_id)) == 256


# -- the key -------------------------------------------------------------------------------------------------------------------


def test_a_local_ledger_gets_a_key_of_its_own(settings: Make, tmp_path: Path) -> None:
    """Made when personal data first occurs and not before, for this account only, and used ever after."""
    guard = Pseudonymizer(settings())
    guard(Tags(user_id="u_7", plan="pro"))
    assert list(tmp_path.iterdir()) == []
    hers = guard(Tags(user_id=ALICE)).user_id
    assert str(hers).startswith("email:v0:")
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db.key"]
    assert stat.S_IMODE((tmp_path / "ledger.db.key").stat().st_mode) == 0o600
    assert user(settings(), ALICE) == hers
    assert user(settings(ledger=tmp_path / "other" / "ledger.db"), ALICE) != hers


def test_the_local_key_can_be_moved_into_the_environment(settings: Make, tmp_path: Path) -> None:
    """Its file holds what the variable takes, so that a team that outgrows one host keeps its users."""
    hers = user(settings(), ALICE)
    key = (tmp_path / "ledger.db.key").read_text()
    assert user(settings(ledger="postgresql://h/d", pseudonym_key=key), ALICE) == hers


PROCESSES = """
import sys
from voight_middleware.pipeline.pseudonyms import Pseudonymizer
from voight_middleware.config.settings import Settings
from voight_middleware.records.tags import Tags
guard = Pseudonymizer(Settings.from_environment())
print("ready", flush=True)
sys.stdin.readline()
print(guard(Tags(user_id="alice@example.com")).user_id)
"""


def test_workers_that_start_together_agree(scripts: Any) -> None:
    """Of processes that make the key at the same moment one wins, and none is left with a key of its own."""
    running = [scripts.start(PROCESSES) for _ in range(6)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    names = {process.communicate(timeout=30)[0] for process in running}
    assert len(names) == 1
    assert [path.name for path in scripts.ledger.parent.iterdir()] == ["ledger.db.key"]


def test_threads_that_start_together_agree(settings: Make, tmp_path: Path) -> None:
    """As do the threads of one process, whichever guard they ask."""
    names: list[str | None] = []
    barrier = threading.Barrier(8)

    def ask(guard: Pseudonymizer) -> None:
        barrier.wait()
        names.append(guard(Tags(user_id=ALICE)).user_id)

    guards = [Pseudonymizer(settings()), Pseudonymizer(settings())]
    threads = [threading.Thread(target=ask, args=(guards[number % 2],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 8
    assert len(set(names)) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_forked_child_has_the_same_key(scripts: Any) -> None:
    """Whether its parent had used the key or not, and none of them makes a second one."""
    output = scripts.run(
        """
        import os
        from voight_middleware.pipeline.meter import current_meter
        from voight_middleware.records.tags import Tags
        def ask():
            print(current_meter().pseudonymized(Tags(user_id="alice@example.com")).user_id, flush=True)
        def fork():
            child = os.fork()
            if child == 0:
                ask()
                os._exit(0)
            os.waitpid(child, 0)
        current_meter()
        fork()
        ask()
        fork()
        """
    )
    assert len(output.split()) == 3
    assert len(set(output.split())) == 1


@pytest.mark.skipif(os.getuid() == 0, reason="root may read and write everything")
def test_a_key_that_may_not_be_read_or_made(settings: Make, tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    """The value is redacted, and one line says what to do."""
    tmp_path.chmod(0o500)
    assert user(settings(), ALICE) == "redacted:email"
    tmp_path.chmod(0o700)
    (tmp_path / "ledger.db.key").write_text(f"v0:{SECRET}\n")
    (tmp_path / "ledger.db.key").chmod(0)
    assert user(settings(), ALICE) == "redacted:email"
    assert said.text.count("redacted:<kind>") == 1


@pytest.mark.parametrize("spoiled", ["", "v0:short\n", b"\xff\xfe"])
def test_a_spoiled_key_is_not_used(settings: Make, tmp_path: Path, said: pytest.LogCaptureFixture, spoiled: Any) -> None:
    """An empty file would make pseudonyms that anybody could make; it is left as it is, and one line names it."""
    content = spoiled if isinstance(spoiled, bytes) else spoiled.encode()
    (tmp_path / "ledger.db.key").write_bytes(content)
    guard = Pseudonymizer(settings())
    assert {guard(Tags(user_id=address)).user_id for address in (ALICE, "bob@example.com")} == {"redacted:email"}
    assert (tmp_path / "ledger.db.key").read_bytes() == content
    assert [("ledger.db.key" in line, "VOIGHT_PSEUDONYM_KEY" in line, ALICE in line) for line in said.messages] == [(True, True, False)]


def test_a_folder_in_the_way_of_the_key(settings: Make, tmp_path: Path, said: pytest.LogCaptureFixture, patch: Patch) -> None:
    """The value is redacted until there is a key; it is looked for again after a while, and no litter is left."""
    (tmp_path / "ledger.db.key").mkdir()
    guard = Pseudonymizer(settings())
    assert guard(Tags(user_id=ALICE)).user_id == "redacted:email"
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db.key"]
    (tmp_path / "ledger.db.key").rmdir()
    assert guard(Tags(user_id=ALICE)).user_id == "redacted:email"
    patch("RETRY_SECONDS", 0, within="pseudonyms")
    (tmp_path / "ledger.db.key").mkdir()
    later = Pseudonymizer(settings())
    assert later(Tags(user_id=ALICE)).user_id == "redacted:email"
    (tmp_path / "ledger.db.key").rmdir()
    assert FORM.fullmatch(str(later(Tags(user_id=ALICE)).user_id))
    assert len(said.messages) == 1


def test_a_ledger_on_a_server_needs_a_key(settings: Make, tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    """Hosts with a key each would make several users of one: the kind alone is kept, and one line says what to do."""
    guard = Pseudonymizer(settings(ledger="postgresql://h/d"))
    assert guard(Tags(user_id=ALICE, plan="+14155552671")) == Tags(user_id="redacted:email", plan="redacted:phone")
    guard(Tags(user_id="bob@example.com"))
    (line,) = said.messages
    assert "VOIGHT_PSEUDONYM_KEY" in line
    assert "openssl rand -hex 32" in line
    assert "alice" not in line
    assert list(tmp_path.iterdir()) == []


# -- finding -------------------------------------------------------------------------------------------------------------------


def test_every_key_finds(settings: Make, tmp_path: Path) -> None:
    """A rotation and a move from the local key leave her former pseudonyms to be found, and the value itself."""
    names = [user(settings(), ALICE), user(settings(pseudonym_key=SECRET), ALICE), user(settings(pseudonym_key=f"v2:{OTHER}"), ALICE)]
    sought = known_as("Alice@example.com", settings(pseudonym_key=f"v2:{OTHER},v1:{SECRET}"))
    assert sought[0] == "Alice@example.com"
    assert [name for name in sought[1:] if "*" not in name] == list(reversed(names))
    assert user(settings(pseudonym_key=f"v2:{OTHER},v1:{SECRET}"), ALICE) == names[2]


def test_an_address_finds_the_values_around_it(settings: Make) -> None:
    """`auth0|alice@example.com` is found by her address, by itself, and not by another prefix."""
    keyed = settings(pseudonym_key=SECRET)
    within = str(user(keyed, f"auth0|{ALICE}"))
    assert f"{within.partition('.')[0]}.*" in known_as(ALICE, keyed)
    assert known_as(f"auth0|{ALICE}", keyed) == [f"auth0|{ALICE}", within]
    assert within not in known_as(f"google|{ALICE}", keyed)


@pytest.mark.parametrize("value", ["u_7", "alice@*", "*", "email:v1:k6l4gkqtnugkrbckzoro7hzpus", "redacted:email", ""])
def test_what_is_no_personal_data_is_sought_as_it_is(settings: Make, value: str) -> None:
    """Ids, patterns and pseudonyms."""
    assert known_as(value, settings(pseudonym_key=SECRET)) == [value]


def test_looking_for_somebody_makes_no_key(settings: Make, tmp_path: Path) -> None:
    """A report writes nothing; a key that it cannot read is an error, as it would find nobody."""
    assert known_as(ALICE, settings()) == [ALICE]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "ledger.db.key").mkdir()
    with pytest.raises(SettingsError, match=r"ledger\.db\.key"):
        known_as(ALICE, settings())


# -- the disk ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def heard() -> list[Call]:
    """What a listener has heard."""
    return []


@pytest.fixture
def meter(settings: Make, heard: list[Call], tmp_path: Path) -> Iterator[Meter]:
    """The meter of this test's calls."""
    own = Meter(settings(), [heard.append])
    before = swap_meter(own)
    yield own
    swap_meter(before)
    own.close()


def record(**tags: Any) -> str:
    return voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1, "completion_tokens": 1}, tags=tags)


def on_disk(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_nothing_on_disk_shows_her(meter: Meter, heard: list[Call], tmp_path: Path, voight_provider: Any) -> None:
    """Calls, settlements, submissions, records by hand: she is not in the journal, the ledger or its log, and no listener hears of her."""
    journal = meter.settings.journal
    other = IngestLock(journal)
    assert other.acquire(), "another process ingests: the journal stays to be looked at"
    with openai.OpenAI(api_key="k", base_url=voight_provider.openai_base_url) as plain:
        client = voight.wrap(plain)
        question: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
        with voight.tag(user_id=ALICE, tenant_id=f"tenant of {ALICE}", route=f"GET /u/{ALICE}", session_id="+14155552671", owner=ALICE):
            client.chat.completions.create(**question)
            list(client.chat.completions.create(**question, stream=True))
            client.responses.create(model="gpt-4o-mini", input="hi", background=True)
            assert current_tags().user_id == ALICE, "in the process she is who she is"
        client.chat.completions.create(**question, user=ALICE)
        client.chat.completions.create(**question, safety_identifier=ALICE)
        client.chat.completions.create(**question, metadata={"user_id": ALICE.title()})
        client.responses.create(model="gpt-4o-mini", input="hi", background=True, user=ALICE)
        record(user_id=ALICE, note=f"asked by {ALICE}")
        voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1}, tags=Tags(user_id=ALICE, extra={"x": ALICE}))
        with voight.metered_call(provider="openai", model="gpt-5-nano", tags={"user_id": ALICE}) as by_hand:
            by_hand.report({"prompt_tokens": 1})

        async def later(request: object) -> str:
            await asyncio.sleep(0)
            return ALICE

        async def request() -> str:
            scope = RequestScope(lambda: None, Getters(later), lambda: f"GET /u/{ALICE}")
            with use_scope(scope):
                call_id = record(plan="pro")
            await scope.attribute_late()
            return call_id

        settled = asyncio.run(request())

    read = (json.loads(line) for path in journal.glob("*.jsonl") for line in path.read_text().splitlines())
    kinds = {"answer" if isinstance(record, list) else record["type"] for record in read}
    assert kinds == {"answer", "call", "settlement", "submission"}
    assert b"alice" not in on_disk(tmp_path).lower()
    assert b"5552671" not in on_disk(tmp_path)
    other.release()
    assert meter.flush(30)
    ledger = open_ledger(meter.settings.ledger)
    calls = {call.call_id: call for call in ledger.calls()}
    assert b"alice" not in on_disk(tmp_path).lower()
    hers = Pseudonymizer(meter.settings)(Tags(user_id=ALICE)).user_id
    assert {call.tags.user_id for call in calls.values()} == {hers}
    assert calls[settled].attribution == "settled"
    assert {call.attribution for call in calls.values()} == {"tag", "request", "settled"}
    ledger.close()
    assert len(heard) == len(calls) >= 10
    assert "alice" not in repr(heard).lower()


def test_a_release_with_an_address_in_it(settings: Make, tmp_path: Path) -> None:
    """The configured release is guarded as a tag is."""
    own = Meter(settings(release=f"built by {ALICE}", pseudonym_key=SECRET))
    before = swap_meter(own)
    try:
        record(user_id="u_7")
        assert own.flush(30)
    finally:
        swap_meter(before)
        own.close()
    assert b"alice" not in on_disk(tmp_path)


def test_a_guard_that_fails_keeps_nothing(meter: Meter, tmp_path: Path) -> None:
    """What could not be looked at does not leave the process; the call does, and the application hears nothing."""
    voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1}, tags=Tags(user_id=ALICE, extra={"x": [ALICE]}))  # type: ignore[dict-item]
    assert counters["internal_errors"] == 1
    assert meter.flush(30)
    ledger = open_ledger(meter.settings.ledger)
    (call,) = ledger.calls()
    ledger.close()
    assert call.tags == Tags()
    assert b"alice" not in on_disk(tmp_path)
