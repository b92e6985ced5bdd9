"""The published LPD module made fast: its `sample_tokens` goes by plans.

Source: ``LPD.sample_tokens`` of mit-han-lab/lpd@f447b83, whose arguments and result it keeps.
"""

from __future__ import annotations

import ast
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from lpd_ext.checks import check_int, check_shape, checked_group_sizes, fail
from lpd_ext.models.lpd import LPD, UNCONDITIONAL
from lpd_ext.models.published import published_config, with_weights_of
from lpd_ext.models.structure import Structure
from lpd_ext.ops.group_order import group_order
from lpd_ext.plan import can_plan
from lpd_ext.plan_cache import DEFAULT_MAX_BYTES, PlanCache

_OP = "accelerate"
_CALL = "sample_tokens"
_HIDDEN = -1e4  # what is added to a score to hide its key: -inf, or a large number
_MAX_SEED = 2**63 - 1
_LONGEST = 2**20  # group sizes: more would be no image


def accelerate(model: nn.Module, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Accelerated:
    """Make `sample_tokens` of an instance of the published LPD module fast, in place.

    Parameters
    ----------
    model : nn.Module
        The published ``LPD``, or one with its attributes and weights; on the CPU or a GPU.
    max_bytes : int
        Memory that plans and their copies of the weights may take between calls; see
        `lpd_ext.PlanCache`. By default 4 GiB.

    Returns
    -------
    Accelerated
        With `restore`, `release` and `nbytes`; as a context manager it restores at the end. For a
        model that is accelerated already, that same one.

    Raises
    ------
    TypeError
        `model` is no module.
    ValueError
        It is no published LPD; the message lists what is missing or different.

    Notes
    -----
    Everything else of the model is left alone, training too: weights are shared, not copied, but
    for those packed for the plans in the dtype of the decode. Changes of weights are noticed at the
    next call. Not yet run on a GPU, where it uses kernels that passed their self-check.

    Examples
    --------
    A script of the published code needs one line more::

        model = lpd_l().cuda().eval()
        lpd_ext.accelerate(model)
        tokens = model.sample_tokens(64, 4.8, labels=labels, group_sizes=sizes, orders=orders)
    """
    present = getattr(getattr(model, _CALL, None), "__self__", None)
    if isinstance(present, Accelerated):
        return present
    return Accelerated(model, max_bytes)


@dataclass(frozen=True)
class _Link:
    """A published model as it was at one moment."""

    structure: Structure
    shared: LPD
    plans: PlanCache


class Accelerated:
    """A published LPD whose `sample_tokens` goes by plans; see `accelerate`.

    Copies, pickled ones too, belong to the copy of the model that they came with and begin empty.
    """

    def __init__(self, model: nn.Module, max_bytes: int) -> None:
        check_int(_OP, "max_bytes", max_bytes, 0)
        self.model = model
        self._max_bytes = max_bytes
        self._original = model.__dict__.get(_CALL) if isinstance(model, nn.Module) else None
        self._link: _Link | None = self._linked()
        self._mask_checked: tuple[Any, ...] = ()
        # An attribute of the instance hides the method of the class.
        object.__setattr__(model, _CALL, self.sample_tokens)

    def sample_tokens(
        self,
        bsz: int,
        cfg: float = 1.0,
        cfg_schedule: str = "linear",
        labels: Tensor | None = None,
        temperature: float = 1.0,
        attn_mask: Tensor | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        group_sizes: Sequence[int] | Tensor | str | None = None,
        orders: Tensor | None = None,
    ) -> Tensor:
        """Generate the tokens of a batch, with the arguments of the published method.

        Parameters
        ----------
        bsz : int
            Images.
        cfg : float
            Scale of classifier-free guidance; 1 runs no unconditional half.
        cfg_schedule : str
            "linear" or "constant", see `lpd_ext.decode`.
        labels : Tensor, optional
            Integers ``[bsz]``; none generates without a class.
        temperature : float
            0 and less take the most likely token.
        attn_mask : Tensor, optional
            ``[seq_len + 1, seq_len + 1]`` or larger, bool (True = may attend) or added to scores (0
            or -inf). Not needed, but compared with `group_sizes`.
        top_k, top_p : int, float
            Filters; 0 and 1 are off.
        group_sizes : Sequence[int], Tensor or str
            Positions decoded together; a string holds a Python list such as ``"[1] * 256"``.
        orders : Tensor, optional
            Integers ``[bsz, seq_len]``, a permutation of raster positions an image; by default
            locality-aware ones.

        Returns
        -------
        Tensor
            int64 ``[bsz, seq_len]`` in raster order, on the model's device.

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; the message names it.
        InvalidLogitsError
            The model gave logits that are no numbers.

        Warns
        -----
        RuntimeWarning
            A plan would not do what the published method does (dropout of a model in training,
            hooks, float16), or kernels failed their self-check on this device: that method runs.

        Notes
        -----
        The dtype is that of autocast, where it is on, else the model's. Random numbers come from
        torch's generator of the model's device, so `torch.manual_seed` makes a call repeatable; the
        published method uses them otherwise and draws other tokens. Equal logits are kept or
        dropped together by the filters.
        """
        link = self._current()
        if reason := self._reason_against(link):
            warnings.warn(f"{_OP}: the published {_CALL} runs: {reason}", RuntimeWarning, 2)
            return self._run_original(
                bsz, cfg, cfg_schedule, labels, temperature, attn_mask, top_k, top_p, group_sizes,
                orders,
            )  # fmt: skip
        config, device = link.shared.config, link.shared.device
        check_int(_CALL, "bsz", bsz, 1)
        sizes = checked_group_sizes(_CALL, as_sizes(group_sizes), config.seq_len)
        if attn_mask is not None:
            self._check_mask(attn_mask, sizes)
        if labels is None:
            labels = torch.full((bsz,), UNCONDITIONAL, device=device)
        labels = _integers("labels", labels, (bsz,), "[bsz]", device)
        if orders is None:
            seeds = torch.randint(_MAX_SEED, (bsz,))  # drawn on the CPU, wherever orders are
            orders = group_order(seeds, config.grid, sizes)
        orders = _integers("orders", orders, (bsz, config.seq_len), "[bsz, seq_len]", device)
        uniform = torch.rand(bsz, config.seq_len, dtype=torch.float64, device=device)
        dtype = _dtype_of(link.shared)
        with torch.autocast(device.type, enabled=False):  # a plan knows its dtypes itself
            plan = link.plans.get(bsz, sizes, cfg != 1, dtype)
            return plan(
                labels,
                orders,
                uniform=uniform,
                cfg_scale=cfg,
                cfg_schedule=cfg_schedule,
                temperature=max(temperature, 0),
                top_k=max(top_k, 0),
                top_p=min(max(top_p, 0.0), 1.0),
            )

    @property
    def nbytes(self) -> int:
        """Memory of the plans kept for the next call and of their copies of the weights."""
        return 0 if self._link is None else self._link.plans.nbytes

    def release(self) -> None:
        """Give that memory back; the next call plans anew."""
        if self._link is not None:
            self._link.plans.release()

    def restore(self) -> None:
        """Give the model its own `sample_tokens` back, and the memory."""
        self.release()
        if getattr(self.model.__dict__.get(_CALL), "__self__", None) is not self:
            return
        if self._original is None:
            object.__delattr__(self.model, _CALL)
        else:
            object.__setattr__(self.model, _CALL, self._original)

    def __enter__(self) -> Accelerated:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.restore()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_link": None, "_mask_checked": ()}

    def _linked(self) -> _Link:
        """Take the model as it now is."""
        shared = with_weights_of(self.model, published_config(_OP, self.model))
        return _Link(Structure(self.model), shared, PlanCache(shared, self._max_bytes))

    def _current(self) -> _Link:
        if self._link is None or not self._link.structure.holds():
            self._link = self._linked()
        return self._link

    def _reason_against(self, link: _Link) -> str:
        """Return why a plan would not do what the published method does, nothing where it would."""
        dtype = _dtype_of(link.shared)
        if self.model.training:
            return "the model is in training (model.eval())"
        if link.structure.has_hooks():
            return "a layer has a hook or a `forward` of its own"
        if dtype not in (torch.float32, torch.bfloat16):
            return f"there are plans in float32 and bfloat16, not in {dtype}"
        if not can_plan(link.shared, dtype):
            return f"no kernels for it that passed their self-check on {link.shared.device}"
        return ""

    def _run_original(self, *arguments: Any) -> Tensor:
        if self._original is not None:
            return self._original(*arguments)  # type: ignore[no-any-return]
        return getattr(type(self.model), _CALL)(self.model, *arguments)  # type: ignore[no-any-return]

    def _check_mask(self, attn_mask: Tensor, sizes: Sequence[int]) -> None:
        """Demand the kernels' visibility rule; a mask seen before is not read again."""
        if not isinstance(attn_mask, Tensor):
            fail(TypeError, _CALL, "attn_mask", "a tensor", type(attn_mask).__name__)
        seen, version, before = self._mask_checked or (lambda: None, 0, ())
        if seen() is attn_mask and (version, before) == (attn_mask._version, tuple(sizes)):
            return
        rows = sum(sizes) + 1
        if attn_mask.ndim != 2 or min(attn_mask.shape) < rows:
            names = f"[seq_len + 1, seq_len + 1] = {[rows, rows]}"
            fail(ValueError, _CALL, "attn_mask", names, f"shape {list(attn_mask.shape)}")
        step = torch.arange(len(sizes) + 1).repeat_interleave(torch.tensor([1, *sizes]))
        sees = (step[:, None] >= step).to(attn_mask.device)
        mask = attn_mask[:rows, :rows]
        if mask.dtype == torch.bool:
            wrong = mask != sees
        else:
            wrong = torch.where(sees, mask != 0, ~(mask <= _HIDDEN))
        if bool(wrong.any()):
            row, column = wrong.nonzero()[0].tolist()
            wanted = "that row sees the keys of its group and of those before it, and no others"
            got = f"{attn_mask[row, column].item()} at [{row}, {column}] for groups {list(sizes)}"
            fail(ValueError, _CALL, "attn_mask", wanted, got)
        self._mask_checked = (weakref.ref(attn_mask), attn_mask._version, tuple(sizes))


def _dtype_of(model: LPD) -> torch.dtype:
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype


def _integers(
    name: str, value: Tensor, shape: tuple[int, ...], names: str, device: torch.device
) -> Tensor:
    if not isinstance(value, Tensor):
        fail(TypeError, _CALL, name, f"a tensor {names}", type(value).__name__)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        fail(TypeError, _CALL, name, "integers", value.dtype)
    check_shape(_CALL, name, value, shape, names)
    return value.to(device, torch.int64)


def as_sizes(group_sizes: Sequence[int] | Tensor | str | None) -> Sequence[int]:
    """Return group sizes in the forms the published code takes; a string is read, not executed.

    Parameters
    ----------
    group_sizes : Sequence[int], Tensor or str
        A string holds lists of ints, joined by ``+`` and repeated by ``*``.

    Returns
    -------
    Sequence[int]
        Not checked any further.

    Raises
    ------
    ValueError
        A string says something else.

    Examples
    --------
    >>> as_sizes("[1, 3] + [2] * 3")
    [1, 3, 2, 2, 2]
    """
    if isinstance(group_sizes, Tensor):
        return group_sizes.tolist()
    if not isinstance(group_sizes, str):
        return group_sizes  # type: ignore[return-value]  # checked by the caller
    try:
        sizes = _evaluated(ast.parse(group_sizes.strip(), mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        sizes = None
    if not isinstance(sizes, list):
        wanted = 'a list of ints such as "[1, 3, 12]" or "[1] * 256"'
        fail(ValueError, _CALL, "group_sizes", wanted, repr(group_sizes))
    return sizes


def _evaluated(node: ast.expr) -> Any:
    """Return an int or a list of ints; anything else is a ValueError."""
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_evaluated(element) for element in elements]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            first, second = _evaluated(left), _evaluated(right)
            if isinstance(first, list) and isinstance(second, list):
                return first + second
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            first, second = _evaluated(left), _evaluated(right)
            one_list = isinstance(first, list) != isinstance(second, list)
            times, values = (second, first) if isinstance(first, list) else (first, second)
            if one_list and times >= 0 and times * len(values) <= _LONGEST:
                return values * times
    raise ValueError
