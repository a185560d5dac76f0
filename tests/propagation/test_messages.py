"""The tags of a job's message: what goes in, what comes out, and what is bound while the job runs."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest

import voight_middleware as voight
from voight_middleware import Tags, current_tags, set_tags, tag
from voight_middleware.context.context import current_context, use_scope
from voight_middleware.diagnostics import counters
from voight_middleware.middleware.getters import Getters
from voight_middleware.middleware.request_scope import RequestScope
from voight_middleware.pipeline.meter import Meter, current_meter
from voight_middleware.propagation.messages import KEY, MAX_CHARACTERS, atags_for_message, bound_to_message, stamp, tags_for_message

USAGE = {"prompt_tokens": 10, "completion_tokens": 2}


@pytest.fixture(autouse=True)
def meter(voight_calls: Any) -> Meter:
    return current_meter()


def spend() -> str:
    return voight.record(provider="openai", model="gpt-5-nano", usage=USAGE)


def owners(voight_calls: Any) -> list[tuple[str | None, str]]:
    return [(call.tags.user_id, call.attribution) for call in voight_calls]


def request(user: Any, route: str | None = "POST /chat", **getters: Any) -> use_scope:
    return use_scope(RequestScope(lambda: None, Getters(lambda request: user, **getters), lambda: route))


def text_of(tags: Tags) -> str:
    with tag(**{"user_id": tags.user_id, "plan": tags.plan, **tags.extra}):
        text = tags_for_message()
    assert text is not None
    return text


def test_a_job_has_the_resolved_tags_of_who_has_caused_it(voight_calls: Any) -> None:
    """User, plan, tenant, route, session and own keys come out as they were resolved where the job was sent, with how that was."""
    with request("u", plan=lambda _: "pro", tenant=lambda _: "t"), tag(session_id="s", feature="f"):
        text = tags_for_message()
    with bound_to_message(text, "app.work"):
        expected = Tags(
            user_id="u",
            plan="pro",
            tenant_id="t",
            route="POST /chat",
            session_id="s",
            extra={"feature": "f", "task": "app.work"},
        )
        assert current_tags() == expected
        spend()
    assert owners(voight_calls) == [("u", "getter")]


def test_without_tags_there_is_no_text() -> None:
    """A message of nobody stays as it was."""
    headers: dict[str, Any] = {"id": "5"}
    stamp(headers)
    assert headers == {"id": "5"}
    assert tags_for_message() is None


def test_a_retry_keeps_its_owner() -> None:
    """What is in the headers already stays there."""
    headers: dict[str, Any] = {}
    with tag(user_id="u"):
        stamp(headers)
    first = dict(headers)
    with tag(user_id="v"):
        stamp(headers)
    assert headers == first
    assert json.loads(headers[KEY])["tags"] == {"user_id": "u"}


async def test_an_asynchronous_getter_is_awaited() -> None:
    """Asynchronous code resolves an asynchronous getter; synchronous code on the loop, which may not wait, has nobody."""

    async def user(_: Any) -> str:
        await asyncio.sleep(0)
        return "u"

    with use_scope(RequestScope(lambda: None, Getters(user), lambda: None)):
        assert tags_for_message() is None
        text = await atags_for_message()
    with bound_to_message(text):
        assert current_tags().user_id == "u"


def test_what_is_bound_inside_of_a_job_is_the_messages_and_nothing_else() -> None:
    """Neither the request nor the tags around it reach a job without tags; they are back behind it, also when it raises."""
    with request("outer"), tag(feature="x"):
        with bound_to_message(None):
            assert current_tags() == Tags()
        with suppress(KeyError), bound_to_message(text_of(Tags(user_id="u"))):
            set_tags(plan="pro")
            raise KeyError
        assert current_tags() == Tags(user_id="outer", route="POST /chat", extra={"feature": "x"})
    assert current_tags() == Tags()


def test_what_a_job_sets_lives_until_its_end(voight_calls: Any) -> None:
    """`set_tags` in a job is gone with it, and makes the job's own calls a tagged user's."""
    with bound_to_message(None, "app.nightly"):
        set_tags(user_id="u", plan="pro")
        assert current_tags() == Tags(user_id="u", plan="pro", route="task app.nightly", extra={"task": "app.nightly"})
        spend()
    with bound_to_message(None, "app.nightly"):
        assert current_tags().user_id is None
        spend()
    assert owners(voight_calls) == [("u", "tag"), (None, "none")]


def test_a_job_on_behalf_of_another_user_drops_the_carried_plan() -> None:
    """The plan that was carried is of the user that was carried."""
    with bound_to_message(text_of(Tags(user_id="u", plan="pro"))):
        set_tags(user_id="v")
        assert current_tags() == Tags(user_id="v")


def test_a_job_of_a_job_has_the_same_route_and_another_task() -> None:
    """The route stays that of what has begun it all; each job has its own name, and an own key `task` stays what it is."""
    with bound_to_message(None, "app.nightly"):
        set_tags(user_id="u")
        text = tags_for_message()
    with bound_to_message(text, "app.each"):
        assert current_tags() == Tags(user_id="u", route="task app.nightly", extra={"task": "app.each"})
    with tag(user_id="u", task="mine"):
        text = tags_for_message()
    with bound_to_message(text, "app.nightly"):
        text = tags_for_message()
    with bound_to_message(text, "app.each"):
        assert current_tags().extra == {"task": "mine"}


def test_calls_before_a_job_names_its_user_are_settled(voight_calls: Any) -> None:
    """A job that looks its user up with an LLM call, or between two of them, has one owner."""
    with bound_to_message(None):
        spend()
        set_tags(user_id="u", plan="pro")
        spend()
    assert owners(voight_calls) == [("u", "settled"), ("u", "tag")]
    assert {call.tags.plan for call in voight_calls} == {"pro"}


def test_calls_before_a_job_names_many_users_stay_nobodys(voight_calls: Any) -> None:
    """What a nightly job does for all of its users is not billed to the last one."""
    with bound_to_message(None):
        spend()
        for name in ("u", "v"):
            set_tags(user_id=name)
            spend()
    assert owners(voight_calls) == [(None, "none"), ("u", "tag"), ("v", "tag")]


def test_a_call_that_outlives_its_job_has_its_owner(voight_calls: Any) -> None:
    """A thread that a job leaves behind still spends for its user."""
    with bound_to_message(text_of(Tags(user_id="u"))):
        later = voight.carry(spend)
    later()
    assert owners(voight_calls) == [("u", "tag")]


def test_a_dependency_inside_of_a_job_names_the_user() -> None:
    """`identify` replaces what was carried, and its plan with it."""
    with bound_to_message(text_of(Tags(user_id="u", plan="pro"))):
        scope = current_context().scope
        assert scope is not None
        scope.set_identity(Tags(user_id="d"), "dependency")
        assert current_context().owner() == (Tags(user_id="d"), "dependency")


def test_a_getter_that_failed_is_an_error_in_the_job_too(voight_calls: Any) -> None:
    """A call whose owner could not be found out is told from one that has none."""

    def broken(_: Any) -> str:
        raise RuntimeError

    with use_scope(RequestScope(lambda: None, Getters(broken), lambda: "POST /chat")):
        text = tags_for_message()
    with bound_to_message(text):
        spend()
    assert owners(voight_calls) == [(None, "error")]


@pytest.mark.parametrize(
    "text",
    ["", "alice@example.com", "[]", "5", 5, b"\xff", '{"tags":{"user_id":5}}', '{"tags":"u"}', object(), "{" * 10_000, ["u"]],
)
def test_a_message_that_cannot_be_read_is_nobodys(text: Any, meter: Meter, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing raises, the job runs, it is counted, and the log does not quote it."""
    with request("outer"), bound_to_message(text, "app.work"):
        assert current_tags() == Tags(route="task app.work", extra={"task": "app.work"})
    assert counters["unreadable_messages"] == 1
    assert "alice" not in caplog.text


