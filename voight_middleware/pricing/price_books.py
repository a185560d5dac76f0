"""The price books of a journal, one per stamp."""

from __future__ import annotations

from pathlib import Path

from voight_middleware.config.kept_prices import LIST, kept_prices
from voight_middleware.config.settings_file import read_settings_file
from voight_middleware.pricing import (
    Overrides,
    OverridesError,
    PriceBook,
    open_book,
    parse_overrides,
    read_overrides,
)


class PriceBooks:
    """
    Opens and caches price books. Use it from one thread at a time.

    Args:
        folder: The journal.
        prices: This process's own file of prices, for segments without a stamp.
    """

    def __init__(self, folder: Path, prices: Path | None = None) -> None:
        self._folder = folder
        self._prices = prices
        self._books: dict[str, PriceBook] = {}

    def book(self, stamp: str = "") -> PriceBook:
        """
        Return the price book for a stamp.

        Raises:
            OverridesError: The prices cannot be used. The next call tries again.
        """
        if (known := self._books.get(stamp)) is not None:
            return known
        book = (
            open_book(self._prices)
            if not stamp
            else PriceBook(None if stamp == LIST else configured_prices(self._folder, stamp))
        )
        self._books[stamp] = book
        return book


def configured_prices(folder: Path, stamp: str) -> Overrides | None:
    """
    Return the prices that a process was configured with. Return None for list prices.

    If its file was unusable then, the file's current content is used: somebody may have fixed it.

    Raises:
        OverridesError: The prices cannot be used.
    """
    try:
        kept = kept_prices(folder, stamp)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise OverridesError(
            [f"{folder}/prices-{stamp}.json, the application's saved prices, cannot be read: {why}"]
        ) from error
    path = Path(kept.path)
    if kept.settings:
        file = read_settings_file(path)
        if file.problems:
            raise OverridesError(list(file.problems))
        prices = file.values.get("prices")
        return read_overrides(Path(str(prices)).expanduser()) if prices else None
    if kept.content is not None:
        try:
            return parse_overrides(kept.content, path)
        except OverridesError:
            pass
    return read_overrides(path)
