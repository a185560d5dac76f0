"""``voight …``: the command line."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from voight_middleware.cli import events, export, filters, ingest, migrate, move, otlp, plot, render, rights
from voight_middleware.cli import reports as questions
from voight_middleware.cli.context import ReportContext, names, span, total_row, zone_of
from voight_middleware.cli.render import UserError
from voight_middleware.cli.reports import positive
from voight_middleware.config.paths import default_journal
from voight_middleware.config.settings import Settings
from voight_middleware.config.values import SettingsError
from voight_middleware.config.version import VERSION
from voight_middleware.ledger import DIMENSIONS, Ledger, LedgerError, UnknownDimension, Where, Window, open_ledger
from voight_middleware.pipeline.backlog import LATE_SECONDS, age, waiting_since
from voight_middleware.reports import timespan
from voight_middleware.reports.spend import SpendReport, as_row, spend
from voight_middleware.reports.unattributed_share import unattributed_beside

__all__ = ("main",)

_TERMS = {"tier": "service tier", "geo": "place of inference", "size": "size of pictures", "quality": "quality of pictures"}
_DRAINED_WORTH_A_NOTE = 1000

_EXAMPLES = {
    **questions.EXAMPLES,
    **rights.EXAMPLES,
    **ingest.EXAMPLES,
    **events.EXAMPLES,
    **migrate.EXAMPLES,
    **move.EXAMPLES,
    "voight": """\
examples:
  voight demo                                     see the whole line work, without an API key
  voight top --since month                        the users who cost most this month
  voight spend --by plan,model --since 7d         any dimensions, one row each
  voight explain 019a8f3b52c77d41                 where the cost of one call comes from
  voight doctor                                   is everything in place?
""",
    "spend": f"""\
dimensions:
  {", ".join(DIMENSIONS[:9])},
  {", ".join(DIMENSIONS[9:])}, and the extra keys of your tags;
  user, tenant and session are short for user_id, tenant_id and session_id, status for cost_status, requested for requested_model

filters:
  --where plan=free,model=gpt-*                   * stands for any text
  --where plan=free,plan=pro                      one of several values
  --where plan!=free                              any other, and calls without a plan
  --where user=-                                  calls without a user (none does the same); user!=- those with one
  --where 'user=a**b,feature=x\\,y'               ** is a star, \\, a comma, \\- the id "-"
  --where user=alice@example.com                  her pseudonyms too

times, for --since and --until, in UTC or the zone of --tz:
  {timespan.FORMS};
  a day, week or month given to --until is included

examples:
  voight spend                                    the total
  voight spend --by day --since month
  voight spend --by plan,model --where plan=free --format csv
  voight spend --by release --since 2026-11-01 --until 2026-11-30 --format json
""",
    "export": export.EXAMPLES,
    "otlp": otlp.EXAMPLES,
    "reprice": """\
The prices of today at the time of each call: dated prices, your own prices. The figures before stay readable: --original-prices.

examples:
  voight reprice --since month --dry-run          what would change
  voight reprice --since 2026-11-01 --until 2026-11-30 --where provider=openai
  voight reprice --since month --dry-run --prices negotiated.toml --format csv
""",
    "explain": """\
The beginning of a call's id is enough, from 8 characters on; voight export shows the ids.

examples:
  voight explain 019a8f3b52c77d41
  voight explain 019a8f3b52c77d41 --format json
""",
    "prices show": """\
examples:
  voight prices show gpt-5-nano
  voight prices show gpt-5-nano --tier flex --at 2026-11-01
  voight prices show claude-opus-4-6 --batch --format json
  voight prices show chat-prod --provider azure
""",
    "prices check": """\
Exits with 1 where the file has a mistake: nothing of it is used then.

examples:
  voight prices check
  voight prices check --prices negotiated.toml
""",
    "pseudonym": """\
One line for each key that the ledger may know; --where user=alice@example.com looks for all of them.

examples:
  voight pseudonym alice@example.com
  voight pseudonym "+1 415 555 2671"
""",
    "doctor": """\
Exits with 1 where calls are lost or not stored.

examples:
  voight doctor
  voight doctor --format json
