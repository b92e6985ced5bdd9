"""One case of `group_attention`: its inputs, who takes part, verification, the duel."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from attention_baselines import PREPARED, SDPA_TWO_SLICES, Prepare, sdpa_dense_mask, simple_kernel
from case_lines import SLOW, slow_baselines
from contender import Call
from gpu_timer import current_gpu
from roofline import Step, floor_notes, group_attention_work, steps
from torch import Tensor

from lpd_ext import LPDConfig, group_attention, group_sizes

Arguments: TypeAlias = tuple[Tensor, Tensor, Tensor, int, int]

LAYERS = 24  # each has caches of its own: a kernel never finds those of the last call in L2
MOST_BYTES = {"cpu": 2**28, "cuda": 2**33}  # of all layers; one is taken in any case
GPU_ROUNDS = 30
BATCHES = (1, 8, 64, 256)  # images, of two sequences each


@dataclass(frozen=True)
class Case:
    """What tells one call from another."""

    step: Step
    num_sequences: int
    num_heads: int
    head_dim: int
    max_kv_len: int
    dtype: torch.dtype
    device: torch.device

    def arguments(self, generator: torch.Generator) -> Arguments:
        """Return random ones."""

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=self.dtype, device=self.device)

        slots = (self.num_sequences, self.num_heads, self.max_kv_len, self.head_dim)
        qkv = random(self.num_sequences, self.step.rows, 3, self.num_heads, self.head_dim)
        return qkv, random(*slots), random(*slots), self.step.cache_len, self.step.context_len

    def layers(self) -> list[Arguments]:
        """Return arguments of several layers, as many as memory allows."""
        generator = torch.Generator(self.device).manual_seed(0)
        first = self.arguments(generator)
        bytes_of_one = sum(tensor.nbytes for tensor in first[:3])
        count = min(LAYERS, MOST_BYTES[self.device.type] // bytes_of_one)
        return [first] + [self.arguments(generator) for _ in range(count - 1)]


class Verifier:
    """Compares results with float64 ones, of the first arguments of a case."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        chunks = [range(i, i + 64) for i in range(0, len(arguments[0]), 64)]  # of sequences
        exact = [sdpa_dense_mask(*self._copies(chunk, torch.float64)) for chunk in chunks]
        self._exact = torch.cat(exact)
        self._allowed = 2 * self._error(sdpa_dense_mask) + 1e-5
        assert math.isfinite(self._allowed), "torch's attention is no measure here"

    def agrees(self, call: Call) -> bool:
        """Return whether the largest error is at most twice that of torch's attention."""
        return self._error(call) <= self._allowed

    def prepare(self, prepare: Prepare) -> Call:
        """Return what is called with arguments of this shape."""
        return prepare(*self._arguments)

    def _error(self, call: Call) -> float:
        copies = self._copies(range(len(self._exact)), self._arguments[0].dtype)
        # A NaN is an infinite error, and no comparison with it is false by accident.
        error = (_run_as_timed(call, copies) - self._exact).abs().nan_to_num(torch.inf, torch.inf)
        return error.max().item()

    def _copies(self, sequences: range, dtype: torch.dtype) -> Arguments:
        """Return the arguments of some sequences in memory of their own: caches are written."""
        qkv, k_cache, v_cache, *lengths = self._arguments
        part = slice(sequences.start, sequences.stop)
        return *(x[part].to(dtype, copy=True) for x in (qkv, k_cache, v_cache)), *lengths


def _run_as_timed(call: Call, arguments: Arguments) -> Tensor:
    """Return the result of a call; on a GPU that of a replayed graph."""
    if arguments[0].device.type == "cpu":
        return call(*arguments)
    results: list[Tensor] = []
    replay = current_gpu().capture(lambda: results.append(call(*arguments)))
    results[-1].zero_()
    replay()
    return results[-1]


def admit(
    prepared: Mapping[str, Prepare], verifier: Verifier
) -> tuple[dict[str, Call], dict[str, str]]:
    """Return those that work here and are right, and in a word why the others are left out.

    They are other people's: without them, the case is still worth its time.
    """
    calls, left_out = {}, {}
    for name, prepare in prepared.items():
        try:
            call = verifier.prepare(prepare)
            if verifier.agrees(call):
                calls[name] = call
            else:
                left_out[name] = "wrong result"
        except ImportError:
            left_out[name] = "not installed"
        except Exception as error:
            warnings.warn(f"{name}: {error!r}", stacklevel=2)  # not for the JSON: it may say a path
            left_out[name] = type(error).__name__
    return calls, left_out


def duel(
    versus: Callable[..., None],
    title: str,
    case: Case,
    baselines: Mapping[str, Call | Mapping[str, Call]],
    prepared: Mapping[str, Prepare],
    *,
    left_out: Mapping[str, str] = MappingProxyType({}),
    **options: Any,
) -> None:
    """Verify all and time them.

    `left_out` says why others do not take part, `options` are those of `versus`.
    """
    layers = case.layers()
    verifier = Verifier(layers[0])
    contenders: dict[str, Call | Mapping[str, Call]] = {"group_attention": group_attention}
    for name, calls in (contenders | dict(baselines)).items():
        for call in calls.values() if isinstance(calls, Mapping) else (calls,):
            assert verifier.agrees(call), f"{name}: {call.__name__} is wrong"
    admitted, refused = admit(prepared, verifier)
    absent = {**left_out, **refused}
    del verifier
    versus(
        "group_attention",
        title,
        group_attention,
        dict(baselines) | admitted,
        inputs=layers,
        device=case.device.type,
        **({"left_out": absent} if absent else {}),
        **options,
    )


SDPA: Mapping[str, Call | Mapping[str, Call]] = {
    "sdpa_dense_mask": sdpa_dense_mask,
    "sdpa_two_slices": SDPA_TWO_SLICES,
}


def gpu_numbers(num_steps: int) -> Sequence[int]:
    """Return the steps that are timed: first, middle, last."""
    return 0, num_steps // 2, num_steps - 1


def duel_on_gpu(
    versus: Callable[..., None],
    device: torch.device,
    model: str,
    num_steps: int,
    number: int,
    images: int,
) -> None:
    """Time step `number` of a published model with guidance, in bfloat16, against everything."""
    config = LPDConfig.named(model)
    step = list(steps(group_sizes(config.seq_len, num_steps)))[number]
    case = Case(
        step, 2 * images, config.num_heads, config.head_dim, config.seq_len + 1,
        torch.bfloat16, device,
    )  # fmt: skip
    # A block mask for two rows is nobody's use, and compiling takes longer than all the rest.
    flex = number > 0
    with_flex = flex and slow_baselines()
    prepared = {name: p for name, p in PREPARED.items() if with_flex or name != "flex_attention"}
    duel(
        versus,
        f"{model}, step {number + 1} of {num_steps}: {step.rows} rows x {step.keys} keys, "
        f"batch {images} x 2",
        case,
        {**SDPA, "simple_kernel": simple_kernel},
        prepared,
        left_out={"flex_attention": SLOW} if flex and not with_flex else {},
        rounds=GPU_ROUNDS,
        images=images,
        **floor(case),
    )


def floor(case: Case) -> dict[str, Any]:
    """Return the least microseconds of a call, as notes."""
    work = group_attention_work(case.step, case.num_sequences, case.num_heads, case.head_dim)
    return floor_notes(torch.cuda.get_device_name(), work.floor)
