"""What a client can make as long as it likes is bounded before it is kept."""

from collections.abc import Callable
from pathlib import Path

from voight_middleware import record, tag
from voight_middleware.config.settings import Settings
from voight_middleware.context.context import NOBODY, current_context
from voight_middleware.pipeline.meter import MAX_TEXT, Meter, swap_meter
from voight_middleware.records.call import Call
from voight_middleware.records.tag_values import MAX_EXTRA
from voight_middleware.records.tags import Tags


def test_a_call_has_so_many_extra_keys_at_most() -> None:
    """The first of them are kept, those of an inner tag before those of the outer ones."""
    with tag(**{f"outer_{n}": "v" for n in range(50)}), tag(**{f"inner_{n}": "v" for n in range(5_000)}):
        extra = current_context().owner().tags.extra
    assert len(extra) == MAX_EXTRA
    assert list(extra) == [f"inner_{n}" for n in range(MAX_EXTRA)]


def test_keys_that_fit_are_all_kept() -> None:
    """The inner value of a key wins."""
    outer, inner = Tags(extra={"a": "1", "b": "1"}), Tags(extra={"b": "2", "c": "2"})
    assert dict(outer.merge(inner).extra) == {"a": "1", "b": "2", "c": "2"}


def test_the_texts_of_a_call_are_cut(tmp_path: Path, new_call: Callable[..., Call]) -> None:
    """A model's name of five megabytes costs nobody a ledger."""
    meter = Meter(Settings.from_environment(ledger=tmp_path / "ledger.db", environ={}))
    call = new_call(requested_model="m" * 5_000_000, model="n" * 1_000, service_tier="t" * 1_000, host="h" * 1_000)
    meter.finish(call, current_context(), NOBODY)
    assert {len(call.requested_model), len(call.model), len(call.service_tier), len(call.host)} == {MAX_TEXT}
    assert meter.journal.position()[1] < 10_000
    meter.close()


def test_a_recorded_call_is_bounded_too(tmp_path: Path) -> None:
    """By hand as from a provider."""
    meter = Meter(Settings.from_environment(ledger=tmp_path / "ledger.db", environ={}))
    outer = swap_meter(meter)
    try:
        record(provider="openai", model="m" * 100_000, usage={"prompt_tokens": 1, "completion_tokens": 1})
        assert meter.journal.position()[1] < 10_000
    finally:
        swap_meter(outer)
        meter.close()
