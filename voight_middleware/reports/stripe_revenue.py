"""Revenue from Stripe: paid invoices, by a key in the metadata of their customers."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from voight_middleware.ledger import Window
from voight_middleware.reports.revenue import Revenue, RevenueError

if TYPE_CHECKING:
    from stripe import StripeClient

SOURCE = "Stripe"
PAGE = 100
OVERDUE_DAYS = 92
"""
Stripe lists invoices by the time of their creation. An invoice that was paid more than this number
of days later is missed, and the report notes it.
"""
ATTEMPTS = 7
_HEADER_VALUE = re.compile(r"[!-~]{1,512}")
_SECRET = re.compile(r"\b[a-z]{2}_(?:live|test)_\w+|\bBearer\s+[^\s'\"]+", re.ASCII)
"""Keys of Stripe: an error of the HTTP library may contain the header."""

# Source: Stripe documentation, "Supported currencies": zero-decimal and three-decimal currencies.
# ISK and UGX have two decimals there.
_DECIMALS = {
    **dict.fromkeys(
        (
            "BIF",
            "CLP",
            "DJF",
            "GNF",
            "JPY",
            "KMF",
            "KRW",
            "MGA",
            "PYG",
            "RWF",
            "VND",
            "VUV",
            "XAF",
            "XOF",
            "XPF",
        ),
        0,
    ),
    **dict.fromkeys(("BHD", "JOD", "KWD", "OMR", "TND"), 3),
}


class StripeMissing(ImportError):
    """The ``stripe`` library is not installed."""


def connect(api_key: str, api_base: str | None = None) -> StripeClient:
    """
    Return a client of Stripe's official library, which retries after network and server errors.

    Raises:
        StripeMissing: The library is not installed.
        RevenueError: The key is malformed; the message does not contain it.
    """
    key = api_key.strip()  # a key from a file ends with a line break
    if not _HEADER_VALUE.fullmatch(key):
        raise RevenueError(
            SOURCE,
            [
                (
                    "the key contains a space, a line break or another invalid character: check "
                    "STRIPE_API_KEY"
                )
            ],
        )
    try:
        import stripe
    except ImportError as error:
        raise StripeMissing(
            "reading Stripe needs its library: pip install 'voight-middleware[stripe]'"
        ) from error
    base = (api_base or "").strip()
    return stripe.StripeClient(
        key, base_addresses={"api": base} if base else {}, max_network_retries=3
    )


# Complex: each field of an invoice may be missing, and each kind of invoice counts differently.
def read_stripe(
    client: StripeClient,
    window: Window,
    field: str = "user_id",
    sleep: Callable[[float], None] = time.sleep,
) -> Revenue:
    """
    Return the revenue of customers in a window.

    It is the ``amount_paid`` of each invoice that was paid in the window, minus its later credit
    notes, without tax. Refunds without a credit note are not included.

    Args:
        client: A client of Stripe's library.
        window: The time of payment. It needs a beginning.
        field: The key of the id in a customer's metadata.
        sleep: Waits before a retry after too many requests.

    Raises:
        RevenueError: Stripe refuses or does not respond, or the invoices have several currencies.
    """
    assert window.since is not None
    by_id: Counter[str] = Counter()
    currencies: Counter[str] = Counter()
    nameless, nameless_amount = 0, 0
    for invoice in _invoices(client, window, sleep):
        try:
            paid_at = _number((invoice.get("status_transitions") or {}).get("paid_at")) * 1_000_000
            if (
                invoice.get("status") != "paid"
                or paid_at < window.since
                or (window.until is not None and paid_at >= window.until)
            ):
                continue
            amount = _net(invoice)
            currency = str(invoice.get("currency") or "").upper()
            customer = invoice.get("customer")
            id_ = (
                (customer.get("metadata") or {}).get(field) if isinstance(customer, dict) else None
            )
        except (AttributeError, TypeError, ValueError) as error:
            name = str(invoice.get("id"))[:80]
            mistake = f"invoice {name} differs from Stripe's documentation ({error})"
            raise RevenueError(SOURCE, [mistake]) from error
        if amount or id_:
            currencies[currency] += 1
        if id_:
            by_id[str(id_).strip()] += amount
        elif amount:
            nameless += 1
            nameless_amount += amount
    if len(currencies) > 1:
        listed = ", ".join(
            f"{currency} ({count:,} invoices)" for currency, count in currencies.most_common()
        )
        raise RevenueError(
            SOURCE,
            [
                (
                    f"several currencies: {listed}; they cannot be added up: export them to a CSV "
                    "file with one currency"
                )
            ],
        )
    currency = next(iter(currencies), "USD")
    decimals = _DECIMALS.get(currency, 2)
    counted = (
        "revenue: invoices paid in this time, without tax, minus credit notes; not included: "
        "refunds without a credit note"
    )
    notes = [f"{counted}, and invoices created more than {OVERDUE_DAYS} days earlier"]
    if nameless:
        lost = Decimal(nameless_amount).scaleb(-decimals)
        invoices = "1 invoice" if nameless == 1 else f"{nameless:,} invoices"
        notes.append(
            f"{invoices} ({lost:,} {currency}) of customers without {field!r} in their metadata, "
            "in no row"
        )
    return Revenue(
        SOURCE,
        {id_: Decimal(amount).scaleb(-decimals) for id_, amount in by_id.items()},
        currency,
        tuple(notes),
    )


def _net(invoice: dict[str, Any]) -> int:
    """
    Return the amount paid of an invoice, minus credit notes, without tax, in the smallest unit.
    """
    kept = _number(invoice.get("amount_paid")) - _number(
        invoice.get("post_payment_credit_notes_amount")
    )
    total = _number(invoice.get("total"))
    without_tax = invoice.get("total_excluding_tax")
    if without_tax is None:
        taxes = invoice.get("total_taxes") or invoice.get("total_tax_amounts") or ()
        without_tax = total - sum(_number(tax.get("amount")) for tax in taxes)
    return round(Fraction(kept * _number(without_tax), total)) if total > 0 else kept


def _number(value: object) -> int:
    """
    Return an amount or a time; 0 for None.

    Raises:
        TypeError: The value is not a whole number.
    """
    if value is None:
        return 0
    if type(value) is not int:
        raise TypeError(f"{type(value).__name__} instead of a whole number")
    return value


def _invoices(
    client: StripeClient, window: Window, sleep: Callable[[float], None]
) -> Iterator[dict[str, Any]]:
    since = (window.since or 0) // 1_000_000 - OVERDUE_DAYS * 86_400
    created = {
        "gte": max(0, since),
        **({} if window.until is None else {"lt": -(-window.until // 1_000_000)}),
    }
    last: str | None = None
    seen: set[str] = set()
    while True:
        params: dict[str, Any] = {
            "status": "paid",
            "created": created,
            "limit": PAGE,
            "expand": ["data.customer"],
        }
        page = _page(client, params if last is None else {**params, "starting_after": last}, sleep)
        try:
            invoices = [invoice.to_dict() for invoice in page.data]
            ids = {invoice["id"] for invoice in invoices}
            has_more = bool(page.has_more)
        except (AttributeError, KeyError, TypeError) as error:
            raise RevenueError(
                SOURCE,
                [
                    (
                        "the list of invoices differs from Stripe's documentation "
                        f"({type(error).__name__})"
                    )
                ],
            ) from error
        if ids & seen:
            raise RevenueError(SOURCE, ["the list of invoices repeats itself: try again later"])
        seen |= ids
        yield from invoices
        if not has_more or not invoices:
            return
        last = invoices[-1]["id"]


def _page(client: StripeClient, params: dict[str, Any], sleep: Callable[[float], None]) -> Any:
    """
    Return one page; after too many requests, retry after one second, two, four, …

    Source: Stripe documentation, "Rate limits".
    """
    import stripe

    for attempt in range(ATTEMPTS):
        try:
            return client.v1.invoices.list(params)  # type: ignore[arg-type]  # a plain dict
        except stripe.RateLimitError as error:
            if attempt + 1 == ATTEMPTS:
                raise RevenueError(
                    SOURCE, ["too many requests, after several retries: try again later"]
                ) from error
            wanted = str((error.headers or {}).get("retry-after", ""))
            sleep(
                float(wanted) if wanted.isdecimal() else 2**attempt * (0.75 + random.random() / 2)
            )
        except (stripe.AuthenticationError, stripe.PermissionError) as error:
            problem = (
                f"the key is refused ({error.code or error.http_status}): set STRIPE_API_KEY to a "
                "key that can read invoices and customers"
            )
            raise RevenueError(SOURCE, [problem]) from error
        except stripe.StripeError as error:
            raise RevenueError(
                SOURCE, [_SECRET.sub("***", str(error.user_message or error))]
            ) from error
    raise AssertionError
