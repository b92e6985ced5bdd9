"""A decode loop planned once and run many times: fixed shapes, fixed memory, checked in advance.

Whatever may differ between two calls is data in the plan's buffers; a step is a list of operators
bound to their arguments.

Source: Algorithm 1 of arXiv 2507.01957; the loop is that of `lpd_ext.decode`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor

from lpd_ext.checks import fail
from lpd_ext.cuda_graph import captured
from lpd_ext.cuda_precision import float32_sums
from lpd_ext.decode import Progress, guide, raise_for_invalid
from lpd_ext.decode_request import check_request
from lpd_ext.forward_pass import forward_pass, operators
from lpd_ext.models.lpd import LPD, UNCONDITIONAL
from lpd_ext.ops.group_embedding import prepare_group_embedding
from lpd_ext.ops.launch import Launch
from lpd_ext.ops.token_selection import prepare_token_selection_
from lpd_ext.packed_model import PackedModel, Products, check_model, checked_products
from lpd_ext.plan_buffers import PlanBuffers, plan_shape
from lpd_ext.verdicts import trusted

_OWNER = "DecodePlan"


def can_plan(model: LPD, dtype: torch.dtype | None = None) -> bool:
    """Return whether a plan, by default in the model's dtype, can serve it with trusted kernels."""
    try:
        dtype = check_model("can_plan", model, dtype)
    except (TypeError, ValueError, NotImplementedError):
        return False
    products = checked_products("can_plan", model, None)
    return all(trusted(op, model.device) for op in operators(products, dtype))


@dataclass(frozen=True)
class _Step:
    """One forward pass."""

    group: slice  # of the entries of `order`
    embed: Launch  # context from the tokens chosen so far
    embed_forced: Launch  # context from the tokens given
    transform: list[Launch]
    logits: Tensor
    select: Launch