""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Args:
        argv: The arguments; by default those of this process.

    Returns:
        0; 1 after an error that the user can put right; 2 without a command.

    Raises:
        SystemExit: With 2 for a wrong usage, with 0 for ``--help`` and ``--version``.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal that cannot show a name must not stop a report
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except (UserError, LedgerError, UnknownDimension, SettingsError) as error:
        print(f"voight: {render.printable(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `voight spend | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="voight",
        description="Which user caused which cost: reads the ledger of voight-middleware.",
        epilog=_EXAMPLES["voight"],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"voight-middleware {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")

    place = argparse.ArgumentParser(add_help=False)
    place.add_argument(
        "--ledger",
        metavar="URL",
        help="a path, postgresql://… or clickhouse://… (default: VOIGHT_LEDGER, then the default place)",
    )
    choice, dated_choice = _choice(), _choice(since_required=True)
    original = argparse.ArgumentParser(add_help=False)
    original.add_argument(
        "--original-prices", action="store_true", help="the costs that calls were given first, whatever has replaced them"
    )
    prices = argparse.ArgumentParser(add_help=False)
    prices.add_argument("--prices", metavar="FILE", type=Path, help="your own prices (default: VOIGHT_PRICES)")
    rows = argparse.ArgumentParser(add_help=False)
    rows.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: table")

    table_or_json = argparse.ArgumentParser(add_help=False)
    table_or_json.add_argument("--format", choices=("table", "json"), default="table", help="default: table")

    def command(
        name: str, text: str, run: Callable[[Any], int] | None = None, *parents: argparse.ArgumentParser, among: Any = commands
    ) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = among.add_parser(
            name.rpartition(" ")[2],
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=_EXAMPLES.get(name),
            parents=list(parents),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    questions.add(command, _answer, place, choice, original, rows)

    added_up = command("spend", "what calls cost, by any dimensions", _spend, place, choice, original, rows)
    added_up.add_argument("--by", metavar="KEY,KEY", default="", help="the dimensions of a row (default: one row, the total)")
    added_up.add_argument("--limit", metavar="N", type=positive, help="how many rows (default: all)")
    added_up.add_argument("--plot", metavar="FILE", help="draw spend over time, of --by day or --by day,plan: FILE.png or FILE.svg")

    export.add_arguments(command("export", "every call as data", _export, place, choice, original))

    again = command("reprice", "price calls again, and keep what they cost before", _reprice, place, dated_choice, prices, rows)
    again.add_argument("--dry-run", action="store_true", help="only show what would change")

    one = command("explain", "where the cost of one call comes from, line by line", _explain, place, table_or_json)
    one.add_argument("call_id", metavar="CALL_ID", help="the id of a call, or its first characters, 8 or more")

    rights.add(command, {"erase": _erase, "retention": _retention, "rebuild": _rebuild}, place, table_or_json)
    ingest.add(command, place, prices)
    events.add(command, lambda args: events.run(_settings(args), args), place, table_or_json)
    migrate.add(command, place)
    move.add(command, _move, table_or_json)

    otlp.add(command, lambda args: otlp.run(_settings(args), args), place)

    book = command("prices", "which unit prices hold, and whether your own are in order")
    about = book.add_subparsers(title="commands", metavar="COMMAND", required=True)
    shown = command("prices show", "the unit prices of a model", _prices_show, prices, table_or_json, among=about)
    shown.add_argument("model", metavar="MODEL", help="the name of a model or of a deployment")
    shown.add_argument("--provider", metavar="NAME", help="openai, anthropic, azure, … (default: the first one that has a price for it)")
    shown.add_argument("--at", metavar="TIME", help="the prices of that time: 2026-11-01, 7d, … (UTC; default: now)")
    shown.add_argument("--host", metavar="HOST", help="the host of the API, such as eu.api.openai.com")
    shown.add_argument("--batch", action="store_true", help="the prices of a batch")
    for term in ("tier", "speed", "geo", "size", "quality"):
        shown.add_argument(f"--{term}", metavar="NAME", help=f"the prices of this {_TERMS.get(term, term)}")
    command("prices check", "whether the file of your own prices can be used", _prices_check, prices, among=about)

    called = command("pseudonym", "what the ledger calls a user: an e-mail address is not kept as it is", _pseudonym, place)
    called.add_argument("value", metavar="VALUE", help="as your application says it: alice@example.com")

    command("doctor", "what is installed, configured and writable, and what to do about the rest", _doctor, place, table_or_json)

    demo = command("demo", "the whole line at work: an app, a loopback provider, 200 requests, the answer", _demo)
    demo.add_argument("--requests", metavar="N", type=positive, default=200, help="how many requests (default: 200)")
    demo.add_argument("--keep", action="store_true", help="keep the demo's ledger in ./voight-demo, for more questions")
    demo.add_argument("--real", action="store_true", help="ask OpenAI (and Anthropic, with a key) instead, which bills you; asks first")
    demo.add_argument("--yes", action="store_true", help="with --real: do not ask")
    return parser


def _choice(*, since_required: bool = False) -> argparse.ArgumentParser:
    choice = argparse.ArgumentParser(add_help=False)
    choice.add_argument("--where", metavar="K=V,K=V", action="append", default=[], help="only these calls; * is any text, - is none")
    since = "only calls from this time on: today, week, month, 7d, 24h, 2026-11-01, …"
    choice.add_argument("--since", metavar="TIME", required=since_required, help=since)
    choice.add_argument("--until", metavar="TIME", help="only calls up to this time; a day or month is included")
    choice.add_argument("--tz", metavar="ZONE", help="where days, weeks and months begin: Europe/Berlin, … (default: UTC)")
    return choice


def _answer(report: Callable[[ReportContext], int]) -> Callable[[Any], int]:
    """Ask one of the reports."""

    def run(args: Any) -> int:
        where, window = _where(args), _window(args)
        if args.format == "table":
            render.need_rich()
        with _ledger(args) as ledger:
            return report(ReportContext(args, ledger, filters.exact(ledger, where), window, zone_of(args), _settings(args)))

    return run


def _spend(args: Any) -> int:
    by = names(args.by)
    where, window, zone = _where(args), _window(args), zone_of(args)
    if args.format == "table":
        render.need_rich()
    picture = plot.check(args.plot, by)
    with _ledger(args) as ledger:
        where = filters.exact(ledger, where)
        report = spend(ledger, by, where, window, args.limit, original_prices=args.original_prices, zone=zone)
        if picture is not None:
            plot.spend_over_time(report, render.title_of(f"Spend by {', '.join(by)}", window, where, zone), picture)
        if args.format == "json":
            owners = _without_owner(ledger, report, where, window)
            about = {**span(window, zone), "by": report.by, "total": total_row(report.total, owners), "more": report.more}
            print(json.dumps({**about, "rows": list(map(as_row, report.rows))}, indent=2))
        elif args.format == "csv":
            sys.stdout.write(render.as_csv(report))
        else:
            render.print_table(report, where, _without_owner(ledger, report, where, window))
    return 0


def _without_owner(ledger: Ledger, report: SpendReport, where: Where, window: Window) -> Any:
    if not report.total.calls:
        return None
    return unattributed_beside(
        ledger,
        report.total,
        report.rows if not report.more else (),
        where,
        window,
        original_prices=report.original_prices,
        zone=report.zone,
    )


def _export(args: Any) -> int:
    where, window = _where(args), _window(args)
    with _ledger(args) as ledger:
        return export.run(ledger, filters.exact(ledger, where), window, _settings(args), args)


def _reprice(args: Any) -> int:
    from voight_middleware.cli import reprice as shown
    from voight_middleware.cli.prices import open_prices
    from voight_middleware.maintenance.repricing import reprice

    where, window = _where(args), _window(args)
    if args.format == "table":
        render.need_rich()
    book = open_prices(_settings(args))
    with _ledger(args) as ledger:
        report = reprice(ledger, book, filters.exact(ledger, where), window, args.dry_run)
    if args.format == "json":
        print(shown.as_json(report))
    elif args.format == "csv":
        sys.stdout.write(shown.as_csv(report))
        if report.priced_by_own:
            print(f"voight: {shown.priced_by_own(report)}", file=sys.stderr)
    else:
        shown.print_table(report, where)
    return 0


def _erase(args: Any) -> int:
    with _ledger(args) as ledger:
        return rights.run_erase(ledger, _settings(args), args)


def _retention(args: Any) -> int:
    with _ledger(args) as ledger:
        return rights.run_retention(ledger, args)


def _rebuild(args: Any) -> int:
    with _ledger(args) as ledger:
        return rights.run_rebuild(ledger)


def _move(args: Any) -> int:
    move.check(args.source, args.target)
    args.ledger = args.source
    with _ledger(args) as ledger:
        return move.run(ledger, args)


def _explain(args: Any) -> int:
    from voight_middleware.cli import explain
    from voight_middleware.pipeline.pseudonyms import kept_call_id

    with _ledger(args) as ledger:
        call = ledger.call(args.call_id) or ledger.call(kept_call_id(args.call_id, _settings(args).pii))
        if call is None:
            raise UserError(f"there is no call {args.call_id!r} in this ledger; voight export shows their ids")
        former = ledger.price_history(call.call_id)
    print(explain.as_json(call, former) if args.format == "json" else explain.as_text(call, former))
    return 0


def _prices_show(args: Any) -> int:
    from voight_middleware.cli import prices

    return prices.show(_settings(args), args)


def _prices_check(args: Any) -> int:
    from voight_middleware.cli import prices

    return prices.check(_settings(args))


def _pseudonym(args: Any) -> int:
    from voight_middleware.cli import privacy

    for name in privacy.names(args.value, _settings(args)):
        print(render.printable(name))
    return 0


def _doctor(args: Any) -> int:
    from voight_middleware.cli import doctor, findings

    found = doctor.examine(_settings(args))
    print(findings.as_json(found) if args.format == "json" else findings.as_text(found))
    return 1 if any(finding.fatal for finding in found) else 0


def _demo(args: Any) -> int:
    from voight_middleware.cli import demo

    return int(demo.main(args) or 0)


def _settings(args: Any) -> Settings:
    options = {name: value for name in ("ledger", "prices") if (value := getattr(args, name, None)) is not None}
    settings = Settings.from_environment(**options)
    if "ledger" in options:
        # VOIGHT_JOURNAL belongs to VOIGHT_LEDGER: it must not be drained into another ledger that is only looked at.
        journal = settings.journal if settings.ledger == Settings.from_environment().ledger else default_journal(settings.ledger)
        settings = replace(settings, journal=journal)
    return replace(settings, sources={**settings.sources, **{name: f"--{name}" for name in options}})


@contextlib.contextmanager
def _ledger(args: Any) -> Generator[Ledger]:
    """The ledger to report on, with what dead processes left in the journal brought in before."""
    from voight_middleware.pipeline.ingest import drain

    settings, said = _settings(args), False
    try:
        if settings.ingest and settings.events is not None:
            events.prepare(settings)
        count = drain(settings.ledger, settings.journal, settings.prices) if settings.ingest else 0
        if count > _DRAINED_WORTH_A_NOTE:
            print(f"voight: brought in {count:,} records from the journal {settings.journal}", file=sys.stderr)
    except (LedgerError, OSError) as error:
        print(f"voight: what is still in the journal {settings.journal} is missing here: {render.printable(str(error))}", file=sys.stderr)
        said = True
    ledger = open_ledger(settings.ledger, create=False)
    try:
        if not said:
            _tell_late(ledger, settings.journal)
        yield ledger
    finally:
        ledger.close()


def _tell_late(ledger: Ledger, journal: Path) -> None:
    """Say it where calls wait that another process should have brought in: the figures are not those of now."""
    try:
        since = waiting_since(journal, ledger.progress) if journal.is_dir() else None
    except (LedgerError, OSError):  # a role that may not ask for that, or another account's journal
        return
    late = 0.0 if since is None else time.time() - since
    if late > LATE_SECONDS:
        print(f"voight: calls wait in {journal} for {age(late)}, and are missing here: voight doctor says why", file=sys.stderr)


def _where(args: Any) -> Where:
    return filters.read(args.where, _settings(args))


def _window(args: Any) -> Window:
    try:
        return timespan.parse_window(args.since, args.until, zone=zone_of(args))
    except ValueError as error:
        raise UserError(str(error)) from error
