"""
The Django app: system checks, ``manage.py voight``, and the setting ``VOIGHT`` in every process.
"""

from contextlib import suppress

from django.apps import AppConfig
from django.core import checks
from django.core.exceptions import ImproperlyConfigured

from voight_django import conf
from voight_django.checks import check_setting


class VoightConfig(AppConfig):
    """``"voight_django"`` in ``INSTALLED_APPS``."""

    name = "voight_django"
    verbose_name = "voight-middleware"

    def ready(self) -> None:
        checks.register(check_setting)
        with suppress(ImproperlyConfigured):  # the system checks report all errors
            conf.apply()
