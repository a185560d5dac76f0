"""Sequences whose items are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, overload

_Key = TypeVar("_Key")
_Item = TypeVar("_Item")


class LazySequence(Sequence[_Item], Generic[_Key, _Item]):
    """
    The items of some keys.

    Args:
        keys: One for each item.
        make: Makes an item. It makes an equal one each time.
    """

    def __init__(self, keys: Sequence[_Key], make: Callable[[_Key], _Item]) -> None:
        self._keys = keys
        self._make = make

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> _Item: ...

    @overload
    def __getitem__(self, index: slice[Any, Any, Any]) -> tuple[_Item, ...]: ...

    def __getitem__(self, index: int | slice[Any, Any, Any]) -> _Item | tuple[_Item, ...]:
        if isinstance(index, slice):
            return tuple(map(self._make, self._keys[index]))
        return self._make(self._keys[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))
