"""Speed-ups as an SVG: one bar a case and baseline on a logarithmic scale, 1x as a line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import Any

from svg import BAR, COLOURS, GAP, HEADER, WIDTH, box, page

LABELS, RIGHT = 400, 120  # pixels: the column of cases, room for the last number
ON_GPU = "times on the GPU"
OUR_OWN = {"simple_kernel"}  # contenders that are kernels of this project, no baselines


def speed_chart(results: dict[str, dict[str, Any]]) -> str:
    """Return the SVG of results by machine; bars of cases that lose are hollow."""
    ratios = [b["ratio"] for _, rows in _sections(results) for row in rows for b in row[1].values()]
    scale = _Scale(min(ratios, default=1), max(ratios, default=1))
    body: list[str] = []
    y = 26
    for title, rows in _sections(results):
        colours = dict(zip(dict.fromkeys(n for _, b in rows for n in b), COLOURS * 2, strict=False))
        body.append(f'<rect class="page" y="{y}" width="{WIDTH}" height="{HEADER - 4}"/>')
        body.append(f'<text class="op" x="12" y="{y + 15}">{escape(title)}</text>')
        x = LABELS
        for name, colour in colours.items():
            body.append(box(x, y + 6, 10, colour, hollow=False))
            body.append(f'<text x="{x + 15}" y="{y + 15}">vs {escape(name)}</text>')
            x += 50 + 7 * len(name)
        y += HEADER
        for case, baselines in rows:
            middle = y + BAR * len(baselines) / 2 + 4
            label = f'<text x="{LABELS - 10}" y="{middle:g}" text-anchor="end">{escape(case)}'
            body.append(f"{label}</text>")
            for name, baseline in baselines.items():
                body += _bar(scale, y, baseline["ratio"], colours[name])
                y += BAR
            y += GAP
        y += GAP
    return page(y, "Speed-up over each baseline", [*_axis(scale, y), *body])


def loses(ratio: float) -> bool:
    """Return whether a speed-up, to two digits, is none."""
    return round(ratio, 2) < 1


def factor(ratio: float) -> str:
    """Return a speed-up as text."""
    return f"{ratio:.2f}x" if ratio < 9.95 else f"{ratio:.0f}x"


def over_best(row: dict[str, Any]) -> float:
    """Return the speed-up of a case over the best of its baselines."""
    return min(b["ratio"] for name, b in row["baselines"].items() if name not in OUR_OWN)


class _Scale:
    """Ratios to pixels; from a power of two below the least to one above the greatest."""

    def __init__(self, least: float, most: float) -> None:
        self.low = min(math.floor(math.log2(least)), -1)
        self.high = max(math.ceil(math.log2(most)), 1)

    def __call__(self, ratio: float) -> float:
        share = (math.log2(ratio) - self.low) / (self.high - self.low)
        return round(LABELS + share * (WIDTH - RIGHT - LABELS), 1)

    def ticks(self) -> Iterator[float]:
        step = 1 if self.high - self.low <= 8 else 2
        return (2.0**k for k in range(self.low, self.high + 1) if k % step == 0)


def _sections(
    results: dict[str, dict[str, Any]],
) -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """Title and rows (case, baselines) of each op of each machine, where there is a baseline."""
    for machine, result in results.items():
        infos = [b["extra_info"] for b in result["benchmarks"] if b["extra_info"]["baselines"]]
        kinds = [(info["op"], info.get("device", "cpu")) for info in infos]
        for op, device in dict.fromkeys(kinds):
            heading = [op] + [machine] * (len(results) > 1) + [ON_GPU] * (device != "cpu")
            rows = [i for i, kind in zip(infos, kinds, strict=True) if kind == (op, device)]
            yield ", ".join(heading), [(row["case"], _bars(row)) for row in rows]


def _bars(row: dict[str, Any]) -> dict[str, Any]:
    """One for each baseline; of the many cases on a GPU one for the best alone."""
    return {"the best baseline": {"ratio": over_best(row)}} if "images" in row else row["baselines"]


def _axis(scale: _Scale, height: float) -> Iterator[str]:
    for tick in scale.ticks():
        x, kind = scale(tick), "one" if tick == 1 else "axis"
        yield f'<line class="{kind}" x1="{x:g}" x2="{x:g}" y1="24" y2="{height - 8:g}"/>'
        yield f'<text x="{x:g}" y="18" text-anchor="middle">{tick:g}x</text>'


def _bar(scale: _Scale, y: float, ratio: float, colour: str) -> Iterator[str]:
    begin, end = sorted((scale(1), scale(ratio)))
    yield box(begin, y + 1, max(end - begin, 1), colour, hollow=loses(ratio))
    words = factor(ratio) + (" slower" if loses(ratio) else "")
    # Behind the bar, on the side away from the labels: never over the 1x line.
    yield f'<text x="{end + 4:g}" y="{y + 10:g}">{words}</text>'
