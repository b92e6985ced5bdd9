"""Committed measurements -> the tables of README.md, docs/speed.svg and docs/stages.svg.

    python benchmarks/report.py                    # of benchmarks/results/*.json
    python benchmarks/report.py --trim out/bench.json benchmarks/results/MACHINE.json

No number is typed by hand: a region of the README between ``<!-- report:begin NAME -->`` and
``<!-- report:end NAME -->`` is rewritten as a whole. NAME is an op, ``decode``, ``decode_images``,
``figure``, ``machine`` or ``stages``, which predicts what was not measured and says so. Several
files given to --trim are merged; they must stem from one machine and commit.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from speed_chart import ON_GPU, factor, loses, over_best, speed_chart
from stage_report import stage_chart, stage_table
from trimmed import Result, trim

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
CHART, STAGES = "docs/speed.svg", "docs/stages.svg"
COMMAND, GPU_COMMAND = "make bench", "bash benchmarks/gpu_check.sh"

BASELINES = {
    "sdpa_dense_mask": "one call of torch's attention with a mask made beforehand",
    "sdpa_two_slices": "two unmasked calls of torch's attention on slices of the cache",
    "flex_attention": "torch's flex_attention, compiled for the shape, the two prefixes as a block "
    "mask",
    "flashinfer": "its paged attention planned for the shape, context rows and queries as two "
    "requests on one page",
    "simple_kernel": "our own kernel without tensor cores, no baseline",
    "torch_chain": "lerp, topk or sort, softmax, cumsum, searchsorted",
    "published_chain": "the published sampling code, which draws with torch.multinomial",
    "reference": "the specification in plain torch and Python (lpd_ext.ops.reference)",
    "published_loop": "port of the published eager loop, float32 weights under bfloat16 autocast",
    "published_loop_frozen": "the same with weights that need no gradient: autocast casts them "
    "anew at every use instead of once a call",
    "torch_linear": "the four layers, norms, GELU and additions on torch's operators",
    "onednn_packed": "the same, weights packed once by mkldnn._reorder_linear_weight",
    "product_and_bias_gelu": "torch's product, then bias_gelu in place",
    "linear_and_gelu": "torch's linear, then torch's GELU, both in bfloat16",
    "sample_tokens": "the method as the published code writes it, with fewer copies",
    "published_loop_compiled": "the same under torch.compile",
    "sdpa_graph": "sdpa_loop captured in one CUDA graph, its request fixed",
    "sdpa_loop": "static shapes, two attention calls on cache slices, bfloat16, torch_chain",
    "decode": "lpd_ext.decode, the loop without a plan, in bfloat16",
}


@dataclass(frozen=True)
class Column:
    """Of a table: what stands at its head, in the row of a case and in the row of a mean."""

    heading: str
    cell: Callable[[Result], str]
    mean: Callable[[Sequence[Result]], str] = lambda rows: ""


def fill(text: str, results: dict[str, Result]) -> str:
    """Return `text` with every region rewritten from results by machine (their file's stem)."""

    def region(match: re.Match[str]) -> str:
        name = match[1]
        bodies = {"figure": _figure, "machine": _machines, "stages": _stages}
        content = bodies.get(name, partial(_tables, name))(results) or "*Not measured yet.*"
        return f"<!-- report:begin {name} -->\n{content}\n<!-- report:end {name} -->"

    begins = re.findall(r"<!-- report:begin (\w+) -->", text)
    filled, count = re.subn(
        r"<!-- report:begin (\w+) -->\n.*?<!-- report:end \1 -->", region, text, flags=re.DOTALL
    )
    if count != len(begins):
        raise ValueError(f"a region of {begins} has no end of its own")
    return filled


def load(paths: Sequence[Path]) -> dict[str, Result]:
    """Return trimmed results by file stem, sorted."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(paths)}


def _figure(results: dict[str, Result]) -> str:
    if not results:
        return ""
    return f"![Speed-up over each baseline, losing cases hollow]({CHART})"


def _stages(results: dict[str, Result]) -> str:
    return f"{stage_table(results)}\n\n![Time by stage against the floor]({STAGES})"


def _machines(results: dict[str, Result]) -> str:
    return "\n\n".join(_caption(name, results[name], len(results) > 1) for name in results)


def _caption(name: str, result: Result, several: bool) -> str:
    machine, commit = result["machine_info"], result["commit_info"]
    spreads = [
        100 * contender["iqr_us"] / contender["median_us"]
        for b in result["benchmarks"]
        for contender in (b["extra_info"]["ours"], *b["extra_info"]["baselines"].values())
    ]
    dirty = " with uncommitted changes" if commit["dirty"] else ""
    flags = f" with {', '.join(machine['cpu_flags'])}" if machine["cpu_flags"] else ""
    label = f"**{name}:** " if several else ""
    gpu, timer, command = "", "", COMMAND
    if any(map(_on_gpu, (b["extra_info"] for b in result["benchmarks"]))):
        gpu = f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}; "
        command = GPU_COMMAND
        timer = (
            " Times of ops on the GPU are those of CUDA graphs replayed between two events, L2 "
            "flushed before each; of whole decodes the host's, until the GPU is done."
        )
    return (
        f"{label}{gpu}{machine['cpu']}{flags}; {machine['threads']} threads on {machine['cores']} "
        f"cores; kernels for {machine['cpu_variant']}; torch {machine['torch']}, Python "
        f"{machine['python']}, {machine['system']}; commit {commit['id'][:7]}{dirty}, "
        f"{result['date']}, `{command}`. Medians; a factor is the median over rounds in which ours "
        "and the baselines took turns in one process, above 1x ours is faster. Interquartile "
        f"ranges: typically {statistics.median(spreads):.0f} %, at most {max(spreads):.0f} %."
        f"{timer}"
    )


def _tables(op: str, results: dict[str, Result]) -> str:
    parts, named = [], []
    for name, result in results.items():
        all_rows = [b["extra_info"] for b in result["benchmarks"] if b["extra_info"]["op"] == op]
        for on_gpu in (False, True):  # apart: a mean of both would say nothing
            rows = [row for row in all_rows if _on_gpu(row) == on_gpu]
            if not rows:
                continue
            heading = [name] * (len(results) > 1) + [ON_GPU] * on_gpu
            parts += [f"**{', '.join(heading)}**"] if heading else []
            columns = list(dict.fromkeys(column for row in rows for column in row["baselines"]))
            named += columns
            parts.append(_table(rows, columns))
            parts += [_errors(row) for row in rows if "logits_error" in row]
            parts += [_image_errors(row) for row in rows if "image_error" in row]
            parts += _floors(rows) + _left_out(rows)
    legend = [f"`{name}`: {BASELINES[name]}." for name in dict.fromkeys(named) if name in BASELINES]
    return "\n\n".join(parts + ([" ".join(legend)] if legend else []))


def _on_gpu(row: Result) -> bool:
    return row.get("device", "cpu") != "cpu"


def _table(rows: Sequence[Result], baselines: Sequence[str]) -> str:
    columns = [Column("ours", lambda row: duration(row["ours"]["median_us"]))]
    if any("floor_us" in row for row in rows):
        columns.append(Column("of the floor", _share, _mean_share))
    if any("images" in row for row in rows):
        columns.append(Column("over the best baseline", _over_best, _mean_over_best))
    columns += [Column(f"`{name}`", partial(_baseline, name), partial(_mean, name))
                for name in baselines]  # fmt: skip
    lines = [["case", *(column.heading for column in columns)]]
    lines.append(["---", *["--:"] * len(columns)])
    lines += [[row["case"], *(column.cell(row) for column in columns)] for row in rows]
    for title, group in _groups(rows):
        lines.append([title, *(column.mean(group) for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _groups(rows: Sequence[Result]) -> Iterator[tuple[str, list[Result]]]:
    """Yield what is averaged: by images where there are any, and everything."""
    for images in sorted({row["images"] for row in rows if "images" in row}):
        group = [row for row in rows if row.get("images") == images]
        yield f"geometric mean, batch {images}", group
    if len(rows) > 1:
        yield "geometric mean", list(rows)


def _share(row: Result) -> str:
    if "floor_us" not in row:
        return ""
    return _percent(row["floor_us"] / row["ours"]["median_us"])


def _mean_share(rows: Sequence[Result]) -> str:
    shares = [row["floor_us"] / row["ours"]["median_us"] for row in rows if "floor_us" in row]
    return _percent(statistics.geometric_mean(shares)) if shares else ""


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _over_best(row: Result) -> str:
    return _marked(over_best(row))


def _mean_over_best(rows: Sequence[Result]) -> str:
    return _marked(statistics.geometric_mean(map(over_best, rows)))


def _baseline(name: str, row: Result) -> str:
    if name not in row["baselines"]:
        return ""
    measured = row["baselines"][name]
    return f"{duration(measured['median_us'])} ({_marked(measured['ratio'])})"


def _mean(name: str, rows: Sequence[Result]) -> str:
    ratios = [row["baselines"][name]["ratio"] for row in rows if name in row["baselines"]]
    return _marked(statistics.geometric_mean(ratios)) if ratios else ""


def _marked(ratio: float) -> str:
    return f"**{factor(ratio)}, slower**" if loses(ratio) else factor(ratio)


def _errors(row: Result) -> str:
    return (
        f"{row['case']}: largest / mean error of the logits with forced tokens, float32 being "
        f"exact: {_listed(row['logits_error'])} (logits of standard deviation "
        f"{row['logits_std']:.2g}, entropy {row['entropy_nats']:.1f} nats)."
    )


def _image_errors(row: Result) -> str:
    return (
        f"{row['case']}: largest / mean error of the images, float64 being exact: "
        f"{_listed(row['image_error'])}."
    )


def _listed(errors: Result) -> str:
    return ", ".join(f"`{name}` {e['max']:.2g} / {e['mean']:.2g}" for name, e in errors.items())


def _floors(rows: Sequence[Result]) -> list[str]:
    ceilings = dict.fromkeys(row["ceilings"] for row in rows if "ceilings" in row)
    return [f"Floors: work as `benchmarks/roofline.py` counts it, {c}." for c in ceilings]


def _left_out(rows: Sequence[Result]) -> list[str]:
    """Say which baselines did not take part, why, and in how many cases."""
    reasons = Counter(pair for row in rows for pair in row.get("left_out", {}).items())
    if not reasons:
        return []
    listed = (f"`{name}` in {n} cases ({reason})" for (name, reason), n in reasons.items())
    return [f"Left out: {', '.join(listed)}."]


def duration(microseconds: float) -> str:
    """Return three digits and the unit that fits them."""
    units = ((999.5, 1, "us"), (999.5e3, 1e3, "ms"), (float("inf"), 1e6, "s"))
    scale, unit = next((scale, unit) for limit, scale, unit in units if microseconds < limit)
    return f"{microseconds / scale:#.3g}".rstrip(".") + f" {unit}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Trim measurements, or rewrite the README's regions and the charts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="default: benchmarks/results/*.json")
    parser.add_argument("--trim", action="store_true", help="SOURCE [SOURCE ...] DESTINATION")
    asked = parser.parse_args(arguments)
    if asked.trim:
        if len(asked.files) < 2:
            parser.error("--trim: expected SOURCE [SOURCE ...] DESTINATION")
        *sources, destination = asked.files
        trimmed = trim([json.loads(source.read_text()) for source in sources])
        destination.write_text(json.dumps(trimmed, indent=1) + "\n")
        return
    results = load(asked.files or list(RESULTS.glob("*.json")))
    if not results:
        sys.exit(f"no measurements: {RESULTS.relative_to(ROOT)} holds no JSON")
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text(), results))
    (ROOT / CHART).write_text(speed_chart(results))
    (ROOT / STAGES).write_text(stage_chart(results))


if __name__ == "__main__":
    main()
