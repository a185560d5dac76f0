"""The public surface: docs/api.md lists it, and README, docs and examples use nothing else."""

import re
from importlib import import_module
from pathlib import Path

import pytest

import voight_middleware

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
LISTED = {
    row[0].strip("` "): re.findall(r"`(\w+)`", row[1])
    for line in PAGE.read_text().splitlines()
    if line.startswith("| `") and (row := line.strip("|").split("|"))
}
"""The names of each public module, as the page has them."""
RUN_AS_PROGRAM = "voight_middleware.testing.provider"
DOCUMENTS = [
    ROOT / "README.md",
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "architecture.md"),
    *sorted((ROOT / "example_apps").rglob("*.py")),
    *sorted((ROOT / "example_apps").rglob("*.md")),
    *sorted((ROOT / "typing_tests").glob("*.py")),
]
MODULE = re.compile(r"\bvoight_middleware((?:\.\w+)*)")
IMPORTED = re.compile(r"from (voight_middleware[\w.]*) import (?:\(([^)]*)\)|([^\n#]*))")


@pytest.mark.parametrize("module", LISTED)
def test_the_page_lists_the_names_of_a_module(module: str) -> None:
    """``__all__`` and the page agree, each name is there, and completion shows it."""
    public = import_module(module)
    names = [name for name in public.__all__ if not name.startswith("__")]

    assert sorted(LISTED[module]) == sorted(names)
    assert set(names) <= set(dir(public))
    assert all(hasattr(public, name) for name in names)
    assert len(names) == len(set(names))


def test_completion_shows_the_public_names_and_modules() -> None:
    """``dir(voight_middleware)`` has no room of the library that is internal."""
    modules = {module.partition(".")[2] for module in LISTED} - {""}

    assert set(dir(voight_middleware)) == set(voight_middleware.__all__) | modules


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_and_examples_use_public_names(path: Path) -> None:
    """Nobody learns an internal name from us."""
    text = path.read_text()
    for found in MODULE.finditer(text):
        name = found.group(0)
        module, _, attribute = name.rpartition(".")
        public = name in LISTED or attribute in LISTED.get(module, ()) or name == RUN_AS_PROGRAM
        assert public, f"{name} is internal"
    for module, several, one_line in IMPORTED.findall(text):
        for name in re.findall(r"\w+", re.sub(r" as \w+", "", several or one_line)):
            assert name in LISTED[module] or f"{module}.{name}" in LISTED, f"{module}.{name} is internal"
