"""The mutations fit the library as it is; ``run.py`` shows that tests notice them."""

from pathlib import Path

import pytest

from .mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]


def test_there_are_forty_at_least_with_a_name_each() -> None:
    """A mutation is named once."""
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_changed_text_occurs_once(mutation: Mutation) -> None:
    """A change of the library that moves the text is made in the mutation too."""
    text = (ROOT / mutation.file).read_text()
    assert text.count(mutation.old) == 1
    assert mutation.old != mutation.new
    compile(text.replace(mutation.old, mutation.new), mutation.file, "exec")
    assert any((ROOT / tests).exists() for tests in mutation.tests)
