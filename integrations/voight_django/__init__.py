"""
Django: the owner of a call comes from ``request.user``.

::

    MIDDLEWARE = [..., "voight_django.CostTagMiddleware"]
    VOIGHT = {"PLAN_GETTER": "accounts.costs.plan_of"}

``"voight_django"`` in ``INSTALLED_APPS`` adds the system checks and ``manage.py voight``. The
middleware works without it.
"""

try:
    import django  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ImportError as error:
    raise ImportError(
        "voight_django needs Django: pip install 'voight-middleware[django]'"
    ) from error

from voight_django.middleware import CostTagMiddleware

__all__ = ["CostTagMiddleware"]