@pytest.mark.parametrize(
    ("text", "tags", "attribution"),
    [
        ("{}", Tags(), "none"),
        (b'{"tags":{"user_id":"u"},"attribution":"getter"}', Tags(user_id="u"), "getter"),
        ('{"tags":{"user_id":"u","later":"x"},"attribution":"oracle","v":2}', Tags(user_id="u"), "tag"),
        ('{"tags":{"user_id":"u"},"attribution":"none"}', Tags(user_id="u"), "tag"),
        ('{"tags":{"user_id":" a\\nb "}}', Tags(user_id="a\\u000ab"), "tag"),
        ('{"tags":{"user_id":null,"plan":"","extra":{"bad key":"x","ok":"y"}}}', Tags(extra={"ok": "y"}), "none"),
        ('{"attribution":"getter"}', Tags(), "none"),
    ],
)
def test_messages_of_other_versions_and_languages(text: Any, tags: Tags, attribution: str) -> None:
    """Unknown keys are passed over, and values are cleaned as everywhere."""
    with bound_to_message(text):
        assert current_context().owner() == (tags, attribution)


def test_a_message_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Extra keys without end are left out, the owner is not, and the log says so."""
    with tag(user_id='"' * 256, **{f"key_{number}": "x" * 256 for number in range(100)}):
        text = tags_for_message()
    assert text is not None
    assert len(text) <= MAX_CHARACTERS
    with bound_to_message(text):
        assert current_tags() == Tags(user_id='"' * 256)
    assert any("dropped from its message" in record.getMessage() for record in caplog.records)


def test_an_address_is_the_same_pseudonym_in_the_request_and_in_its_job(voight_calls: Any) -> None:
    """The broker never sees it, and the user has one row."""
    with request("alice@example.com"):
        spend()
        text = tags_for_message()
    assert text is not None
    assert "alice" not in text
    with bound_to_message(text):
        spend()
        again = tags_for_message()
    with bound_to_message(again):
        spend()
    users = [call.tags.user_id for call in voight_calls]
    assert len(users) == 3
    assert len(set(users)) == 1
    assert None not in users


def test_what_the_guard_replaces_is_not_in_the_message(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker sees what the ledger would."""
    monkeypatch.setattr(meter, "pseudonymized", lambda tags: Tags(user_id="pseudonym"))
    with tag(user_id="alice@example.com"):
        text = tags_for_message()
    assert text is not None
    assert "alice" not in text
    with bound_to_message(text):
        assert current_tags().user_id == "pseudonym"


def test_a_guard_that_fails_costs_the_tags_and_not_the_job(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours sends the message without tags, rather than unguarded ones or none at all."""

    def broken(tags: Tags) -> Tags:
        raise RuntimeError

    monkeypatch.setattr(meter, "pseudonymized", broken)
    headers: dict[str, Any] = {}
    with tag(user_id="u"):
        stamp(headers)
    assert headers == {}
    assert counters["internal_errors"] == 1
