"""Calls are priced as their application is configured, whichever process ingests them."""

import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.cli import main
from voight_middleware.config.settings import Settings, usable_settings
from voight_middleware.context.context import NOBODY, TagContext
from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.ingest import UnpricedJournal, drain
from voight_middleware.pipeline.journal import segments
from voight_middleware.pipeline.meter import Meter
from voight_middleware.pipeline.supervisor import IngestSupervisor
from voight_middleware.records.tags import NO_TAGS as NONE

from ..pipeline.journals import NewCall

MINE = "[[price]]\nmodel = 'gpt-5-nano'\ninput = 1\noutput = 1\n"
AT_MINE, AT_LIST = 12_000_000_000, 1_300_000_000
BROKEN = "[[price]]\nmodel = 'gpt-5-nano'\nimput = 1\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is not a project, with the ledger that the environment names."""
    monkeypatch.chdir(tmp_path)
    for name in ("VOIGHT_PRICES", "VOIGHT_CONFIG", "VOIGHT_INGEST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VOIGHT_LEDGER", str(tmp_path / "ledger.db"))
    return tmp_path


def leave(settings: Settings, *calls: Any) -> None:
    """Write calls as an application of these settings does that ends before they are in the ledger."""
    meter = Meter(settings)
    meter._closed = True  # no background thread
    for call in calls:
        meter.finish(call, TagContext(None, NONE), NOBODY)
    meter.journal.end()


def costs(place: Path) -> list[int | None]:
    """What the calls of the ledger cost."""
    with closing(open_ledger(f"sqlite:///{place}/ledger.db")) as ledger:
        return [call.cost_femto for call in ledger.calls()]


def test_a_shell_without_the_prices_uses_them(place: Path, new_call: NewCall, capsys: pytest.CaptureFixture[str]) -> None:
    """`voight top` knows nothing of `configure(prices=...)`. The figure is right, also when the file has gone or changed meanwhile."""
    prices = place / "mine.toml"
    prices.write_text(MINE)
    leave(Settings.from_environment(prices=prices), new_call())
    prices.write_text(MINE.replace("1", "50"))
    assert main(["top"]) == 0
    assert capsys.readouterr().err == ""
    assert costs(place) == [AT_MINE]


