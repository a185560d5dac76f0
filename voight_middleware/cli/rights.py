"""``voight erase``, ``voight retention`` and ``voight rebuild``: what changes a ledger by hand."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from voight_middleware.cli.privacy import called
from voight_middleware.cli.render import UserError
from voight_middleware.config.settings import Settings
from voight_middleware.ledger import Ledger, PersonalData
from voight_middleware.maintenance.erasure import ErasureResult, erase
from voight_middleware.maintenance.retention import retain
from voight_middleware.records.money import from_femto, usd_text

_DAY = 86_400_000_000
_MAX_DAYS = 36_500

ERASE = """\
The ids become one token that nobody can trace back; calls, tokens and costs stay to the last digit. Journals of this host are erased too;
backups, other hosts and what listeners were told are yours to see to.

examples:
  voight erase u_7 --dry-run
  voight erase alice@example.com --yes
"""
RETENTION = """\
Deletes calls with all that is kept about them: reports about that time have none then. The file keeps its size, and its space is
used again.

examples:
  voight retention --keep 400d --dry-run
  voight retention --keep 400d --yes
"""
REBUILD = """\
Sums are kept beside the calls, in the same transaction. This makes them anew; it is needed only after somebody has changed tables by hand.
"""
EXAMPLES = {"erase": ERASE, "retention": RETENTION, "rebuild": REBUILD}


def add(command: Callable[..., argparse.ArgumentParser], runs: dict[str, Callable[[Any], int]], *parents: argparse.ArgumentParser) -> None:
    """Add the commands; *runs* says what runs each."""
    one = command("erase", "take one user's ids out of ledger and journals, and keep the totals", runs["erase"], *parents)
    one.add_argument("user", metavar="USER", help="the user's id, as your application gives it")
    old = command("retention", "delete the calls that are older than you keep them", runs["retention"], *parents)
    old.add_argument("--keep", metavar="DAYS", required=True, help="such as 400d")
    for each in (one, old):
        each.add_argument("--dry-run", action="store_true", help="only show what would be done")
        each.add_argument("--yes", action="store_true", help="do it")
    command("rebuild", "make the ledger's sums anew from its calls", runs["rebuild"], *parents)


def run_erase(ledger: Ledger, settings: Settings, args: Any) -> int:
    """``voight erase``."""
    if not args.user.strip():
        raise UserError("say whom to erase, by a whole id: voight erase USER")
    names = called(ledger, args.user, settings)
    doing = args.yes and not args.dry_run
    done = erase(ledger, settings, names, dry_run=not doing)
    if args.format == "json":
        print(json.dumps(_erasure_row(done), indent=2))
    else:
        print(_erasure_text(done, doing))
    if done.remains or done.waiting:
        return 1
    return 0 if doing or args.dry_run or not done.found else 1


def run_retention(ledger: Ledger, args: Any) -> int:
    """``voight retention``."""
    match = re.fullmatch(r"([0-9]{1,5})d", args.keep)
    days = int(match[1]) if match else 0
    if not 1 <= days <= _MAX_DAYS:
        raise UserError(f"--keep is a number of days, such as 400d (1d to {_MAX_DAYS}d), not {args.keep!r}")
    doing = args.yes and not args.dry_run
    until = time.time_ns() // 1000 - days * _DAY
    if doing:
        total = ledger.expired(until).calls
        with progress("deleting", total) as advance:
            found = retain(ledger, until, done=advance)
    else:
        found = retain(ledger, until, dry_run=True)
    if args.format == "json":
        row = {"calls": found.calls, "former_prices": found.former_prices, "submissions": found.submissions, "deleted": doing}
        print(json.dumps(row, indent=2))
    else:
        what = (
            f"{found.calls:,} calls, {found.former_prices:,} former prices and {found.submissions:,} submitted jobs older than {days} days"
        )
        print(f"deleted: {what}" if doing else f"would be deleted: {what}{'' if args.dry_run else '. Say --yes to do it.'}")
    return 0 if doing or args.dry_run or not found.calls else 1


def run_rebuild(ledger: Ledger) -> int:
    """``voight rebuild``."""
    months = 0
    for month in ledger.rebuild():
        months += 1
        print(f"rebuilt {month}", file=sys.stderr)
    (total,) = ledger.spend()
    print(f"the sums of {total.calls:,} calls are made anew" if months else "there was nothing to make anew: sums are read from the calls")
    return 0


@contextmanager
def progress(what: str, total: int) -> Generator[Callable[[int], None]]:
    """A bar on a terminal, for work that takes long; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda _count: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def _erasure_row(done: ErasureResult) -> dict[str, object]:
    found = done.found
    return {
        "calls": found.calls,
        "cost_usd": _cost(found),
        "elsewhere": found.elsewhere,
        "submissions": found.submissions,
        "token": done.token,
        "remains": list(done.remains),
        "waiting": list(done.waiting),
    }


def _erasure_text(done: ErasureResult, doing: bool) -> str:
    found = done.found
    cost = _cost(found)
    what = f"{found.calls:,} calls{'' if cost is None else f' of ${cost}'}, {found.elsewhere:,} calls of others that name this user, "
    what += f"{found.submissions:,} submitted jobs"
    if not doing:
        return f"would be erased: {what}. Say --yes to do it." if found else "nothing is kept under this id"
    lines = [f"erased: {what}; they belong to {done.token} now" if found else "nothing was kept under this id"]
    lines += [f"still in {path}: other text has the same characters, or another process wrote meanwhile" for path in done.remains]
    lines += [f"not brought in yet: {name}: run this again when its process has gone on" for name in done.waiting]
    return "\n".join(lines)


def _cost(found: PersonalData) -> str | None:
    return None if found.cost_femto is None else usd_text(from_femto(found.cost_femto))
