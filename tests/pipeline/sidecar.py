"""Run `voight ingest` and an application beside it in processes of their own."""

from contextlib import closing
from subprocess import Popen

from voight_middleware.ledger import open_ledger

from ..support.scripts import Scripts

SIDECAR = """
import sys
from voight_middleware.cli import main
sys.exit(main(["ingest", *sys.argv[1:]]))
"""
HURRIED = """
import sys
from voight_middleware.cli import ingest, main
from voight_middleware.pipeline import open_calls, supervisor, worker

PACE = {"INTERVAL": 0.05, "FIRST_PAUSE": 0.05, "LONGEST_PAUSE": 0.4}  # in the place of 1, 1 and 30 seconds
paced = [
    vars(module).update({name: PACE[name] for name in PACE.keys() & vars(module)})
    for module in list(sys.modules.values())
    if module.__name__.startswith("voight_") and not PACE.keys().isdisjoint(vars(module))
]
assert len(paced) > 2
sys.exit(main(["ingest", *sys.argv[1:]]))
"""
"""A sidecar that looks often, and leaves a ledger that is down alone for a short time only."""
APPLICATION = """
import os, sys, time
os.environ["VOIGHT_INGEST"] = "no"
import voight_middleware as voight
usage = {"prompt_tokens": 1, "completion_tokens": 1}
for number in range(int(sys.argv[1])):
    print(voight.record(provider="openai", model="gpt-5-nano", usage=usage), flush=True)
    time.sleep(float(sys.argv[2]))
"""


def ids_of(scripts: Scripts) -> list[str]:
    """Return the ids of the calls in the ledger of *scripts*."""
    with closing(open_ledger(f"sqlite:///{scripts.ledger}")) as ledger:
        return sorted(call.call_id for call in ledger.calls())


def lines_until(process: "Popen[str]", what: str) -> list[str]:
    """Return what *process* prints up to the line that has *what* in it."""
    assert process.stdout is not None
    assert process.stderr is not None
    lines: list[str] = []
    while not lines or what not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], f"ended before it said {what!r}: {lines} {process.stderr.read()}"
    return lines
