"""
``manage.py start``: make the database and twenty users with the password ``secret``, and serve.
"""

from typing import Any

from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Group, User
from django.core.management import BaseCommand, call_command
from django.core.management.base import CommandParser

PLANS = ("free", "free", "pro", "free", "team")


class Command(BaseCommand):
    help = "Make the database and its users, and serve."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("address", nargs="?", default="127.0.0.1:8000")

    def handle(self, *args: Any, **options: Any) -> None:
        call_command("migrate", verbosity=0)
        password = make_password("secret")
        for number in range(1, 21):
            user, new = User.objects.get_or_create(
                username=f"user-{number}", defaults={"password": password}
            )
            if new:
                user.groups.add(Group.objects.get_or_create(name=PLANS[number % 5])[0])
        call_command("runserver", options["address"], use_reloader=False)
