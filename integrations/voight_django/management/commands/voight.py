"""``manage.py voight …``: the command line, on the project's ledger."""

from __future__ import annotations

import argparse
import contextlib
import sys
from importlib.metadata import distribution
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from voight_django import conf
from voight_middleware.config.settings import project_settings


class Command(BaseCommand):
    help = "Which user caused which cost: every command of `voight`, on the ledger of this project."
    requires_system_checks = ()  # errors elsewhere in the project must not block reports

    def run_from_argv(self, argv: list[str]) -> None:
        # manage.py has read these options already
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--settings")
        parser.add_argument("--pythonpath")
        sys.exit(_run(parser.parse_known_args(argv[2:])[1]))

    def print_help(self, prog_name: str, subcommand: str) -> None:
        with contextlib.suppress(SystemExit):
            _run(["--help"])

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("arguments", nargs=argparse.REMAINDER, help="as of `voight`")

    def handle(self, *args: Any, **options: Any) -> None:
        """For ``call_command("voight", "spend", "--format", "json")``."""
        with (
            contextlib.redirect_stdout(options.get("stdout") or sys.stdout),
            contextlib.redirect_stderr(options.get("stderr") or sys.stderr),
        ):
            code = _run([str(argument) for argument in (*args, *options["arguments"])])
        if code:
            raise CommandError("see above", returncode=code)


def _run(arguments: list[str]) -> int:
    # Through its entry point, as in a shell: integrations are below the command line and must not
    # import it.
    (main,) = distribution("voight-middleware").entry_points.select(
        group="console_scripts", name="voight"
    )
    values = conf.meter_values(conf.project())
    for name in conf.CODE:
        values.pop(name, None)
    with project_settings(values, lambda name: f"VOIGHT[{name.upper()!r}]"):
        return int(main.load()(arguments))
