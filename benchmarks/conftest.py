"""The fixture `versus`: ours against named baselines, in turns, in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import case_lines
import pytest
import torch
from contender import Call, Contender, fastest, summary
from gpu_timer import GraphContender, LoopContender
from machine import machine

CONTENDERS: Mapping[tuple[str, bool], type[Contender]] = {  # by device and whether a loop
    ("cpu", False): Contender,
    ("cpu", True): Contender,
    ("cuda", False): GraphContender,
    ("cuda", True): LoopContender,
}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: Any) -> torch.device:
    """Where a benchmark of an op runs; its CUDA cases are skipped without a GPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device(request.param)


@pytest.fixture
def versus(benchmark: Any) -> Callable[..., None]:
    """Time ours and every baseline A B A B; medians, IQRs and ratios go to the JSON."""

    def run(
        op: str,
        case: str,
        ours: Call,
        baselines: Mapping[str, Call | Mapping[str, Call]],
        *,
        inputs: Sequence[tuple[Any, ...]] = ((),),
        rounds: int | None = None,
        block_seconds: float = 2e-3,
        device: str = "cpu",
        loop: bool = False,
        **notes: Any,
    ) -> None:
        """Run one duel.

        Parameters
        ----------
        op, case : str
            What the report calls it.
        ours : Callable
            Timed by pytest-benchmark itself, first in every round.
        baselines : Mapping
            Name -> callable, or name -> {variant: callable}, of which the fastest stands for all.
        inputs : Sequence of tuple
            Arguments of the calls in turn; the same for all.
        rounds : int, optional
            Each runs one block of every contender. Default: as many as take a second, so that a
            short disturbance of the machine does not hit them all; at least 7.
        block_seconds : float
            A block is calls enough to last this long.
        device : str
            ``"cuda"``: times are those of CUDA graphs on the GPU (`gpu_timer`), the host's are
            pytest-benchmark's own column. On the CPU they are the same.
        loop : bool
            Whether the calls wait for the GPU themselves, so that their time is the host's.
        notes : Any
            Further facts for the JSON: errors, entropy.
        """
        if benchmark.disabled:  # everything runs, nothing is timed
            block_seconds, rounds = 0, 1
        contender = CONTENDERS[device, loop]
        own, rivals, variants = contender(ours, inputs), {}, {}
        round_seconds = own.calibrate(block_seconds)
        for name, calls in baselines.items():
            by_variant = calls if isinstance(calls, Mapping) else {"": calls}
            field = {variant: contender(call, inputs) for variant, call in by_variant.items()}
            block = {variant: rival.calibrate(block_seconds) for variant, rival in field.items()}
            variants[name] = fastest(field)
            rivals[name] = field[variants[name]]
            round_seconds += block[variants[name]]
        rounds = rounds or min(max(round(1 / round_seconds), 7), 200)

        def time_others() -> None:
            for other in (own, *rivals.values()) if own.on_gpu else rivals.values():
                other.time_block()

        benchmark.pedantic(own.next, teardown=time_others, rounds=rounds, iterations=own.calls)
        if benchmark.disabled:
            return
        seconds = {name: rival.seconds[:rounds] for name, rival in rivals.items()}
        result = summary(own.seconds[:rounds] or benchmark.stats.stats.data, seconds)
        if device != "cpu":
            result["device"] = device
        if own.on_gpu:
            result["ours"] |= own.cupy_us(rounds)
            for name, rival in rivals.items():
                result["baselines"][name] |= rival.cupy_us(rounds)
        for name, variant in variants.items():
            result["baselines"][name] |= {"variant": variant} if variant else {}
        benchmark.extra_info.update({"op": op, "case": case, "rounds": rounds} | result | notes)

    return run


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keep the cases that are asked for, in their order; what was timed before is skipped."""
    by_id = {item.nodeid: item for item in items}
    asked = case_lines.in_order(list(by_id), case_lines.asked_parts())
    config.hook.pytest_deselected(items=[by_id[i] for i in by_id.keys() - set(asked)])
    items[:] = [by_id[i] for i in asked]
    before = case_lines.timed_before()
    for item in items:
        if item.nodeid in before:
            item.add_marker(pytest.mark.skip(reason=case_lines.TIMED_BEFORE))


def pytest_runtest_makereport(item: Any, call: Any) -> None:
    """Write down a case as soon as it has been timed."""
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if call.when == "call" and call.excinfo is None and benchmark and benchmark.extra_info:
        facts = {
            "name": item.name,
            "datetime": datetime.now().isoformat(),
            "machine_info": machine(),
            "extra_info": benchmark.extra_info,
        }
        case_lines.write(item.nodeid, facts)


def pytest_configure(config: Any) -> None:
    """Name the marker of CUDA cases, wherever the benchmarks are run from."""
    config.addinivalue_line("markers", "cuda: needs a GPU")


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    """Replace what pytest-benchmark collects, a host name among it."""
    return machine()


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    """Keep what tells the code: the commit, and whether files differed from it."""
    kept = {key: commit_info.get(key) for key in ("id", "dirty")}
    commit_info.clear()
    commit_info.update(kept)
