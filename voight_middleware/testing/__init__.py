"""
For tests: a provider on loopback, and the calls of a test.

pytest loads the fixtures ``voight_calls`` and ``voight_provider`` by itself. ``LoopbackProvider``
needs the extra ``testing``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voight_middleware.testing.plugin import VoightCalls
    from voight_middleware.testing.provider import LoopbackProvider

__all__ = ("LoopbackProvider", "VoightCalls")


def __getattr__(name: str) -> object:
    if name == "LoopbackProvider":  # brings a web server
        from voight_middleware.testing.provider import LoopbackProvider

        return LoopbackProvider
    if name == "VoightCalls":
        from voight_middleware.testing.plugin import VoightCalls

        return VoightCalls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
