"""``--plot``: spend over time, and concentration, as an image."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voight_middleware.cli.output import output
from voight_middleware.cli.render import UserError, printable
from voight_middleware.reports.plans import PlansReport
from voight_middleware.reports.spend import TIMES, SpendReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SERIES = 8
"""How many series have their own color; the others are drawn as one."""


def check(text: str | None, by: Sequence[str] | None = None) -> Path | None:
    """
    Return the file of ``--plot``, before the ledger is read.

    Raises:
        UserError: matplotlib is missing, the file is neither PNG nor SVG, or the first dimension is
            not a time.
    """
    if text is None:
        return None
    path = Path(text)
    if path.suffix.lower() not in (".png", ".svg"):
        raise UserError(f"--plot writes FILE.png or FILE.svg, not {text!r}")
    if by is not None and (len(by) > 2 or next(iter(by), None) not in TIMES):
        raise UserError("--plot draws spend over time: give --by day, or --by day,plan")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib: pip install 'voight-middleware[plot]'")
    return path


def spend_over_time(report: SpendReport, title: str, path: Path) -> None:
    """
    Draw stacked bars: the cost of each time, by the second dimension if there is one.

    Raises:
        UserError: The file cannot be written.
    """
    first, *second = report.by
    times = list(dict.fromkeys(str(row.dimensions[first]) for row in report.rows))
    series: dict[str, dict[str, float]] = {}
    totals: dict[str, float] = {}
    for row in report.rows:
        name = _name(row.dimensions[second[0]]) if second else "cost"
        time, cost = str(row.dimensions[first]), (row.cost_femto or 0) / 1e15
        values = series.setdefault(name, {})
        values[time] = values.get(time, 0.0) + cost
        totals[name] = totals.get(name, 0.0) + cost
    order = sorted(series, key=lambda name: -totals[name])
    if len(order) > _SERIES:
        rest = order[_SERIES - 1 :]
        together = {time: sum(series[name].get(time, 0.0) for name in rest) for time in times}
        order = [*order[: _SERIES - 1], f"{len(rest)} others"]
        series[order[-1]] = together
    figure = _figure()
    axes = figure.add_subplot()
    bottom = [0.0] * len(times)
    for name in order:
        heights = [series[name].get(time, 0.0) for time in times]
        axes.bar(range(len(times)), heights, bottom=bottom, label=name, width=0.85)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    step = max(1, len(times) // 12)
    axes.set_xticks(range(0, len(times), step), times[::step], rotation=45, ha="right")
    axes.set_ylabel("US dollars")
    axes.set_title(_plain(title))
    if second:
        axes.legend()
    _save(figure, path)


def concentration(report: PlansReport, title: str, path: Path) -> None:
    """
    Draw for each plan the share of its cost by its users, the most expensive first.

    Raises:
        UserError: The file cannot be written.
    """
    figure = _figure()
    axes = figure.add_subplot()
    for row in report.rows[:_SERIES]:
        if total := sum(row.costs):
            parts, so_far = [0.0], 0
            for cost in row.costs:
                so_far += cost
                parts.append(so_far / total * 100)
            axes.plot(
                [100 * number / len(row.costs) for number in range(len(parts))],
                parts,
                label=_name(row.plan),
            )
    axes.plot([0, 100], [0, 100], color="0.7", linestyle=":", label="equal shares")
    axes.set_xlabel("% of the users of the plan, the most expensive first")
    axes.set_ylabel("% of their cost")
    axes.set_title(_plain(title))
    axes.legend()
    _save(figure, path)


def _figure() -> Figure:
    from matplotlib.figure import Figure  # not pyplot, which looks for a display

    return Figure(figsize=(10, 5), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    with output(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that the font lacks
        figure.savefig(file, dpi=150, format=path.suffix[1:].lower())


def _name(value: str | None) -> str:
    return "(none)" if value is None else _plain(value)


def _plain(text: str) -> str:
    """Escape dollar signs, which start formulas, and a leading underscore, which hides a label."""
    text = printable(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
