"""The help of `voight`, and hints for mistyped names."""

import subprocess
import sys

import pytest

from voight_middleware.cli import main
from voight_middleware.cli.commands import COMMANDS, GROUPS, command

from .commands import as_typed
from .kept_calls import Captured

HEAVY = ("msgspec", "decimal", "rich", "genai_prices", "sqlite3", "subprocess", "matplotlib", "httpx", "starlette")


def help_of(capsys: Captured, *arguments: str) -> str:
    """Return the help of a command."""
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--help"])
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_commands_are_listed_in_groups(capsys: Captured) -> None:
    """The help lists each command once, below the title of its group, in at most 80 columns."""
    text = help_of(capsys)
    assert max(map(len, text.splitlines())) <= 100
    title = ""
    listed: list[tuple[str, str]] = []
    for line in text.partition("\noptions:")[0].splitlines():
        if line.endswith(":") and not line.startswith(" "):
            title = line.removesuffix(":")
        elif line.startswith("  "):
            assert len(line) <= 80
            listed.append((title, line[2:].partition("  ")[0]))
    assert listed == [(group, name) for group, commands in GROUPS.items() for name in commands]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_line_is_a_verb_first(name: str) -> None:
    """The line of a command begins with a verb, and is not a sentence."""
    text = COMMANDS[name]
    assert text.split()[0] in {
        *("Add", "Check", "Compare", "Compute", "Copy", "Create", "Delete", "Erase", "Estimate", "Find", "Ingest"),
        *("Price", "Receive", "Run", "Show", "Write"),
    }
    assert not text.endswith(".")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_examples(name: str, capsys: Captured) -> None:
    """The help of a command has its description and its examples."""
    text = help_of(capsys, *name.split())
    assert f"{COMMANDS[name]}." in " ".join(text.split())
    assert command(name).EXAMPLES.strip() in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tpo"], "voight tpo: no such command; did you mean top?"),
        (["unatributed", "--since", "month"], "voight unatributed: no such command; did you mean unattributed?"),
        (["prices", "shwo", "gpt-5"], "voight prices shwo: no such command; did you mean prices show?"),
        (["frobnicate"], "voight frobnicate: no such command; voight --help lists the commands"),
        (["top", "--sicne", "month"], "voight top --sicne: no such option; did you mean --since?"),
        (["top", "--lmit=5"], "voight top --lmit: no such option; did you mean --limit?"),
        (["prices", "show", "gpt-5", "--bacth"], "voight prices show --bacth: no such option; did you mean --batch?"),
        (["export", "--ouptut", "x"], "voight export --ouptut: no such option; did you mean --output?"),
        (["doctor", "--xyz"], "voight doctor --xyz: no such option"),
        (["doctor", "now"], "voight doctor: unexpected argument: now"),
    ],
    ids=lambda value: as_typed(value) if isinstance(value, list) else "",
)
def test_a_mistyped_name_gets_a_close_match(arguments: list[str], message: str, capsys: Captured) -> None:
    """A mistyped command or option exits with 2, after the usage and the closest name."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: voight")
    assert err.splitlines()[-1] == message


@pytest.mark.parametrize("word", ["rise", "t", "prices"])
def test_a_value_is_not_a_command(word: str, capsys: Captured) -> None:
    """Only the first words are commands: a value after them is not checked."""
    assert main(["prices", "show", word]) == 1
    assert "there is no price for" in capsys.readouterr().err


@pytest.mark.server
def test_help_imports_nothing_heavy() -> None:
    """`voight --help` starts without rich, the price list, SQLite and the SDKs' libraries."""
    script = (
        "import sys\n"
        "from voight_middleware.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        f"sys.exit(','.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


@pytest.mark.server
def test_a_command_imports_its_own_module_only() -> None:
    """`voight top` starts without the other commands and reports, the metering and the price list."""
    script = (
        "import sys\n"
        "from voight_middleware.cli import main\n"
        "main(['top', '--ledger', '/nonexistent/ledger.db'])\n"
        "print(*(name for name in sys.modules if name.startswith(('voight_middleware.', 'genai_prices'))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    loaded = set(done.stdout.split())

    assert "no ledger" in done.stderr
    assert {name for name in loaded if name.removeprefix("voight_middleware.cli.") in {*COMMANDS}} == {"voight_middleware.cli.top"}
    rooms = {"genai_prices", *(f"voight_middleware.{room}" for room in ("instrumentation", "middleware", "pricing", "pipeline.meter"))}
    assert loaded & rooms == set()
    assert "voight_middleware.reports.top" in loaded
    assert loaded & {f"voight_middleware.reports.{name}" for name in ("release", "user", "whatif", "unattributed")} == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_module(name: str) -> None:
    """Its name leads to a module with all that a command has."""
    module = command(name)

    assert module.EXAMPLES.strip()
    assert callable(module.add_arguments)
    assert callable(module.run)
