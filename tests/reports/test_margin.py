"""What customers cost, beside what they pay; and revenue out of CSV files."""

import contextlib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voight_middleware.ledger import Ledger, UnknownDimension
from voight_middleware.reports.margin import AmbiguousCustomers, margin
from voight_middleware.reports.revenue import Revenue, RevenueError, read_csv

USD = 10**15
Add = Callable[..., None]


def test_worst_first(ledger: Ledger, add: Add) -> None:
    """Rows have margin and ratio, the worst first; calls of nobody are in the total only; an unknown cost is no margin."""
    add("good", 2)
    add("bad", 9)
    add("free", 3)
    add("dark", None)
    add(None, 4)
    report = margin(ledger, {"good": 20 * USD, "bad": 5 * USD, "idle": 7 * USD, "dark": 1 * USD})
    assert [(row.id, row.margin_femto, row.cost_to_revenue, row.status) for row in report.rows] == [
        ("bad", -4 * USD, Decimal("1.8"), None),
        ("free", -3 * USD, None, "no revenue"),
        ("idle", 7 * USD, 0, "no calls"),
        ("good", 18 * USD, Decimal("0.1"), None),
        ("dark", None, None, None),
    ]
    assert (report.revenue_femto, report.total.cost_femto, report.margin_femto) == (33 * USD, 18 * USD, 15 * USD)
    assert (report.unowned.cost_femto, report.owners.unowned.calls, report.total.unpriced_calls) == (4 * USD, 1, 1)


def test_on_tenants(ledger: Ledger, add: Add) -> None:
    """Customers may be tenants; any other key must be one of the ledger."""
    add("u_1", 2, tenant_id="t_1")
    add("u_2", 3, tenant_id="t_1")
    (row,) = margin(ledger, {"t_1": 10 * USD}, "tenant_id").rows
    assert (row.margin_femto, row.spend.calls) == (5 * USD, 2)
    with pytest.raises(UnknownDimension):
        margin(ledger, {}, "x) UNION SELECT 1 --")


def test_several_names(ledger: Ledger, add: Add) -> None:
    """A customer's calls are those of all the names that he has in the ledger; two customers of one name are an error."""
    add("a@example.com", 1)
    add("p_a", 2)
    add("p_b", 4)
    names = {"a@example.com": ["a@example.com", "p_a"], "b": ["b", "p_b"]}
    report = margin(ledger, {"a@example.com": 10 * USD, "b": 10 * USD}, known_as=names.__getitem__)
    assert {row.id: row.cost_femto for row in report.rows} == {"a@example.com": 3 * USD, "b": 4 * USD}
    with pytest.raises(AmbiguousCustomers, match="'a' and 'b' are both 'x'"):
        margin(ledger, {"a": 1, "b": 1}, known_as=lambda id_: [id_, "x"])


def test_empty(ledger: Ledger) -> None:
    """Without calls all revenue is margin; without both there is nothing."""
    report = margin(ledger, {"u": 3 * USD})
    assert (report.rows[0].status, report.margin_femto, report.cost_to_revenue) == ("no calls", 3 * USD, None)
    assert (margin(ledger, {}).rows, margin(ledger, {}).margin_femto) == ((), 0)


# -- CSV -----------------------------------------------------------------------------------------------------------------------


def read(tmp_path: Path, text: str | bytes, column: str = "user_id") -> Revenue:
    path = tmp_path / "revenue.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_csv(path, column)


@pytest.mark.parametrize(
    "text",
    [
        "id,revenue\nu_1,20\nu_2,0.05\n",
        "\ufeffid,revenue\r\nu_1,20\r\nu_2,0.05",
        "id;revenue\nu_1;20\nu_2;0,05\n",
        "id;revenue\nu_1;20.00\nu_2;0.05\n",
        'ID, Revenue ,name\n"u_1",20,"Ö, ""x"""\n\n u_2 ,0.05,\n',
        "currency,amount,user_id\nusd,20,u_1\nUSD,0.050,u_2\n",
    ],
)
def test_csv(tmp_path: Path, text: str) -> None:
    """Commas or semicolons, a byte order mark, quotes, blank lines and other columns are read."""
    revenue = read(tmp_path, text)
    assert revenue.by_id == {"u_1": Decimal(20), "u_2": Decimal("0.05")}
    assert revenue.in_usd(None) == {"u_1": 20 * USD, "u_2": 5 * 10**13}


def test_every_mistake_is_named(tmp_path: Path) -> None:
    """All mistakes are named with their lines, not only the first one."""
    text = 'id,revenue,currency\nu_1,-3,USD\nu_2,"1,000.00",USD\n,5,USD\nu_1,5,USD\nu_3,1e3,US\nu_4,5\nu_5,nan,USD\nu_6,٣,USD\n'
    with pytest.raises(RevenueError) as error:
        read(tmp_path, text)
    assert error.value.problems == (
        "line 2: the revenue -3 is negative: give the rest after refunds, at least 0",
        "line 3: the revenue '1,000.00' is not an amount such as 1234.50",
        "line 4: there is no id",
        "line 5: 'u_1' is already on line 2",
        "line 6: the revenue '1e3' is not an amount such as 1234.50",
        "line 6: the currency 'US' is not a code of three letters such as USD",
        "line 7: 2 columns instead of 3",
        "line 8: the revenue 'nan' is not an amount such as 1234.50",
        "line 9: the revenue '٣' is not an amount such as 1234.50",
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1: there is no column id or user_id"),
        ("u_1,20\n", "line 1: there is no column id or user_id"),
        ("id,income\n", "line 1: there is no column revenue or amount"),
        ("id,user_id,revenue\n", "line 1: the column id occurs 2 times"),
        ("id,revenue,currency\na,1,USD\nb,1,EUR\n", "several currencies: USD (line 2), EUR (line 3)"),
        (b"id,revenue\nu_1,20\n\xff,3\n", "line 3: not UTF-8"),
        ('id,revenue\n"u_1,20\n', "line 2: unexpected end of data"),
        ("id;revenue\nu_1;1.000,00\n", "line 2: the revenue '1.000,00' is not an amount"),
        ("id;revenue\nu_1;1,000\n", "line 2: the revenue '1,000' is not an amount"),
    ],
)
def test_other_mistakes(tmp_path: Path, text: str | bytes, problem: str) -> None:
    """What cannot be read says where and why."""
    with pytest.raises(RevenueError) as error:
        read(tmp_path, text)
    assert problem in str(error.value)


@pytest.mark.parametrize("path", ["/nowhere/x.csv", "/", "a\0b"])
def test_no_file(path: str) -> None:
    """A file that is none is an error for people."""
    with pytest.raises(RevenueError, match="cannot be read"):
        read_csv(Path(path))


def test_another_currency(tmp_path: Path) -> None:
    """Revenue in another currency needs a rate, and revenue in US dollars none."""
    revenue = read(tmp_path, "id,revenue,currency\nu_1,100,eur\n")
    assert revenue.in_usd(Decimal("1.08")) == {"u_1": 108 * USD}
    with pytest.raises(RevenueError, match="revenue is in EUR, and calls cost US dollars: give --rate"):
        revenue.in_usd(None)
    with pytest.raises(RevenueError, match="need no --rate"):
        read(tmp_path, "id,revenue\nu_1,100\n").in_usd(Decimal(1))


@given(st.text(max_size=80))
def test_nothing_but_revenue_errors(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """No file whatever raises anything but RevenueError."""
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(("id,revenue\n" + text).encode(errors="replace"))
    with contextlib.suppress(RevenueError):
        assert all(amount >= 0 for amount in read_csv(path).by_id.values())
