"""The parser of the command line, its grouped help, and hints for mistyped names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from voight_middleware.cli.commands import COMMANDS, GROUPS, command
from voight_middleware.config.version import VERSION

_DESCRIPTION = "Show which user caused which LLM costs, from the ledger of voight-middleware."
_FAMILIES = {"prices": "Show unit prices, and check the file of your own prices"}
"""Commands that only hold other commands."""
_EXAMPLES = """\
examples:
  voight demo                                     try it, without an API key
  voight top --since month                        the users who cost most this month
  voight spend --by plan,model --since 7d         any dimensions, one row each
  voight explain 019a8f3b52c77d41                 how the cost of one call adds up
  voight doctor                                   check the installation

voight COMMAND --help shows the options of a command.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace | None:
    """
    Return the arguments of a command, or None after the help if no command is given.

    Raises:
        SystemExit: With 2 for wrong usage, with 0 for ``--help`` and ``--version``.
    """
    parser = build_parser(argv)
    _reject_unknown_command(parser, argv)
    args, rest = parser.parse_known_args(argv)
    if "run" not in args:
        parser.print_help(sys.stderr)
        return None
    if rest:
        _reject_unknown_arguments(args.parser, rest)
    return args


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """
    Return the parser of the command in *argv*; ``run`` of its namespace is the command's function.

    Without a command, the parser knows the names of all, and no module of a command is imported.
    """
    parser = argparse.ArgumentParser(
        prog="voight",
        usage="voight [-h] [--version] COMMAND ...",
        description=f"{_DESCRIPTION}\n\n{_listed_commands()}",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"voight-middleware {VERSION}")
    # The description lists the commands in their groups; argparse cannot.
    commands = parser.add_subparsers(prog="voight", metavar="COMMAND", help=argparse.SUPPRESS)
    families = {
        name: commands.add_parser(name, description=f"{text}.").add_subparsers(
            title="commands", metavar="COMMAND", required=True
        )
        for name, text in _FAMILIES.items()
    }
    chosen = _chosen(argv)
    for name in COMMANDS if chosen is None else (chosen,):
        family, _, last = name.rpartition(" ")
        added: argparse.ArgumentParser = (families[family] if family else commands).add_parser(
            last,
            help=COMMANDS[name],
            description=f"{COMMANDS[name]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if chosen is not None:
            module = command(chosen)
            added.epilog = module.EXAMPLES
            module.add_arguments(added)
            added.set_defaults(run=module.run, parser=added)
    return parser


def _chosen(argv: Sequence[str]) -> str | None:
    """Return the command in *argv*; None if there is none."""
    words = [word for word in argv if not word.startswith("-")]
    return next((name for name in (" ".join(words[:2]), *words[:1]) if name in COMMANDS), None)


def _listed_commands() -> str:
    width = max(map(len, COMMANDS))
    lines: list[str] = []
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:"] if lines else [f"{title}:"]
        lines += [f"  {name.ljust(width)}  {text}" for name, text in commands.items()]
    return "\n".join(lines)


def _reject_unknown_command(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    known = [*COMMANDS, *_FAMILIES]
    name = ""
    for word in argv[:2]:
        if word.startswith("-"):
            return
        name = f"{name} {word}".lstrip()
        if name not in known:
            parser.print_usage(sys.stderr)
            choices = [command for command in known if command.count(" ") == name.count(" ")]
            hint = _hint(name, choices) or "; voight --help lists the commands"
            parser.exit(2, f"voight {name}: no such command{hint}\n")
        if name not in _FAMILIES:
            return


def _reject_unknown_arguments(parser: argparse.ArgumentParser, rest: Sequence[str]) -> None:
    options = [option for action in parser._actions for option in action.option_strings]
    word = rest[0].partition("=")[0]
    parser.print_usage(sys.stderr)
    if word.startswith("-"):
        parser.exit(2, f"{parser.prog} {word}: no such option{_hint(word, options)}\n")
    parser.exit(2, f"{parser.prog}: unexpected argument: {' '.join(rest)}\n")


def _hint(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    matches = get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""
