"""The findings of ``voight doctor``, as text and JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from voight_middleware.cli.render import printable

LOST_RECORDS = "lost records"
"""The name of the finding about lost records."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    section: str
    name: str
    value: str
    advice: str | None = None
    """Advice for the user, or None if nothing is wrong."""
    fatal: bool = False
    """Whether calls are lost or not stored."""


def as_json(findings: list[Finding]) -> str:
    """Return the findings as a JSON object in ASCII."""
    ok = not any(finding.fatal for finding in findings)
    return json.dumps({"ok": ok, "findings": [asdict(finding) for finding in findings]}, indent=2)


def as_text(findings: list[Finding]) -> str:
    """Return the findings by section for a terminal."""
    width = max(len(finding.name) for finding in findings)
    lines: list[str] = []
    section = None
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section] if lines else [section]
        mark = "✗" if finding.fatal else "!" if finding.advice else "✓"
        lines.append(f"  {mark} {finding.name.ljust(width)}  {printable(finding.value)}")
        if finding.advice:
            lines.append(f"    {' ' * width}  → {printable(finding.advice)}")
    fatal = sum(finding.fatal for finding in findings)
    advice = sum(finding.advice is not None for finding in findings) - fatal
    kept = (
        "calls are stored, but calls were lost before"
        if any(finding.name == LOST_RECORDS for finding in findings)
        else "calls are stored"
    )
    verdict = "calls are lost or not stored" if fatal else kept
    lines += [
        "",
        f"{verdict}; {fatal} to fix, {advice} to look at" if fatal or advice else "all is well",
    ]
    return "\n".join(lines)


def writable(section: str, path: Path, consequence: str, otherwise: str = "") -> Finding:
    """Return whether *path*, or the folder to create it in, is writable."""
    place = path
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
    except OSError:  # a parent folder that this account may not search
        place = place.parent
    right = os.W_OK | (os.X_OK if place.is_dir() else 0)
    if os.access(place, right) and (place == path or place.is_dir()):
        return Finding(
            section, "writable", f"{path}{'' if place == path else ' (created when needed)'}"
        )
    return Finding(
        section,
        "writable",
        f"no: {path}",
        f"{consequence}: make {place} writable, or choose another place{otherwise}",
        fatal=True,
    )
