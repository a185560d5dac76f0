"""The table of docs/propagation.md is what the tests of the columns have found."""

from pathlib import Path

from .matrix import WRITES, table

PAGE = Path(__file__).parents[2] / "docs" / "propagation.md"
BEGIN, END = "<!-- the table: begin -->", "<!-- the table: end -->"


def test_the_page_shows_what_was_found() -> None:
    """The page has the table of all columns, as their tests wrote it, word for word."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    written, _, after = rest.partition(END)
    assert after, f"{PAGE} has the two marks"
    expected = f"\n{table()}\n"
    if WRITES:
        PAGE.write_text(f"{before}{BEGIN}{expected}{END}{after}")
        return
    assert written == expected, "run: VOIGHT_WRITE_PROPAGATION=1 pytest tests/propagation"
