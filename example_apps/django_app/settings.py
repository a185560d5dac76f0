"""The settings of the example."""

from pathlib import Path

SECRET_KEY = "an example has no secrets"
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "chats.views"
USE_TZ = True
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path.cwd() / "example.sqlite3"}
}
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "voight_django",  # the system checks, and `manage.py voight`
    "chats",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    # The one line of middleware: every LLM call of a request belongs to its `request.user`.
    "voight_django.CostTagMiddleware",
]
VOIGHT = {
    "PLAN_GETTER": "chats.costs.plan_of",
    "RELEASE": "example",
}
