"""Time by stage of a planned decode, beside its floor: a table and an SVG.

Predicted by `roofline_stages.py`, and said to be, until results of `bench_stages.py` are committed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from roofline import H200
from roofline_stages import ALL, BATCHES, DEPENDENT, MODEL, NUM_STEPS, decode_stages, stage_floor
from svg import BAR, COLOURS, GAP, HEADER, WIDTH, box, page

from lpd_ext import LPDConfig, group_sizes

TITLE = f"{MODEL}, {NUM_STEPS} steps, bfloat16 with guidance: ms an image by stage"
UNMEASURED = "predicted, no GPU has run this"
SUM = "sum"
LABELS, RIGHT = 110, 190  # pixels: the column of stages, room for the numbers behind a bar


@dataclass(frozen=True)
class Row:
    """A stage, in milliseconds an image; None where nothing is predicted or measured."""

    stage: str
    launches: int
    floor: float
    predicted: tuple[float, float] | None  # at best and at worst
    measured: float | None

    @property
    def told(self) -> float:
        """What is known of it: its measured time, or else the middle of the predicted ones."""
        if self.measured is not None:
            return self.measured
        return sum(self.predicted) / 2 if self.predicted else self.floor

    @property
    def words(self) -> str:
        """The same as text, without its unit."""
        if self.measured is None and self.predicted:
            return _range(*self.predicted)
        return f"{self.told:.3f}"


@dataclass(frozen=True)
class Batch:
    """All stages of a decode of some images."""

    images: int
    rows: Sequence[Row]
    sum: Row
    loop: Row  # every launch in its place

    @property
    def widest_gap(self) -> str:
        """The stage that is furthest above its floor."""
        return max(self.rows, key=lambda row: row.told - row.floor).stage


def stage_table(results: Mapping[str, Any]) -> str:
    """Return the tables of the README, one a machine with measurements."""
    parts, (least, most) = [], DEPENDENT
    for name, measured in _machines(results):
        parts.append(f"**{TITLE}, {f'measured: {name}' if name else UNMEASURED}**")
        parts.append(_table([_batch(images, measured) for images in BATCHES], bool(measured)))
    parts.append(
        f"Floors: `benchmarks/roofline_stages.py`, {H200.ceilings}. Predicted there, at best and "
        f"at worst: a launch that waits for another takes {1e6 * least:g} to {1e6 * most:g} us, "
        "its kernel some more by its instructions, and its floor by the share of the ceiling that "
        "it reaches. Bold: furthest above its floor. The loop: all of them in their places, its "
        "floor that of `benchmarks/roofline.py`."
    )
    return "\n\n".join(parts)


def stage_chart(results: Mapping[str, Any]) -> str:
    """Return the SVG: a bar a stage, solid to its floor, in outline to its time or the middle."""
    sections = [
        (name, _batch(images, measured), "measured" if measured else "predicted")
        for name, measured in _machines(results)
        for images in BATCHES
    ]
    told = "measured" if sections[0][0] else UNMEASURED
    body = [f'<text class="op" x="12" y="20">{TITLE}, {told}</text>']
    all_rows = [row for _, batch, _ in sections for row in batch.rows]
    longest = max(max(row.told, row.floor) for row in all_rows)
    y = 32
    for name, batch, kind in sections:
        x = WIDTH - RIGHT
        body.append(box(x, y + 6, 10, COLOURS[0], hollow=False))
        body.append(f'<text x="{x + 15}" y="{y + 15}">floor</text>')
        body.append(box(x + 55, y + 6, 10, COLOURS[0], hollow=True))
        body.append(f'<text x="{x + 70}" y="{y + 15}">{kind}</text>')
        whole = batch.loop if batch.loop.measured is not None else batch.sum
        title = f"{name} " * bool(name) + f"batch {batch.images}: {whole.words} ms {kind}"
        title += f", floor {batch.loop.floor:.2f} ms"
        body.append(f'<text class="op" x="12" y="{y + 15}">{escape(title)}</text>')
        y += HEADER
        body += _bars(batch.rows, y, longest)
        y += len(batch.rows) * (BAR + GAP) + 2 * GAP
    return page(y, "Time by stage against the floor", body)


def _machines(results: Mapping[str, Any]) -> list[tuple[str, dict[int, dict[str, float]]]]:
    """Return who measured, and microseconds by batch and stage; nobody without measurements."""
    found = []
    for name, result in results.items():
        measured: dict[int, dict[str, float]] = {}
        for row in (b["extra_info"] for b in result["benchmarks"]):
            if row["op"] == "stages":
                measured.setdefault(row["batch"], {})[row["stage"]] = row["ours"]["median_us"]
        if measured:
            found.append((f"{name} ({result['machine_info']['gpu']})", measured))
    return found or [("", {})]


def _batch(images: int, measured: Mapping[int, Mapping[str, float]]) -> Batch:
    config = LPDConfig.named(MODEL)
    sizes = group_sizes(config.seq_len, NUM_STEPS)
    of_stage = measured.get(images, {})

    def in_ms(seconds: float) -> float:
        return 1e3 * seconds / images

    def time(stage: str) -> float | None:
        return in_ms(1e-6 * of_stage[stage]) if stage in of_stage else None

    rows = [
        Row(name, stage.launches, in_ms(stage.floor), (in_ms(stage.least), in_ms(stage.most)),
            time(name))
        for name, stage in decode_stages(config, sizes, images, H200).items()
    ]  # fmt: skip
    times = [row.measured for row in rows if row.measured is not None]
    total = Row(
        SUM,
        sum(row.launches for row in rows),
        sum(row.floor for row in rows),
        (sum(row.predicted[0] for row in rows), sum(row.predicted[1] for row in rows)),
        sum(times) if len(times) == len(rows) else None,
    )
    least = in_ms(stage_floor(config, sizes, images, ALL, H200))
    return Batch(images, rows, total, Row("the loop", total.launches, least, None, time(ALL)))


def _table(batches: Sequence[Batch], measured: bool) -> str:
    columns = ["floor", "predicted"] + ["measured"] * measured
    heading = [f"batch {batch.images}: {column}" for batch in batches for column in columns]
    lines = [["stage", "launches", *heading], ["---", *["--:"] * (1 + len(heading))]]
    for rows in zip(*((*batch.rows, batch.sum, batch.loop) for batch in batches), strict=True):
        cells = [rows[0].stage, str(rows[0].launches)]
        for row, batch in zip(rows, batches, strict=True):
            shown = [f"{row.floor:.3f}", _range(*row.predicted) if row.predicted else ""]
            shown += ["" if row.measured is None else f"{row.measured:.3f}"] * measured
            if row.stage == batch.widest_gap:
                shown[-1] = f"**{shown[-1]}**"
            cells += shown
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bars(rows: Sequence[Row], y: float, longest: float) -> Iterator[str]:
    def pixels(time: float) -> float:
        return round(time / longest * (WIDTH - RIGHT - LABELS), 1)

    for row in rows:
        yield f'<text x="{LABELS - 10}" y="{y + 10:g}" text-anchor="end">{row.stage}</text>'
        yield box(LABELS, y + 1, max(pixels(row.told), 1), COLOURS[0], hollow=True)
        yield box(LABELS, y + 1, pixels(row.floor), COLOURS[0], hollow=False)
        end = LABELS + pixels(max(row.told, row.floor))
        words = f"{row.words} ms (floor {row.floor:.3f})"
        yield f'<text x="{end + 6:g}" y="{y + 10:g}">{words}</text>'
        y += BAR + GAP


def _range(least: float, most: float) -> str:
    """Return both to two digits behind the point, or to three where they are that small."""
    digits = 2 if least >= 0.1 else 3
    return f"{least:.{digits}f} to {most:.{digits}f}"
