"""
Flame graphs of a bare and a metered call, and of ``voight top``: where the time goes.

    pip install py-spy
    python benchmarks/flame.py pictures --ledger ledger.db

py-spy looks at every thread of a process a thousand times a second. It needs the right to trace a
process of its own user (on macOS root; in a container ``--cap-add SYS_PTRACE``). Widths are time on
the CPU; a thread that waits is not shown, and neither is less than a three-hundredth of the width.
The pictures of calls leave out what happens once: what is imported.
"""

from __future__ import annotations

import argparse
import html
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BARE, METERED, TOP = "bare", "metered", "top"
BATCH = 50
"""So many calls between two looks at the clock, and between two flushes."""
WIDTH, ROW = 1400, 17
IMPORTS = "<frozen importlib"
OURS, OTHERS = "#f4a259", "#cfd8dc"
"""The colors of the library's own functions, and of all others."""


def calls(metered: bool, seconds: float) -> None:
    """Calls, one after the other; the metered ones of a user, into a ledger that goes with it."""
    sys.path.insert(0, str(Path(__file__).parent))
    import canned
    import openai

    client = openai.OpenAI(api_key="k", http_client=canned.transport("openai"))
    arguments = canned.arguments("openai")
    until = time.monotonic() + seconds
    if not metered:
        while time.monotonic() < until:
            for _ in range(BATCH):
                client.chat.completions.create(**arguments)
        return
    import voight_middleware as voight

    with tempfile.TemporaryDirectory() as folder:
        voight.configure(ledger=f"sqlite:///{folder}/ledger.db")
        voight.wrap(client)
        while time.monotonic() < until:
            for _ in range(BATCH):
                with voight.tag(user_id="u_1", plan="pro"):
                    client.chat.completions.create(**arguments)
            voight.flush()
        voight.configure(ledger=f"sqlite:///{folder}/closed.db")


def top(ledger: Path) -> None:
    """``voight top``, its imports included."""
    from voight_middleware.cli import main

    raise SystemExit(main(["top", "--ledger", f"sqlite:///{ledger.resolve()}"]))


def stacks(py_spy: str, what: list[Any]) -> list[tuple[list[str], int]]:
    """Let py-spy look at this script while it runs *what*; return the stacks that it has seen."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "stacks")
        command = [py_spy, "record", "--format", "raw", "--function"]
        command += ["--rate", "1000", "--output", str(output), "--"]
        done = subprocess.run(
            [*command, sys.executable, __file__, *map(str, what)],
            capture_output=True,
            text=True,
            check=False,
        )
        if not output.exists():
            raise SystemExit(f"py-spy: {done.stderr.strip()}")
        lines = [line.rpartition(" ") for line in output.read_text().splitlines()]
    # without frames: a thread that begins or ends
    return [(frames.split(";"), int(count)) for frames, _, count in lines if frames]


@dataclass
class Frame:
    """A function in the picture, called by the one below it."""

    name: str
    samples: int = 0
    calls: dict[str, Frame] = field(default_factory=dict)

    def add(self, frames: list[str], count: int) -> None:
        """Count a stack from here on."""
        self.samples += count
        if frames:
            frame = self.calls.setdefault(frames[0], Frame(frames[0]))
            frame.add(frames[1:], count)

    def depth(self, least: float) -> int:
        """How many frames are above, this one included."""
        return 1 + max(
            (f.depth(least) for f in self.calls.values() if f.samples >= least), default=0
        )


def picture(title: str, seen: list[tuple[list[str], int]], steady: bool) -> str:
    """An SVG of these stacks; of the steady state only, if that is asked for."""
    root = Frame("all")
    for stack, count in seen:
        if steady and any(IMPORTS in frame for frame in stack):
            continue
        root.add([frame for frame in stack if IMPORTS not in frame], count)
    least = max(1.0, root.samples / 300)
    height = (root.depth(least) + 2) * ROW
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        ' font-family="sans-serif" font-size="11">',
        f'<text x="4" y="{ROW - 4}" font-size="13">{html.escape(title)}</text>',
    ]

    def draw(frame: Frame, left: float, level: int) -> None:
        width = frame.samples / root.samples * WIDTH
        top = height - (level + 1) * ROW
        function, _, place = frame.name.partition(" (")
        label = place.partition(":")[0] if function == "<module>" else function
        room = int(width / 6.2)
        text = label if len(label) <= room else label[: room - 1] + "…" if room > 3 else ""
        color = OURS if "voight" in frame.name else OTHERS
        share = frame.samples / root.samples
        lines.append(
            f'<g><title>{html.escape(frame.name)}: {share:.1%}</title><rect x="{left:.1f}" '
            f'y="{top}" width="{max(width - 0.5, 0.5):.1f}" height="{ROW - 1}" fill="{color}"/>'
            f'<text x="{left + 3:.1f}" y="{top + ROW - 5}">{html.escape(text)}</text></g>'
        )
        for called in sorted(frame.calls.values(), key=lambda one: one.name):
            if called.samples >= least:
                draw(called, left, level + 1)
            left += called.samples / root.samples * WIDTH

    draw(root, 0, 0)
    return "\n".join([*lines, "</svg>\n"])


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="Flame graphs of calls and of voight top.")
    parser.add_argument("folder", type=Path, help="where to write the pictures")
    parser.add_argument("--ledger", type=Path, help="an SQLite file: a picture of voight top")
    parser.add_argument("--seconds", type=float, default=10, help="of calls")
    parser.add_argument("--py-spy", default=shutil.which("py-spy"), help="the program")
    parser.add_argument("--run", choices=(BARE, METERED, TOP), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run == TOP:
        return top(options.ledger)
    if options.run:
        return calls(options.run == METERED, options.seconds)
    if not options.py_spy:
        parser.error("py-spy is not installed: pip install py-spy")
    options.folder.mkdir(parents=True, exist_ok=True)
    runs = [(BARE, "A bare call of the OpenAI SDK"), (METERED, "A metered call of the OpenAI SDK")]
    if options.ledger:
        runs.append((TOP, f"voight top, {options.ledger.stat().st_size / 1e6:.0f} MB"))
    for run, title in runs:
        what: list[Any] = [options.folder, "--run", run, "--seconds", options.seconds]
        what += ["--ledger", options.ledger] if run == TOP else []
        output = options.folder / f"{run}.svg"
        output.write_text(picture(title, stacks(options.py_spy, what), run != TOP))
        print(f"{output}: {output.stat().st_size // 1000} kB")
    return None


if __name__ == "__main__":
    main()
