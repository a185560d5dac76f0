"""Small wrong changes of the library, each of which a test of the default run must notice."""

from __future__ import annotations

from . import answers, calls, money_and_ledger, owners
from .mutation import Mutation

MUTATIONS: list[Mutation] = [*owners.MUTATIONS, *calls.MUTATIONS, *money_and_ledger.MUTATIONS, *answers.MUTATIONS]
