"""Imports and patterns that wait for their first use."""

import ast
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import voight_middleware
from voight_middleware import lazy
from voight_middleware.lazy import late_imports, lazy_pattern


def run(code: str) -> list[str]:
    """The words that *code* prints in a process of its own."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return result.stdout.split()


@pytest.mark.server
def test_importing_the_package_imports_none_of_its_rooms() -> None:
    """Only its first name does: a command, or the pytest plugin, pays for what it uses."""
    code = "import sys, voight_middleware; print(*sorted(name for name in sys.modules if name.startswith('voight_middleware')))"

    assert run(code) == ["voight_middleware", "voight_middleware.config", "voight_middleware.config.version", "voight_middleware.lazy"]


@pytest.mark.server
def test_the_first_name_imports_all_names() -> None:
    """So no request of an application imports a module of ours."""
    code = "import sys, voight_middleware as voight\nvoight.tag\nbefore = set(sys.modules)\n"
    code += "for name in voight.__all__: getattr(voight, name)\nprint(*set(sys.modules) - before, voight.diagnostics.__name__)"

    assert run(code) == ["voight_middleware.diagnostics"]


def test_type_checkers_see_the_names_that_are_imported() -> None:
    """The imports for type checkers, the table of modules and ``__all__`` are the same names."""
    tree = ast.parse(Path(voight_middleware.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    seen = {
        str(node.module).removeprefix("voight_middleware."): tuple(alias.name for alias in node.names)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    }

    assert seen == voight_middleware._HOMES
    assert {name for names in seen.values() for name in names} | {"__version__"} == set(voight_middleware.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As of any module: also for modules that nobody has imported."""
    with pytest.raises(AttributeError, match="no attribute 'wrap_all'"):
        voight_middleware.wrap_all  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute '__wrapped__'"):
        voight_middleware.__wrapped__  # type: ignore[attr-defined]  # noqa: B018


def test_a_lazy_pattern_is_the_pattern() -> None:
    """Its methods are those of ``re.compile``, with its flags."""
    pattern, same = lazy_pattern(r"(?P<a>x+)\d", re.IGNORECASE), re.compile(r"(?P<a>x+)\d", re.IGNORECASE)
    text = "-XX1, x2"

    assert [match.span("a") for match in pattern.finditer(text)] == [match.span("a") for match in same.finditer(text)]
    assert pattern.sub(r"<\g<a>>", text) == same.sub(r"<\g<a>>", text)
    assert pattern.fullmatch("xX3")
    assert not pattern.match("y")
    assert pattern.pattern == same.pattern
    with pytest.raises(AttributeError):
        pattern.search_all  # type: ignore[attr-defined]  # noqa: B018


def test_a_lazy_pattern_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at import, and not at each use."""
    compiled: list[str] = []
    compile_ = re.compile
    monkeypatch.setattr(lazy.re, "compile", lambda text, flags=0: compiled.append(text) or compile_(text, flags))

    pattern = lazy_pattern("a+")
    assert compiled == []
    assert pattern.search("ba")
    assert pattern.search("a")
    assert pattern.match("a")
    assert compiled == ["a+"]


@pytest.mark.server
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork beside a thread is the point
def test_a_fork_waits_for_a_late_import() -> None:
    """A child that is forked during an import can never import that module."""
    begun, imported = threading.Event(), threading.Event()

    def import_slowly() -> None:
        with late_imports():
            begun.set()
            imported.wait(0.05)  # nothing sets it: the import takes a while
            imported.set()

    thread = threading.Thread(target=import_slowly)
    thread.start()
    begun.wait()
    child = os.fork()
    if child == 0:
        with late_imports():  # its own lock, which nobody holds
            os._exit(0 if imported.is_set() else 1)
    thread.join()

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with late_imports():  # the parent's is released
        pass


@pytest.mark.server
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_does_not_wait_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that hangs must not keep the application from forking, and its child is not stuck."""
    monkeypatch.setattr(lazy, "FORK_SECONDS", 0.01)
    begun, end = threading.Event(), threading.Event()

    def import_forever() -> None:
        with late_imports():
            begun.set()
            end.wait()

    thread = threading.Thread(target=import_forever)
    thread.start()
    begun.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if lazy._importing.acquire(blocking=False) else 1)
    end.set()
    thread.join()

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