def test_a_shell_with_prices_uses_the_list_for_an_application_without(
    place: Path, new_call: NewCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same way round. One that leaves the ledger to `voight ingest` leaves the prices to it, too."""
    (place / "mine.toml").write_text(MINE)
    monkeypatch.setenv("VOIGHT_PRICES", str(place / "mine.toml"))
    leave(Settings.from_environment(environ={"VOIGHT_LEDGER": str(place / "ledger.db")}), new_call())
    assert main(["top"]) == 0
    assert costs(place) == [AT_LIST]
    leave(Settings.from_environment(environ={"VOIGHT_LEDGER": str(place / "ledger.db")}, ingest=False), new_call())
    assert main(["top"]) == 0
    assert costs(place) == [AT_LIST, AT_MINE]


def test_two_applications_with_different_prices(place: Path, new_call: NewCall) -> None:
    """One journal, one ingester, each call as its own process is configured."""
    (place / "mine.toml").write_text(MINE)
    (place / "double.toml").write_text(MINE.replace("= 1", "= 2"))
    for prices in (None, "mine.toml", "double.toml"):
        leave(Settings.from_environment(prices=prices), new_call())
    drain(f"sqlite:///{place}/ledger.db", place / "ledger.db.journal")
    assert sorted(costs(place), key=lambda cost: cost or 0) == [AT_LIST, AT_MINE, 2 * AT_MINE]


@pytest.mark.slow
@pytest.mark.parametrize("content", [BROKEN, None, b"\xff"], ids=["broken", "missing", "no text"])
def test_a_broken_file_makes_calls_wait_whoever_ingests(
    content: str | bytes | None, place: Path, new_call: NewCall, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no other call; once the file is put right, its calls cost what was meant."""
    prices = place / "mine.toml"
    if content is not None:
        prices.write_bytes(content.encode() if isinstance(content, str) else content)
    leave(Settings.from_environment(prices=prices), new_call())
    leave(Settings.from_environment(), new_call())
    assert main(["top"]) == 0
    said = capsys.readouterr().err
    assert "calls wait in the journal" in said
    assert str(prices) in said
    assert costs(place) == [AT_LIST]
    assert main(["doctor"]) == 1
    assert "their prices cannot be used" in capsys.readouterr().out
    prices.write_text(MINE)
    assert main(["top"]) == 0
    assert capsys.readouterr().err == ""
    assert sorted(cost or 0 for cost in costs(place)) == [AT_LIST, AT_MINE]


def test_kept_prices_that_are_lost_or_changed_make_calls_wait(place: Path, new_call: NewCall) -> None:
    """Whoever cannot know what a call costs does not price it."""
    (place / "mine.toml").write_text(MINE)
    leave(Settings.from_environment(prices="mine.toml"), new_call())
    folder = place / "ledger.db.journal"
    (kept,) = folder.glob("prices-*.json")
    content = kept.read_bytes()
    for change in (kept.unlink, lambda: kept.write_bytes(content.replace(b"= 1", b"= 0"))):
        change()
        with pytest.raises(UnpricedJournal, match=r"prices-[0-9a-f]{16}\.json"):
            drain(f"sqlite:///{place}/ledger.db", folder)
    kept.write_bytes(content)
    drain(f"sqlite:///{place}/ledger.db", folder)
    assert costs(place) == [AT_MINE]


def test_the_content_is_kept_once_and_for_this_account_only(place: Path, new_call: NewCall) -> None:
    """However many processes and segments there are."""
    (place / "mine.toml").write_text(MINE)
    for _ in range(3):
        leave(Settings.from_environment(prices="mine.toml"), new_call())
    (kept,) = (place / "ledger.db.journal").glob("prices-*")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert len(segments(place / "ledger.db.journal")) == 3


def test_prices_of_the_settings_file(place: Path, new_call: NewCall) -> None:
    """The application without `configure()` and the command line find the same file."""
    (place / "mine.toml").write_text(MINE)
    (place / "voight.toml").write_text('prices = "mine.toml"\n')
    leave(usable_settings()[0], new_call())
    assert main(["top"]) == 0
    assert costs(place) == [AT_MINE]


def test_a_settings_file_that_cannot_be_read_makes_calls_wait(place: Path, new_call: NewCall) -> None:
    """It may name prices. Once it is put right, they hold."""
    (place / "mine.toml").write_text(MINE)
    (place / "voight.toml").write_text('prices = "mine.toml\n')
    leave(usable_settings()[0], new_call())
    url, folder = f"sqlite:///{place}/ledger.db", place / "ledger.db.journal"
    with pytest.raises(UnpricedJournal, match=r"voight\.toml"):
        drain(url, folder)
    (place / "voight.toml").write_text('prices = "mine.toml"\n')
    drain(url, folder)
    assert costs(place) == [AT_MINE]


def test_a_variable_that_names_no_file_makes_calls_wait(place: Path, new_call: NewCall, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ingests."""
    monkeypatch.setenv("VOIGHT_PRICES", "~nosuchuser/mine.toml")
    leave(usable_settings()[0], new_call())
    monkeypatch.delenv("VOIGHT_PRICES")
    with pytest.raises(UnpricedJournal, match=r"~nosuchuser/mine\.toml: cannot be read"):
        drain(f"sqlite:///{place}/ledger.db", place / "ledger.db.journal")


def test_synchronous_delivery_does_not_wait_for_prices(place: Path, new_call: NewCall) -> None:
    """A delivery whose calls cannot be priced has an error, so that no request waits for it."""
    leave(Settings.from_environment(prices="gone.toml"), new_call())
    delivery = IngestSupervisor(f"sqlite:///{place}/ledger.db", place / "ledger.db.journal")
    with closing(delivery):
        with pytest.raises(UnpricedJournal):
            delivery.run()
        assert delivery.error is not None
        (place / "gone.toml").write_text(MINE)
        assert delivery.run()
        assert delivery.error is None


def test_listeners_hear_the_cost_as_configured(place: Path, new_call: NewCall) -> None:
    """Where another process ingests, too."""
    (place / "mine.toml").write_text(MINE)
    heard: list[int | None] = []
    meter = Meter(Settings.from_environment(prices="mine.toml", ingest=False), [lambda call: heard.append(call.cost_femto)])
    meter.finish(new_call(), TagContext(None, NONE), NOBODY)
    assert meter.flush()
    meter.close()
    assert heard == [AT_MINE]
