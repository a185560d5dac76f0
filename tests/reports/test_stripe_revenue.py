"""
Revenue out of Stripe, against localstripe, a server of the package registry that plays Stripe's API.

It does not know the filters ``status`` and ``created``, nor 429, credit notes and deleted customers: a loopback server of this test
stands in front of it that takes the filters off, and where a test says so, answers itself.
"""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from voight_middleware.ledger import Window
from voight_middleware.reports.revenue import RevenueError
from voight_middleware.reports.stripe_revenue import connect, read_stripe

from ..support.patching import Patch

stripe = pytest.importorskip("stripe")
if find_spec("localstripe") is None:
    pytest.skip("localstripe is not installed", allow_module_level=True)

EVER = Window(0)


class Front(ThreadingHTTPServer):
    """In front of localstripe: what it has been asked for, and answers of its own."""

    daemon_threads = True
    behind: int
    asked: list[dict[str, str]]
    answers: list[tuple[int, dict[str, str], dict[str, Any]]]


class Handler(BaseHTTPRequestHandler):
    server: Front

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        self.server.asked.append(query)
        if self.server.answers:
            status, headers, body = self.server.answers.pop(0)
            self.answer(status, headers, json.dumps(body).encode())
            return
        kept = {name: value for name, value in query.items() if not name.startswith(("status", "created"))}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.behind)
        connection.request("GET", f"{parts.path}?{urlencode(kept)}", headers={"Authorization": self.headers["Authorization"]})
        response = connection.getresponse()
        self.answer(response.status, {}, response.read())
        connection.close()

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def localstripe() -> Iterator[int]:
    """localstripe, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "localstripe", "--port", str(port), "--from-scratch"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, "localstripe did not start"
                assert time.monotonic() < deadline, "localstripe did not start"
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def front(localstripe: int) -> Iterator[Front]:
    """An empty localstripe, and what stands in front of it."""
    connection = http.client.HTTPConnection("127.0.0.1", localstripe)
    connection.request("DELETE", "/_config/data")
    assert connection.getresponse().status == 200
    connection.close()
    server = Front(("127.0.0.1", 0), Handler)
    server.behind, server.asked, server.answers = localstripe, [], []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def client(front: Front) -> Any:
    return connect("sk_test_1", f"http://127.0.0.1:{front.server_address[1]}")


class Shop:
    """Makes customers and invoices in localstripe, through Stripe's library; there, it is subscriptions that make an invoice."""

    def __init__(self, port: int) -> None:
        self.stripe = stripe.StripeClient("sk_test_1", base_addresses={"api": f"http://127.0.0.1:{port}"})

    def customer(self, card: str = "4242424242424242", **metadata: str) -> str:
        customer = self.stripe.v1.customers.create({"metadata": metadata})
        method = self.stripe.v1.payment_methods.create(
            {"type": "card", "card": {"number": card, "exp_month": 12, "exp_year": 2040, "cvc": "123"}}
        )
        self.stripe.v1.payment_methods.attach(method.id, {"customer": customer.id})
        self.stripe.v1.customers.update(customer.id, {"invoice_settings": {"default_payment_method": method.id}})
        return str(customer.id)

    def invoice(self, customer: str, amount: int, currency: str = "usd") -> None:
        """An invoice, and its payment with the customer's card."""
        terms = {"amount": amount, "currency": currency, "interval": "month", "product": {"name": "x"}}
        plan = self.stripe.v1.plans.create(terms)
        self.stripe.v1.subscriptions.create({"customer": customer, "items": [{"plan": plan.id}]})


def test_paid_invoices_by_customer(front: Front, localstripe: int) -> None:
    """What a customer paid is added up by the key in his metadata; what is open does not count; who has no key is told of."""
    shop = Shop(localstripe)
    first, second, other = shop.customer(user_id="u_1"), shop.customer(user_id="u_2"), shop.customer(name="x")
    declined = shop.customer("4000000000000341", user_id="u_2")
    for customer, amount in ((first, 2000), (first, 550), (second, 700), (declined, 900), (other, 300)):
        shop.invoice(customer, amount)
    revenue = read_stripe(client(front), EVER)
    assert (revenue.by_id, revenue.currency) == ({"u_1": Decimal("25.50"), "u_2": Decimal("7.00")}, "USD")
    assert "1 invoice (3.00 USD) of customers without 'user_id' in their metadata" in revenue.notes[1]
    assert front.asked[0]["status"] == "paid"
    assert front.asked[0]["expand[0]"] == "data.customer"
    assert read_stripe(client(front), EVER, "name").by_id == {"x": Decimal("3.00")}


def test_pages(front: Front, localstripe: int, patch: Patch) -> None:
    """All pages are read, each from behind the last invoice of the one before."""
    patch("PAGE", 3, within="stripe_revenue")
    shop = Shop(localstripe)
    customer = shop.customer(user_id="u_1")
    for _ in range(8):
        shop.invoice(customer, 100)
    assert read_stripe(client(front), EVER).by_id == {"u_1": Decimal(8)}
    assert [("starting_after" in query) for query in front.asked] == [False, True, True]
    assert len({query.get("starting_after") for query in front.asked}) == 3


