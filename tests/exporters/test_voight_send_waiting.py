"""Events that wait are sent by a process that makes no calls."""

import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from voight_middleware.events.outbox import open_outbox
from voight_middleware.ledger import LedgerError, open_ledger

from ..support.event_server import EventServer, says
from ..support.waiting import wait_until
from .sending import Sending

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.mark.slow
@pytest.mark.parametrize("code", [401, 410, 403])
def test_send_waiting_goes_on_after_a_stop(server: EventServer, sending: Sending, code: int) -> None:
    """It is how somebody tries again who has mended the key; one attempt, where it is not mended."""
    ids = sending.write("u_1", "u_2")
    server.fault = says(code)
    sending.until(lambda: sending.kept().state.stopped)
    sending.delivery.close()
    left = sending.send_waiting()
    assert (left.waiting, left.state.stopped, len(server.times)) == (2, True, 2)
    server.fault = None
    left = sending.send_waiting()
    assert (left.waiting, left.state.stopped, left.state.problem) == (0, False, None)
    assert server.call_ids() == ids


@pytest.mark.slow
@pytest.mark.parametrize(("code", "problem"), [(503, "HTTP 503"), (400, None)])
def test_what_was_put_right_is_not_said_any_more(server: EventServer, sending: Sending, code: int, problem: str | None) -> None:
    """The key is good again; what the server says now is something else, and tried again by itself or set aside."""
    sending.write("u_1")
    server.fault = says(401)
    sending.until(lambda: sending.kept().state.stopped)
    sending.delivery.close()
    server.fault = says(code)
    left = sending.send_waiting(0.4)
    assert (left.state.stopped, left.state.problem) == (False, problem)


def test_send_waiting_sends_beside_a_journal_that_cannot_be_read(server: EventServer, sending: Sending) -> None:
    """One segment keeps back no event of others; it is an error all the same."""
    open_outbox(sending.folder, create=True)
    (sending.folder / "1-blocked.jsonl").mkdir(parents=True)
    ids = sending.write("u_1", "u_2")
    sending.delivery.close()
    with pytest.raises(LedgerError, match="cannot be read"):
        sending.send_waiting()
    assert server.call_ids() == ids


@pytest.mark.slow
def test_send_waiting_brings_in_what_others_write_meanwhile(server: EventServer, sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the elected one for as long as it sends: nobody else brings their calls into the ledger."""
    sending.delivery.run()
    ids = sending.write(*(f"u_{number}" for number in range(3)))
    sending.delivery.close()
    server.fault = says(503)
    thread = threading.Thread(target=sending.send_waiting)
    thread.start()
    wait_until(lambda: server.times)
    ids += sending.write("u_late")
    with closing(open_ledger(sending.ledger)) as ledger:
        wait_until(lambda: len(list(ledger.calls())) == 4)
    server.fault = None
    thread.join(20)
    assert not thread.is_alive()
    assert server.call_ids() == ids


@pytest.mark.slow
def test_send_waiting_keeps_its_time(server: EventServer, sending: Sending) -> None:
    """With a server that is down, too."""
    sending.delivery.run()
    sending.write("u_1")
    sending.delivery.close()
    server.fault = says(503)
    begun = time.monotonic()
    left = sending.send_waiting(0.5)
    assert 0.5 <= time.monotonic() - begun < 4
    assert (left.waiting, left.state.problem) == (1, "HTTP 503")


def test_send_waiting_says_when_the_ledger_cannot_be_asked(server: EventServer, sending: Sending) -> None:
    """And does not wait for ever, without a time given."""
    sending.delivery.run()
    sending.write("u_1")
    sending.delivery.close()
    Path(f"{sending.folder}.db").write_text("no ledger")
    with pytest.raises(LedgerError):
        sending.send_waiting(None)
    assert server.times == []
