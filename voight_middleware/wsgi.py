"""Middleware for WSGI applications without an adapter of their own."""

from voight_middleware.middleware.wsgi import CostTagMiddleware

__all__ = ("CostTagMiddleware",)
