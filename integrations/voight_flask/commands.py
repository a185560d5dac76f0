"""``flask voight …``: the command line, on the application's own ledger."""

from __future__ import annotations

import inspect
from importlib.metadata import distribution

import click
import flask
from flask.cli import with_appcontext

from voight_middleware.config.settings import project_settings
from voight_middleware.pipeline.configure import configure
from voight_middleware.pipeline.meter import current_meter


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
    settings, config = current_meter().settings, flask.current_app.config
    names = inspect.signature(configure).parameters.keys() - {"listeners", "batch_owner"}
    values = {
        name: config[variable] for name in names if (variable := f"VOIGHT_{name.upper()}") in config
    }
    sources = {name: f"app.config['VOIGHT_{name.upper()}']" for name in values}
    for name in ("ledger", "journal", "prices"):
        if name not in values and (value := getattr(settings, name)) is not None:
            values[name], sources[name] = value, settings.sources.get(name, "configure()")
    # Through its entry point: integrations are below the command line and must not import it.
    (script,) = distribution("voight-middleware").entry_points.select(
        group="console_scripts", name="voight"
    )
    with project_settings(values, sources.__getitem__):
        code = script.load()(arguments)
    context.exit(code)
