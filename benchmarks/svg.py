"""What the charts share: a page that is legible on a light and on a dark ground, and bars."""

from __future__ import annotations

from collections.abc import Iterable

WIDTH = 920  # pixels
BAR, GAP, HEADER = 12, 8, 30
COLOURS = ("#3b7dd8", "#d1793b", "#3d9970", "#a05fc0")

# A chart brings its own background: legible on a light page and on a dark one.
STYLE = """
.page { fill: #ffffff } text { fill: #24292f; font: 11px sans-serif } .op { font-weight: bold;
font-size: 13px } .axis { stroke: #d0d7de } .one { stroke: #24292f; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) { .page { fill: #0d1117 } text { fill: #e6edf3 }
.axis { stroke: #30363d } .one { stroke: #e6edf3 } }
"""


def page(height: float, label: str, body: Iterable[str]) -> str:
    """Return a whole SVG."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img" aria-label="{label}">',
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>',
            *body,
            "</svg>\n",
        ]
    )


def box(x: float, y: float, width: float, colour: str, *, hollow: bool) -> str:
    """Return a bar."""
    fill = f'fill="none" stroke="{colour}" stroke-width="1.5"' if hollow else f'fill="{colour}"'
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{BAR - 2}" {fill}/>'
