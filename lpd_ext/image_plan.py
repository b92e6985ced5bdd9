"""The tokenizer's decoder planned once and run many times: fixed shapes, a copy of the weights.

Source: the decoder of `lpd_ext.VQModel`, in channels-last memory as convolutions like it best.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from threading import RLock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lpd_ext.checks import (
    check_device,
    check_device_type,
    check_int,
    check_range,
    check_shape,
    check_tensor,
    fail,
    naming_memory,
)
from lpd_ext.cuda_graph import captured
from lpd_ext.cuda_precision import float32_convolutions, float32_sums
from lpd_ext.models.config import VQConfig
from lpd_ext.models.vq import NormSiLU, VQModel, norm_silu
from lpd_ext.ops import group_norm_silu
from lpd_ext.stream_order import StreamOrder
from lpd_ext.verdicts import trusted
from lpd_ext.watched_weights import Snapshot, check_watchable

_OWNER = "ImagePlan"
_DTYPES = (torch.float32, torch.bfloat16)
_WANTED = "the layers of a VQModel of its config, without hooks"


class ImagePlan:
    """`VQModel.decode` for one tokenizer, batch size, grid and dtype, prepared once.

    On a GPU it is one captured CUDA graph: not yet run on a GPU.

    Parameters
    ----------
    vq : VQModel
        In evaluation, on the CPU or a GPU, without hooks. Kept; changes of its weights are noticed
        at the next call as far as `lpd_ext.watched_weights.Snapshot` sees them.
    batch_size : int
        Images decoded together; a call with fewer costs as much.
    grid : tuple[int, int]
        Height and width in tokens.
    dtype : torch.dtype, optional
        float32 or bfloat16, of weights and activations; by default the tokenizer's.

    Raises
    ------
    ValueError
        The tokenizer is in training, computes otherwise than a VQModel (hooks, other layers), or
        its weights were made under ``torch.inference_mode()`` and so cannot be watched; a size does
        not fit.
    TypeError
        An argument's type or the dtype does not fit.
    NotImplementedError
        The tokenizer is on a device of another kind.
    MemoryError
        There is not enough memory; the message names the sizes. Nothing is kept.

    Warns
    -----
    RuntimeWarning
        The CUDA graph could not be captured (no memory, an error of a library): launches run one by
        one. Or a kernel failed its self-check there.

    Notes
    -----
    All images stay in channels-last memory, GroupNorm and SiLU are `lpd_ext.ops.group_norm_silu`;
    where a GPU failed its self-check of that, torch's own functions.

    The codebook is normalised once, not in every call. Nothing waits for the GPU but the checks of
    a call, before its launches. What passes between layers, but for what was normalised, is
    allocated in every call on the CPU; on a GPU it lies in the graph's own memory, which `nbytes`
    does not count.

    An image's bits depend neither on the others, nor on its place, nor on their number: all calls
    compute a whole batch. Those of another batch size may differ in the last places, as may those
    of `VQModel.decode`. ``torch.autocast`` does not reach into a plan, nor do convolutions in TF32,
    which torch allows cuDNN by default. Calls from several threads or on several streams run one
    after the other.

    Examples
    --------
    >>> from lpd_ext import VQConfig, VQModel
    >>> vq = VQModel(VQConfig(channels=32, channel_mult=(1, 1), codebook_size=8)).eval()
    >>> plan = ImagePlan(vq, 2, (4, 4))
    >>> plan(torch.zeros(1, 16, dtype=torch.int64)).shape
    torch.Size([1, 3, 8, 8])
    """

    def __init__(
        self,
        vq: VQModel,
        batch_size: int,
        grid: tuple[int, int],
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(vq, VQModel):
            fail(TypeError, _OWNER, "vq", "a VQModel", type(vq).__name__)
        device = vq.post_quant_conv.weight.device
        check_device_type(_OWNER, "vq", vq.post_quant_conv.weight, ("cpu", "cuda"))
        self.dtype = vq.post_quant_conv.weight.dtype if dtype is None else dtype
        if self.dtype not in _DTYPES:
            fail(TypeError, _OWNER, "dtype", "torch.float32 or torch.bfloat16", self.dtype)
        check_int(_OWNER, "batch_size", batch_size, 1)
        if not isinstance(grid, (tuple, list)) or len(grid) != 2:
            fail(TypeError, _OWNER, "grid", "(height, width)", repr(grid))
        for size in grid:
            check_int(_OWNER, "grid", size, 1)
        self.vq, self.batch_size, self.grid = vq, batch_size, (grid[0], grid[1])
        with torch.device("meta"):
            own = VQModel(vq.config).eval().requires_grad_(False)
        for part in ("encoder", "quant_conv"):
            delattr(own, part)
        own.to(self.dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._plain = _layers(own)
        weights = self._weights()
        _check_settings(vq, self._plain)
        height, width = (size * vq.config.stride for size in self.grid)
        codes, images = (batch_size, math.prod(grid)), (vq.config.in_channels, height, width)
        ours = trusted("group_norm_silu", device)
        normalised = _most_normalised(vq.config, self.grid) if ours else 0
        self._sizes = {
            "codes": math.prod(codes) * 8,
            "images": batch_size * math.prod(images) * 4,
            "normalised": batch_size * normalised * self.dtype.itemsize,
            "weights": sum(parameter.nbytes for parameter in own.parameters()),
        }
        self._device, self._lock = device, RLock()
        self._stream_order = StreamOrder(device)
        self._stream_order.wait_before_deleting(self)
        # Under inference_mode the memory could be written nowhere else.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            naming_memory(_OWNER, str(self)),
            self._stream_order.turn(),
        ):
            if sum(self._sizes.values()) > sys.maxsize:  # torch would speak of an overflow
                raise MemoryError
            self._codes = torch.zeros(codes, dtype=torch.int64, device=device)
            self._images = torch.empty(batch_size, *images, device=device)
            self._normalise: NormSiLU = norm_silu
            if ours:
                self._normalise = _NormSiLU(self._sizes["normalised"], self.dtype, device)
            self._own: VQModel | None = own.to_empty(device=device)
            self._seen = Snapshot(weights)
            _copy_weights(vq, own)
        with self._stream_order.turn():
            self._graph = captured(self._launch, device, f"{_OWNER}: {self}")

    def __str__(self) -> str:
        height, width = self.grid
        sizes = ", ".join(f"{what} {size / 2**20:.1f} MiB" for what, size in self._sizes.items())
        return f"batch_size {self.batch_size}, {height}x{width} tokens, {self.dtype}: {sizes}"

    @property
    def nbytes(self) -> dict[str, int]:
        """Memory by purpose, without that of activations."""
        return {} if self._own is None else dict(self._sizes)

    @property
    def released(self) -> bool:
        """Whether the memory was given back."""
        return self._own is None

    def release(self) -> None:
        """Give the memory back, once no call runs; after that the plan decodes no more."""
        with self._lock:
            self._stream_order.wait()
            self._graph = self._own = None
            self._normalise = norm_silu
            self._plain = {}
            self._codes = self._images = torch.empty(0)

    @torch.no_grad()
    def __call__(self, codes: Tensor) -> Tensor:
        """Return the images of up to `batch_size` token grids.

        Parameters
        ----------
        codes : Tensor
            int64 ``[count, seq_len]`` in raster order, on the tokenizer's device, ids in
            ``[0, codebook_size)``.

        Returns
        -------
        Tensor
            float32 ``[count, in_channels, grid[0] * stride, grid[1] * stride]``, about [-1, 1],
            unclamped.

        Raises
        ------
        ValueError
            Device, shape, number or ids do not fit; or the tokenizer is in training now, or has
            weights of another shape or on another device.
        TypeError
            `codes` is no int64 tensor.
        RuntimeError
            The plan was released.
        MemoryError
            There is not enough memory for activations where no graph has kept some.
        """
        with self._lock:
            if self._own is None:
                raise RuntimeError(f"{_OWNER}: the plan was released; make a new one")
            check_tensor(_OWNER, "codes", codes, (torch.int64,), "[count, seq_len]", 2)
            check_device(_OWNER, "codes", codes, self._device)
            count = len(codes)
            if count > self.batch_size:
                wanted = f"at most the {self.batch_size} images planned for"
                fail(ValueError, _OWNER, "codes", wanted, count)
            wanted_shape = (count, self.grid[0] * self.grid[1])
            check_shape(_OWNER, "codes", codes, wanted_shape, "[count, grid[0] * grid[1]]")
            check_range(_OWNER, "codes", codes, 0, self.vq.config.codebook_size)
            with self._stream_order.turn():
                self._refresh(self._own)
                self._codes[:count].copy_(codes)  # the rest holds what it did: ids in range
                if self._graph is None:
                    with naming_memory(_OWNER, str(self)):
                        self._launch()
                else:
                    self._graph.replay()
                return self._images[:count].clone()

    def _launch(self) -> None:
        assert self._own is not None
        with (
            torch.autocast(self._device.type, enabled=False),
            float32_convolutions(self._device),
            float32_sums(self._device),
        ):
            latents = self._own.quantize.embedding(self._codes)
            self._images.copy_(self._own.image_of(latents, self.grid, self._normalise))

    def _weights(self) -> dict[str, Tensor]:
        """Return what decoding reads of a tokenizer that is in evaluation and a plain one."""
        if self.vq.training:
            fail(ValueError, _OWNER, "vq", "a model in evaluation (vq.eval())", "one in training")
        layers = _layers(self.vq)
        for name, module in layers.items():
            hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
            if hooked or type(module) is not type(self._plain.get(name)):
                got = f"{type(module).__name__}{' with a hook' if hooked else ''} at {name!r}"
                fail(ValueError, _OWNER, "vq", _WANTED, got)
        weights = _parameters(layers)
        check_watchable(_OWNER, "vq", weights)
        return weights

    def _refresh(self, own: VQModel) -> None:
        """Copy the tokenizer's weights again, into the same memory, if they have changed."""
        weights = self._weights()
        if self._seen.holds(weights):
            return
        check_device(_OWNER, "vq", self.vq.post_quant_conv.weight, self._device)
        _check_settings(self.vq, self._plain)
        # Taken before the copy: a change meanwhile, or an error, makes the next call begin again.
        seen = Snapshot(weights)
        self._seen.forget()
        _copy_weights(self.vq, own)
        self._seen = seen