def test_only_what_was_paid_in_the_window(front: Front, localstripe: int) -> None:
    """An invoice counts in the time in which it was paid, and its making is looked for three months back."""
    shop = Shop(localstripe)
    shop.invoice(shop.customer(user_id="u_1"), 100)
    now = time.time_ns() // 1000
    hour = 3_600_000_000
    assert read_stripe(client(front), Window(now - hour, now + hour)).by_id == {"u_1": Decimal(1)}
    assert read_stripe(client(front), Window(now + hour, now + 2 * hour)).by_id == {}
    assert read_stripe(client(front), Window(now - 2 * hour, now - hour)).by_id == {}
    assert int(front.asked[0]["created[gte]"]) == (now - hour) // 1_000_000 - 92 * 86_400
    assert int(front.asked[0]["created[lt]"]) >= (now + hour) // 1_000_000


def test_currencies(front: Front, localstripe: int) -> None:
    """One currency is read in its own unit, with no decimals where it has none; several are refused by name."""
    shop = Shop(localstripe)
    shop.invoice(shop.customer(user_id="u_1"), 5000, "jpy")
    revenue = read_stripe(client(front), EVER)
    assert (revenue.by_id, revenue.currency) == ({"u_1": Decimal(5000)}, "JPY")
    shop.invoice(shop.customer(user_id="u_2"), 5000, "eur")
    with pytest.raises(RevenueError, match=r"several currencies: \w{3} \(1 invoices\), \w{3} \(1 invoices\); they"):
        read_stripe(client(front), EVER)


def test_too_many_requests(front: Front, localstripe: int) -> None:
    """After 429 it is tried again, after the time that Stripe says or longer and longer, and given up in the end."""
    shop = Shop(localstripe)
    shop.invoice(shop.customer(user_id="u_1"), 100)
    refusal = {"error": {"message": "Too many", "type": "invalid_request_error", "code": "rate_limit"}}
    front.answers = [(429, {"Retry-After": "9"}, refusal), (429, {}, refusal), (429, {}, refusal)]
    waits: list[float] = []
    assert read_stripe(client(front), EVER, sleep=waits.append).by_id == {"u_1": Decimal(1)}
    assert waits[0] == 9
    assert 1.5 <= waits[1] <= 2.5
    assert 3 <= waits[2] <= 5
    front.answers = [(429, {}, refusal)] * 7
    with pytest.raises(RevenueError, match="too many requests"):
        read_stripe(client(front), EVER, sleep=waits.append)


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, {"message": "Invalid API Key provided: sk_test_1", "type": "invalid_request_error"}, "the key is refused"),
        (403, {"message": "no", "type": "invalid_request_error", "code": "more_permissions_required"}, r"refused \(403\)"),
        (400, {"message": "Bad \x1b[31m request", "type": "invalid_request_error"}, "Bad"),
    ],
)
def test_refusals(front: Front, status: int, error: dict[str, str], message: str) -> None:
    """What Stripe refuses is one error with what to do, and never shows the key."""
    front.answers = [(status, {}, {"error": error})]
    with pytest.raises(RevenueError, match=message) as raised:
        read_stripe(client(front), EVER)
    assert "sk_test_1" not in str(raised.value)


def test_a_server_that_is_not_there() -> None:
    """Where nobody answers, the error says so after the library's own attempts."""
    nobody = stripe.StripeClient("sk_test_1", base_addresses={"api": "http://127.0.0.1:9"}, max_network_retries=0)
    with pytest.raises(RevenueError, match="Stripe: "):
        read_stripe(nobody, EVER)


def invoice(**values: Any) -> dict[str, Any]:
    return {
        "id": "in_1",
        "object": "invoice",
        "status": "paid",
        "currency": "usd",
        "amount_paid": 1190,
        "total": 1190,
        "status_transitions": {"paid_at": 1_800_000_000},
        "customer": {"id": "cus_1", "object": "customer", "metadata": {"user_id": "u_1"}},
        **values,
    }


@pytest.mark.parametrize(
    ("values", "paid"),
    [
        ({}, "11.90"),
        ({"total_excluding_tax": 1000}, "10.00"),
        ({"total_taxes": [{"amount": 100}, {"amount": 90}]}, "10.00"),
        ({"total_excluding_tax": 1000, "post_payment_credit_notes_amount": 595}, "5.00"),
        ({"total_excluding_tax": 1000, "post_payment_credit_notes_amount": 1190}, "0.00"),
        ({"total": 0, "amount_paid": 0}, "0.00"),
        ({"total": 2380, "total_excluding_tax": 2000}, "10.00"),  # the other half came from the customer's balance
    ],
)
def test_what_counts(front: Front, values: dict[str, Any], paid: str) -> None:
    """What was paid counts, without tax, and less what credit notes have given back since."""
    front.answers = [(200, {}, {"object": "list", "has_more": False, "data": [invoice(**values)]})]
    assert read_stripe(client(front), EVER).by_id == {"u_1": Decimal(paid)}


def test_a_deleted_customer(front: Front) -> None:
    """A customer who was deleted has no metadata any more: what he paid is told of."""
    gone = invoice(customer={"id": "cus_1", "object": "customer", "deleted": True})
    front.answers = [(200, {}, {"object": "list", "has_more": False, "data": [gone]})]
    revenue = read_stripe(client(front), EVER)
    assert revenue.by_id == {}
    assert "1 invoice (11.90 USD)" in revenue.notes[1]
