"""
``manage.py digest``: an LLM call per user of a plan, outside any request. The tag names the user.
"""

from typing import Any

import openai
from django.contrib.auth.models import User
from django.core.management import BaseCommand
from django.core.management.base import CommandParser

import voight_middleware as voight


class Command(BaseCommand):
    help = "Write a digest for every user of a plan."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("plan")

    def handle(self, *args: Any, **options: Any) -> None:
        with openai.OpenAI() as client:
            voight.wrap(client)
            for user in User.objects.filter(groups__name=options["plan"]):
                with voight.tag(user_id=user.pk, plan=options["plan"], feature="digest"):
                    answer = client.responses.create(
                        model="gpt-5-mini", input=f"The digest of {user.get_username()}"
                    )
                self.stdout.write(f"{user.get_username()}: {answer.output_text}")