class DecodePlan:
    """`lpd_ext.decode` for one model, batch size, list of group sizes and dtype, prepared once.

    On a GPU all its steps are one captured CUDA graph: not yet run on a GPU.

    Parameters
    ----------
    model : LPD
        In evaluation, on the CPU or a GPU, without hooks. Changes of its weights are noticed at the
        next call; see `lpd_ext.packed_model.PackedModel` for what cannot be.
    batch_size : int
        Images decoded together; a call with fewer is padded, and costs as much.
    group_sizes : Sequence[int]
        Positive; sums to seq_len, or to fewer positions: the others are known tokens in every call.
    guided : bool
        Whether there is classifier-free guidance: an unconditional half beside each image.
    dtype : torch.dtype, optional
        float32 or bfloat16, of matrix products, caches and attention; by default the model's.
        Norms, sums, the residual stream and logits are float32.
    packed : PackedModel, optional
        Weights to share with other plans of this model and dtype. By default packed here: the
        model's linear layers and embeddings take their memory once more.
    products : str, optional
        Whose matrix products: "own" (on the CPU) or "torch". By default those of `packed`, else own
        ones on the CPU and torch's on a GPU.

    Raises
    ------
    ValueError
        The model is in training or cannot be planned, or an argument's value does not fit; the
        message names it.
    TypeError
        An argument's type or the dtype does not fit.
    NotImplementedError
        The model is on a device without kernels, or there are none for its head_dim.
    MemoryError
        There is not enough memory; the message names the sizes. Nothing is kept.
    RuntimeError
        A kernel failed its self-check on this GPU; `lpd_ext.decode` goes around it.

    Warns
    -----
    RuntimeWarning
        The CUDA graph could not be captured (no memory, an error of a library), or a replay chose
        other tokens: launches run one by one.

    Notes
    -----
    A call allocates tensors before its loop and after it, never inside, but for what
    `return_logits` and `progress` ask for; kernels keep a small workspace a thread, which grows in
    the first calls. An image's bits depend neither on the other images nor on its place; with own
    matrix products they depend neither on the batch size nor on the number of threads. They do
    depend on the instruction set (`lpd_ext.cpu_variant`), and logits differ from those of
    `lpd_ext.decode` in the last places. Calls of plans that share weights wait for each other.

    One graph serves every request. A call that looks into the loop (`return_logits`, `progress`,
    `forced_tokens`) launches step by step instead, to the same bits.

    Examples
    --------
    >>> from lpd_ext import LPD, LPDConfig, group_order
    >>> config = LPDConfig(grid=(4, 4), dim=64, depth=1, num_heads=2, vocab_size=8, num_classes=3)
    >>> plan = DecodePlan(LPD(config).eval(), 2, [1, 3, 12], guided=False)
    >>> order = group_order(torch.tensor([7]), config.grid, [1, 3, 12])
    >>> plan(torch.tensor([2]), order, temperature=0).shape
    torch.Size([1, 16])
    """

    def __init__(
        self,
        model: LPD,
        batch_size: int,
        group_sizes: Sequence[int],
        *,
        guided: bool = True,
        dtype: torch.dtype | None = None,
        packed: PackedModel | None = None,
        products: Products | None = None,
    ) -> None:
        if products is None and isinstance(packed, PackedModel):
            products = packed.products
        self.shape = shape = plan_shape(model, batch_size, group_sizes, guided, dtype, products)
        for op in operators(shape.products, shape.dtype):
            if not trusted(op, model.device):
                raise RuntimeError(
                    f"{_OWNER}: {op} failed its self-check on {model.device} (`lpd-ext info` says "
                    "how); lpd_ext.decode goes around it"
                )
        if packed is None:
            packed = PackedModel(model, shape.dtype, shape.products)
        elif not isinstance(packed, PackedModel):
            fail(TypeError, _OWNER, "packed", "a PackedModel", type(packed).__name__)
        elif packed.model is not model or packed.dtype != shape.dtype:
            wanted = f"weights of this model in {shape.dtype}"
            fail(ValueError, _OWNER, "packed", wanted, f"others, in {packed.dtype}")
        elif packed.products != shape.products:
            wanted = f"weights for products {shape.products!r}"
            fail(ValueError, _OWNER, "packed", wanted, f"those for {packed.products!r}")
        self.model = model
        self.packed: PackedModel | None = packed
        # Plans that share weights take turns, on the host and on the GPU.
        self._lock, self._stream_order = packed.lock, packed.stream_order
        self._stream_order.wait_before_deleting(self)
        self._running = False
        with self._lock, self._stream_order.turn():
            buffers = PlanBuffers(shape, model.device)
            self._buffers: PlanBuffers | None = buffers
            steps = range(len(shape.group_sizes))
            self._steps = [self._plan_step(packed, buffers, step) for step in steps]
            self._graph = self._captured(buffers)

    @property
    def nbytes(self) -> dict[str, int]:
        """Memory by purpose; the packed weights may be shared with other plans."""
        if self.packed is None:
            return {}
        return {**self.shape.sizes, "packed weights": self.packed.nbytes}

    @property
    def released(self) -> bool:
        """Whether the memory was given back."""
        return self.packed is None

    def release(self) -> None:
        """Give the memory back, once no call runs; after that the plan decodes no more."""
        with self._lock:
            self._stream_order.wait()
            self._steps = []
            self._buffers = self.packed = self._graph = None

    def _plan_step(self, weights: PackedModel, buffers: PlanBuffers, step: int) -> _Step:
        shape = self.shape
        rows, logits = buffers.embedded(step), buffers.logits(step)

        def embed(tokens: Tensor) -> Launch:
            return prepare_group_embedding(
                tokens,
                buffers.order,
                weights.token_emb,
                weights.query_token,
                weights.pos_embed,
                weights.embedding_norm,
                shape.context(step),
                shape.cu[step + 1],
                out=rows[:, 1:] if step == 0 else rows,  # behind the class row
            )

        group = slice(shape.cu[step], shape.cu[step + 1])
        drawn = slice(group.start - shape.num_known, group.stop - shape.num_known)
        select = prepare_token_selection_(
            buffers.tokens,
            buffers.order[:, group],
            logits,
            buffers.uniform[:, drawn],
            cfg_scale=buffers.cfg_scale[:, group] if shape.guided else None,
            temperature=buffers.temperature,
            top_k=buffers.top_k,
            top_p=buffers.top_p,
        )
        return _Step(
            group,
            embed(buffers.tokens),
            embed(buffers.forced_tokens),
            forward_pass(weights, buffers, step),
            logits,
            select,
        )

    def _captured(self, buffers: PlanBuffers) -> torch.cuda.CUDAGraph | None:
        """Return a graph of all launches, if its replay chooses the tokens that they do."""
        what = f"{_OWNER}: {self.shape}"
        with float32_sums(self.model.device):
            graph = captured(self._launch_all, self.model.device, what)
            if graph is None:
                return None
            chosen = []
            for run in (self._launch_all, graph.replay):
                buffers.take_any()
                run()
                chosen.append(buffers.tokens.clone())
        if chosen[0].equal(chosen[1]):
            return graph
        warnings.warn(
            f"{what}: the CUDA graph chooses other tokens than its launches; they run one by one",
            RuntimeWarning,
            stacklevel=3,
        )
        return None

    def _launch_all(self) -> None:
        for step in self._steps:
            for launch in (step.embed, *step.transform, step.select):
                launch()

    @overload
    def __call__(
        self,
        class_labels: Tensor,
        order: Tensor,
        *,
        uniform: Tensor | None = ...,
        cfg_scale: float | Tensor = ...,
        cfg_schedule: str = ...,
        temperature: float | Tensor = ...,
        top_k: int | Tensor = ...,
        top_p: float | Tensor = ...,
        known_tokens: Tensor | None = ...,
        forced_tokens: Tensor | None = ...,
        return_logits: Literal[False] = ...,
        progress: Progress | None = ...,
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        class_labels: Tensor,
        order: Tensor,
        *,
        uniform: Tensor | None = ...,
        cfg_scale: float | Tensor = ...,
        cfg_schedule: str = ...,
        temperature: float | Tensor = ...,
        top_k: int | Tensor = ...,
        top_p: float | Tensor = ...,
        known_tokens: Tensor | None = ...,
        forced_tokens: Tensor | None = ...,
        return_logits: Literal[True],
        progress: Progress | None = ...,
    ) -> tuple[Tensor, Tensor]: ...

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Tensor,
        order: Tensor,
        *,
        uniform: Tensor | None = None,
        cfg_scale: float | Tensor = 1.0,
        cfg_schedule: str = "linear",
        temperature: float | Tensor = 1.0,
        top_k: int | Tensor = 0,
        top_p: float | Tensor = 1.0,
        known_tokens: Tensor | None = None,
        forced_tokens: Tensor | None = None,
        return_logits: bool = False,
        progress: Progress | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Decode up to `batch_size` images; arguments, results and errors as in `lpd_ext.decode`.

        Parameters
        ----------
        class_labels, order, uniform, cfg_scale, cfg_schedule, temperature, top_k, top_p
            As in `lpd_ext.decode`. A plan without guidance takes the number 1 as `cfg_scale`; one
            with guidance computes both halves for that, too.
        known_tokens, forced_tokens, return_logits, progress
            Likewise; as many known positions as the plan leaves out of its groups.

        Returns
        -------
        tokens : Tensor
            int64 ``[batch, seq_len]`` in raster order.
        logits : Tensor
            Only with `return_logits`: float32 ``[batch, num_generated, vocab_size]``.

        Raises
        ------
        ValueError, TypeError, InvalidLogitsError
            As in `lpd_ext.decode`; also for more images than planned, and a model that is in
            training now or has weights of another shape.
        RuntimeError
            The plan was released, or is called from its own `progress`.
        """
        with self._in_use() as (packed, buffers):
            packed.refresh()
            request = check_request(
                self.model, class_labels, self.shape.group_sizes, order, uniform, cfg_scale,
                cfg_schedule, temperature, top_k, top_p, known_tokens, forced_tokens,
                planned_known=self.shape.num_known,
            )  # fmt: skip
            count = len(class_labels)
            if count > self.shape.batch_size:
                wanted = f"at most the {self.shape.batch_size} images planned for"
                fail(ValueError, _OWNER, "class_labels", wanted, count)
            if request.cfg_scale is not None and not self.shape.guided:
                wanted = "the number 1 (planned without guidance)"
                fail(ValueError, _OWNER, "cfg_scale", wanted, cfg_scale)
            buffers.take("order", order)
            buffers.take("uniform", request.uniform)
            buffers.take("cfg_scale", 1.0 if request.cfg_scale is None else request.cfg_scale)
            buffers.take("temperature", temperature)
            buffers.take("top_k", top_k)
            buffers.take("top_p", top_p)
            buffers.take("tokens", -1 if known_tokens is None else known_tokens)
            buffers.take("forced_tokens", -1 if forced_tokens is None else forced_tokens)
            class_rows = [self.model.embed_class(class_labels)]
            if self.shape.guided:
                unconditional = torch.full_like(class_labels, UNCONDITIONAL)
                class_rows.append(self.model.embed_class(unconditional))
            buffers.take_class_rows(class_rows)

            tokens = buffers.tokens[:count]
            steps, all_logits = self._steps, []
            observed = return_logits or progress is not None or forced_tokens is not None
            if self._graph is not None and not observed:
                self._graph.replay()
                steps = []
            for done, step in enumerate(steps, start=1):
                (step.embed if forced_tokens is None or done == 1 else step.embed_forced)()
                for launch in step.transform:
                    launch()
                step.select()
                if return_logits:
                    halves = step.logits.unflatten(0, (-1, self.shape.batch_size))[:, :count]
                    both = halves.flatten(0, 1).to(torch.float32, copy=True)
                    scale = buffers.cfg_scale[:count, step.group]
                    all_logits.append(guide(both, scale) if self.shape.guided else both)
                if progress is not None:
                    progress(done, len(steps), tokens.clone())

            tokens = tokens.clone()
        raise_for_invalid(tokens, order, self.shape.cu)
        return (tokens, torch.cat(all_logits, dim=1)) if return_logits else tokens

    @contextmanager
    def _in_use(self) -> Iterator[tuple[PackedModel, PlanBuffers]]:
        """Keep other threads waiting, and refuse what would spoil the buffers of a running call."""
        with self._lock:
            if self.packed is None or self._buffers is None:
                raise RuntimeError(f"{_OWNER}: the plan was released; make a new one")
            if self._running:
                raise RuntimeError(f"{_OWNER}: called from its own `progress`; make another plan")
            self._running = True
            try:
                with self._stream_order.turn(), float32_sums(self.model.device):
                    yield self.packed, self._buffers
            finally:
                self._running = False
