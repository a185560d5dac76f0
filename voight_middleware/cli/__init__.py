"""``voight …``: the command line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from voight_middleware.cli.parser import parse

__all__ = ("main",)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Args:
        argv: The arguments. By default those of this process.

    Returns:
        0 on success, 1 after an error that the user can fix, 2 without a command.

    Raises:
        SystemExit: With 2 for wrong usage, with 0 for ``--help`` and ``--version``.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a name must not stop a report.
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    args = parse(sys.argv[1:] if argv is None else argv)
    if args is None:
        return 2
    # the help needs none of them
    from voight_middleware.cli.context import Context
    from voight_middleware.cli.render import UserError, printable
    from voight_middleware.config.values import SettingsError
    from voight_middleware.ledger import LedgerError, UnknownDimension

    try:
        with Context(args) as context:
            code: int = args.run(context)
        sys.stdout.flush()
        return code
    except (UserError, LedgerError, UnknownDimension, SettingsError) as error:
        print(f"voight: {printable(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `voight spend | head`: the reader has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
