"""
The Django project of the tests in this process: Django can be configured once.

Its URLs are those of each test: ``with project(path("chat/", view)): …``.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import django
from django.conf import settings
from django.test.utils import override_settings

OURS = "voight_django.CostTagMiddleware"
SIGN_IN = ("django.contrib.sessions.middleware.SessionMiddleware", "django.contrib.auth.middleware.AuthenticationMiddleware")

if not settings.configured:
    _folder = Path(tempfile.mkdtemp(prefix="voight-django-"))
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(_folder / "db.sqlite3"), "OPTIONS": {"timeout": 30}}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "rest_framework",
            "rest_framework.authtoken",
            "voight_django",
        ],
        LOGGING_CONFIG=None,
        MIDDLEWARE=[*SIGN_IN, OURS],
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        ROOT_URLCONF="",
        SECRET_KEY="tests",
        USE_TZ=True,
    )
    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


@contextlib.contextmanager
def project(*urls: Any, middleware: Any = (*SIGN_IN, OURS), voight: dict[str, Any] | None = None, **overridden: Any) -> Iterator[None]:
    """The project with these URLs, this ``MIDDLEWARE``, and this ``VOIGHT``."""
    urlconf = ModuleType("urls")
    urlconf.urlpatterns = list(urls)  # type: ignore[attr-defined]
    with override_settings(ROOT_URLCONF=urlconf, MIDDLEWARE=list(middleware), VOIGHT=voight or {}, **overridden):
        yield


def user(name: str) -> Any:
    """The user of this name."""
    from django.contrib.auth.models import User

    return User.objects.get_or_create(username=name)[0]
