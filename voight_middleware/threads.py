"""Carry tags into threads, executors and generators."""

from voight_middleware.context.executors import (
    CarryingThreadPoolExecutor,
    acarry_steps,
    carry_steps,
    instrument_executors,
    uninstrument_executors,
)

__all__ = (
    "CarryingThreadPoolExecutor",
    "acarry_steps",
    "carry_steps",
    "instrument_executors",
    "uninstrument_executors",
)