class _NormSiLU:
    """`group_norm_silu`, in place of what nobody reads afterwards, else into memory of its own.

    On the CPU memory that large would come from the system, page by page, each time.
    """

    def __init__(self, num_bytes: int, dtype: torch.dtype, device: torch.device) -> None:
        self.out = torch.empty(num_bytes // dtype.itemsize, dtype=dtype, device=device)

    def __call__(self, norm: nn.GroupNorm, x: Tensor, *, silu: bool, reuse: bool) -> Tensor:
        # Changes nothing behind a convolution that knows channels-last memory.
        x = x.contiguous(memory_format=torch.channels_last)
        out = x if reuse else self.out.as_strided(x.shape, x.stride())
        weights = norm.weight, norm.bias
        return group_norm_silu(x, norm.num_groups, weights, norm_eps=norm.eps, silu=silu, out=out)


def _most_normalised(config: VQConfig, grid: tuple[int, int]) -> int:
    """Return the elements of the largest image that enters a residual block."""
    mult, pixels, most = config.channel_mult[-1], math.prod(grid), 0
    for following in reversed(config.channel_mult):
        most = max(most, config.channels * max(mult, following) * pixels)
        mult, pixels = following, 4 * pixels
    return most


def _layers(vq: VQModel) -> dict[str, nn.Module]:
    """Return the modules that decode."""
    layers: dict[str, nn.Module] = {"": vq}
    for part in ("quantize", "post_quant_conv", "decoder"):
        layers |= dict(vq.get_submodule(part).named_modules(prefix=part))
    return layers


def _parameters(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the weights of these modules, a quarter of the time `named_parameters` takes."""
    return {
        f"{name}.{kind}": parameter
        for name, module in layers.items()
        for kind, parameter in module._parameters.items()
        if parameter is not None
    }


def _check_settings(vq: VQModel, plain: Mapping[str, nn.Module]) -> None:
    """Demand the strides, groups, eps and shapes of a plain tokenizer."""
    layers = _layers(vq)
    for name, module in plain.items():
        got = layers[name].extra_repr() if name in layers else "none"
        if got != module.extra_repr():
            fail(ValueError, _OWNER, "vq", f"({module.extra_repr()}) at {name!r}", f"({got})")
    weights = _parameters(layers)
    for name, weight in _parameters(plain).items():
        check_shape(_OWNER, "vq", weights[name], weight.shape, f"shape of {name}")


def _copy_weights(vq: VQModel, own: VQModel) -> None:
    """Copy what decoding reads, the codebook's rows brought to length 1."""
    theirs = _parameters(_layers(vq))
    for name, parameter in _parameters(_layers(own)).items():
        parameter.copy_(theirs[name])
    codebook = vq.quantize.embedding.weight
    own.quantize.embedding.weight.copy_(F.normalize(codebook.float(), dim=-1))
