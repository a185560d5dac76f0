"""Run Python source in forks of a process that has imported what is slow to import."""

import json
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

SERVER = """
import json, os, sys, traceback

exec(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.argv = ["-c", *asked["arguments"]]
            exec(compile(asked["source"], "<forked>", "exec"), {"__name__": "__main__"})
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """
    Runs Python source in forks of one process, so that a dozen of processes import their libraries once.

    A fork has imported these libraries and done nothing with them: what it patches is gone with it. It ends without ``atexit``.
    """

    def __init__(self, imports: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER, imports], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def run(self, source: str, *arguments: str) -> str:
        """Run *source* to its end and return what it printed, errors too; fail the test if it failed."""
        assert self._process.stdin is not None
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "output"
            asked = {"source": textwrap.dedent(source), "arguments": arguments, "output": str(output)}
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            code = self._answer()
            said = output.read_text()
        assert code == "0", said
        return said

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that forks has ended"
        return line.strip()

    def stop(self) -> None:
        """End the process that forks."""
        self._process.kill()
        self._process.communicate()
