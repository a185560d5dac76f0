"""See calls start, respond and end, in the application's own threads."""

from voight_middleware.pipeline.observers import CallObserver, CallStart

__all__ = ("CallObserver", "CallStart")
