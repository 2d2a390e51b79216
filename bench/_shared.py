"""What the benchmarks share: the machine in a line, quantiles, Markdown tables, plots."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

#: Where `docs/benchmarks.md` finds its plots.
DOCS = Path(__file__).parents[1] / "docs"

BAR, GAP, LABEL, WIDTH = 22, 8, 230, 760


def machine() -> str:
    """Where this was measured."""
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def table(head: str, rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; `head` is its first line without the outer bars."""
    lines = [f"| {head} |", "|---" * (head.count("|") + 1) + "|"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])


def bars(title: str, groups: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """An SVG of horizontal bars: one group for each thing that was tried, each scaled to its own longest bar."""
    parts, y = [_text(0, 20, title, "bold")], 48
    for group, values in groups.items():
        parts.append(_text(0, y, f"{group}, {unit}"))
        longest = max(values.values())
        for label, value in values.items():
            y += BAR + GAP
            length = (WIDTH - LABEL - 80) * value / longest
            parts.append(_text(12, y, label))
            parts.append(f'<rect x="{LABEL}" y="{y - 16}" width="{length:.1f}" height="{BAR}" fill="#4477aa"/>')
            parts.append(_text(LABEL + length + 6, y, f"{value:,.3g}" if value < 100 else f"{value:,.0f}"))
        y += 2 * BAR
    style = "font: 13px sans-serif; background: white"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" style="{style}">'
    return "\n".join([head, *parts, "</svg>", ""])


def _text(x: float, y: float, words: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y}" font-weight="{weight}" fill="#222">{escape(words)}</text>'
