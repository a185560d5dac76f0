"""Revenue out of Stripe: a key that is not in order, and answers that are not as documented, without any server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from voight_middleware.ledger import Window
from voight_middleware.reports.revenue import RevenueError
from voight_middleware.reports.stripe_revenue import connect, read_stripe

stripe = pytest.importorskip("stripe")

KEY = "sk_live_51NotARealKey0123456789"
INVOICE = {"id": "in_1", "status": "paid", "status_transitions": {"paid_at": 1}, "amount_paid": 1000, "total": 1000, "currency": "usd"}


class _Listed:
    def __init__(self, invoice: Any) -> None:
        self._invoice = invoice

    def to_dict(self) -> Any:
        return self._invoice


def _client(*pages: Any) -> Any:
    """A client that answers these pages, the last one again and again; an exception is raised."""
    left = list(pages)

    def answer(params: Any) -> Any:
        page = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(page, Exception):
            raise page
        return page

    return SimpleNamespace(v1=SimpleNamespace(invoices=SimpleNamespace(list=answer)))


def _page(*invoices: Any, has_more: bool = False) -> Any:
    return SimpleNamespace(data=[_Listed(one) for one in invoices], has_more=has_more)


def test_a_key_is_used_without_the_end_of_its_line() -> None:
    """As `cat` gives it."""
    client = connect(f" {KEY}\r\n")
    assert client._requestor.api_key == KEY


@pytest.mark.parametrize("key", [f"{KEY}\n{KEY}", f"{KEY} {KEY}", f"“{KEY}”", "", "\n"])
def test_a_key_that_is_none_is_not_shown(key: str) -> None:
    """An HTTP library would say which header it refuses."""
    with pytest.raises(RevenueError, match="STRIPE_API_KEY") as caught:
        connect(key)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("text", [f"Invalid header value: 'Bearer {KEY}'", f"no such key: {KEY}", "Bearer abcdef"])
def test_a_key_in_an_error_is_not_shown(text: str) -> None:
    """Whatever the library says."""
    with pytest.raises(RevenueError, match=r"\*\*\*") as caught:
        read_stripe(_client(stripe.APIConnectionError(text)), Window(0))
    assert KEY not in str(caught.value)
    assert "abcdef" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"amount_paid": "1000"},
        {"amount_paid": 10.5},
        {"amount_paid": True},
        {"total": []},
        {"total_excluding_tax": "900"},
        {"total_taxes": [5]},
        {"total_taxes": [{"amount": "1"}]},
        {"status_transitions": [1]},
        {"status_transitions": {"paid_at": "today"}},
        {"customer": {"metadata": "u_1"}},
    ],
    ids=str,
)
def test_an_invoice_that_is_not_as_documented_is_said(changes: dict[str, Any]) -> None:
    """A number that is read wrongly would be a wrong margin."""
    with pytest.raises(RevenueError, match="in_1"):
        read_stripe(_client(_page({**INVOICE, **changes})), Window(0))


LISTS = [SimpleNamespace(), SimpleNamespace(data=None, has_more=False), _page({"status": "paid"}), SimpleNamespace(data=[5], has_more=True)]


@pytest.mark.parametrize("page", LISTS)
def test_a_list_that_is_not_as_documented_is_said(page: Any) -> None:
    """So is one that never ends."""
    with pytest.raises(RevenueError, match="list of invoices"):
        read_stripe(_client(page), Window(0))
    with pytest.raises(RevenueError, match="list of invoices"):
        read_stripe(_client(_page(INVOICE, has_more=True)), Window(0))
