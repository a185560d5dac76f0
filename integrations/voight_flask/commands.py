"""``flask voight …``: the command line, on the application's own ledger."""

from __future__ import annotations

import os
from importlib.metadata import distribution

import click
from flask.cli import with_appcontext

from voight_middleware.meter import current_meter


@click.command(
    "voight",
    short_help="Which user caused which cost: flask voight top.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
@with_appcontext
def command(context: click.Context, arguments: tuple[str, ...]) -> None:
    settings = current_meter().settings
    own = {"VOIGHT_LEDGER": settings.ledger, "VOIGHT_JOURNAL": str(settings.journal)}
    if settings.prices is not None:
        own["VOIGHT_PRICES"] = str(settings.prices)
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    # The command as it is installed: an integration stands below the command line and does not import it.
    (script,) = distribution("voight-middleware").entry_points.select(group="console_scripts", name="voight")
    try:
        code = script.load()(arguments)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    context.exit(code)
