"""The process that sends the tasks of ``celery_app``: of every kind, and says as JSON whose each is."""

import json
from typing import Any

from celery import chain, chord, group
from celery_app import app

import voight_middleware as voight


def sig(name: str, *args: Any) -> Any:
    return app.signature(f"celery_app.{name}", args=args)


def send_everything() -> dict[str, str | None]:
    """Send a task of every kind; answers by place whose it is."""
    expected: dict[str, str | None] = {}

    def expect(user: str | None, *places: str) -> None:
        expected.update(dict.fromkeys(places, user))

    def nobodys(number: int) -> None:
        """On the worker that has just had alice's task, or will have the next one."""
        for one in range(2):
            sig("work", f"untagged {number}.{one}").delay()
            expect(None, f"untagged {number}.{one}")

    with voight.tag(user_id="alice", plan="pro"):
        sig("work", "delay").delay()
        sig("work", "countdown").apply_async(countdown=0.1)
        app.send_task("celery_app.work", args=["by name"])
        sig("retrying", "retry").delay()
        sig("nested", "task in task").delay()
        expect("alice", "delay", "countdown", "by name", "retry", "task in task")
    nobodys(1)
    with voight.tag(user_id="bob"):
        group(sig("work", f"group {number}") for number in range(3)).apply_async()
        chain(sig("work", "chain 1"), sig("after", "chain 2"), sig("after", "chain 3")).apply_async()
        chord([sig("work", f"chord {number}") for number in range(3)])(sig("after", "chord body"))
        sig("work", "linked").apply_async(link=sig("after", "callback"))
        sig("failing", "fails").apply_async(link_error=sig("on_error"))
        sig("failing", "fails too").apply_async(link_error=sig("on_error_in_place", "error callback in place"))
        expect("bob", "group 0", "group 1", "group 2", "chain 1", "chain 2", "chain 3", "chord 0", "chord 1", "chord 2", "chord body")
        expect("bob", "linked", "callback", "fails", "error callback", "fails too", "error callback in place")
    nobodys(2)
    with voight.tag(user_id="carol"):
        sig("ignoring", "ignored", "ignore").delay()
        sig("ignoring", "rejected", "reject").delay()
        sig("eager_inside", "eager").delay()
        sig("replacing", "replaced").delay()
        sig("makes_chord", "inner chord").delay()
        expect("carol", "ignored", "rejected", "eager, apply", "eager, behind", "replaced")
        expect("carol", *(f"inner chord, {part}" for part in ("header 0", "header 1", "body")))
    nobodys(3)
    # Tasks that say themselves whose they are, and what follows after them.
    sig("setting", "dave", "sets").delay()
    chain(sig("setting", "dave", "sets, then"), sig("after", "behind what sets")).apply_async()
    expect("dave", "sets", "sets, then", "behind what sets")
    sig("through_all", ["erin", "frank"], "nightly").delay()
    expect(None, "nightly, all")
    for name in ("erin", "frank"):
        expect(name, f"nightly, {name}", f"nightly, sent for {name}")
    chain(sig("through_all", ["erin", "frank"], "chained"), sig("after", "report of all")).apply_async()
    sig("through_all", ["erin", "frank"], "linked through").apply_async(link=sig("after", "callback of all"))
    expect(None, "chained, all", "report of all", "linked through, all", "callback of all")
    for name in ("erin", "frank"):
        expect(name, *(f"{begin}, {middle}{name}" for begin in ("chained", "linked through") for middle in ("", "sent for ")))
    sig("nobodys_retry", "nobody's retry").delay()
    expect(None, "nobody's retry")
    for kind, body in (
        ("task", sig("after", "task of many")),
        ("chain", chain(sig("after", "chain of many 1"), sig("after", "chain of many 2"))),
        ("group", group(sig("after", f"group of many {number}") for number in range(2))),
    ):
        chord([sig("setting", name, f"part of {kind}, {name}") for name in ("gina", "hank")])(body)
        for name in ("gina", "hank"):
            expect(name, f"part of {kind}, {name}")
    expect(None, "task of many", "chain of many 1", "chain of many 2", "group of many 0", "group of many 1")
    nobodys(4)
    return expected


print(json.dumps(send_everything()))
