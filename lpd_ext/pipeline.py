"""From class labels to images: transformer, tokenizer and recommended settings in one object."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lpd_ext import philox
from lpd_ext.checks import check_int, fail
from lpd_ext.class_names import ClassLabel, ClassNames
from lpd_ext.cuda_precision import float32_convolutions
from lpd_ext.decode import InvalidLogitsError, Progress, decode
from lpd_ext.files import write_atomically
from lpd_ext.kernels import OPS, Kernels, kernels_for
from lpd_ext.models.checkpoint import save_weights
from lpd_ext.models.config import LPDConfig, VQConfig
from lpd_ext.models.lpd import LPD
from lpd_ext.models.vq import VQModel
from lpd_ext.ops.group_order import MOST_CELLS
from lpd_ext.orders import ORDERS, checked_orders
from lpd_ext.plan import DecodePlan, can_plan
from lpd_ext.plan_cache import PlanCache
from lpd_ext.pretrained import DESCRIPTION_FILE, LPD_FILE, VQ_FILE, description, load
from lpd_ext.render import to_images
from lpd_ext.schedule import group_sizes
from lpd_ext.settings import (
    GIVEN_ORDER,
    PER_IMAGE,
    GenerationSettings,
    PerImage,
    as_list,
    as_numbers,
    image_seeds,
    unwrapped,
)
from lpd_ext.verdicts import trusted

_DEFAULT_BATCH_SIZE = 64
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_OWNER = "LPDPipeline"


@dataclass(frozen=True)
class LPDOutput:
    """What a pipeline call returns; entry i of every field belongs to image i."""

    images: list[Image.Image]
    tokens: Tensor  # int64 [n, seq_len] in raster order, on the CPU
    steps: Tensor  # int64 [n, seq_len], the step (0-based) that decoded each raster position
    class_labels: list[int]
    seeds: list[int]
    settings: GenerationSettings
    batch_size: int


def _device_of_orders(device: torch.device, num_cells: int) -> torch.device:
    """Return the model's device, or the CPU where orders cannot be drawn there."""
    fits = num_cells <= MOST_CELLS.get(device.type, num_cells)
    return device if fits and trusted("group_order", device) else torch.device("cpu")


class LPDPipeline:
    """Generates images of given classes.

    Parameters
    ----------
    model : LPD
        The transformer.
    vq : VQModel
        The tokenizer its tokens belong to.
    class_names : Sequence[str], optional
        One a class, all different (upper and lower case alike).
    defaults : GenerationSettings, optional
        What a call uses where it says nothing else.

    Raises
    ------
    ValueError
        Transformer, tokenizer, names and defaults do not fit together.

    Notes
    -----
    All randomness of an image comes from its seed: one order and one row of uniform numbers. Image
    i of a call is the same, bit for bit, whatever the other images are and wherever it stands, for
    the same build, device, dtype, instruction set, number of threads and batch size. Give
    `batch_size` to keep it fixed whatever the count: matrix products and convolutions of the
    vendor's library may round otherwise in batches of another size.

    In float32 and bfloat16, with the operators, calls decode by plans (`lpd_ext.DecodePlan`); on
    the CPU tokens are then the same in batches of any size and on any number of threads. Plans are
    kept for the next call, up to 4 GiB (`lpd_ext.PlanCache`), see `release`; calls from several
    threads decode one after the other. All else goes through `lpd_ext.decode`: models with hooks or
    layers of their own, and a device whose kernels have not passed their self-check. Orders are
    drawn where the model is, or else on the CPU and moved. Not yet run on a GPU.

    Examples
    --------
    >>> from lpd_ext import LPD, LPDConfig, VQModel
    >>> from lpd_ext.models.config import VQConfig
    >>> config = LPDConfig(grid=(4, 4), dim=64, depth=1, num_heads=2, vocab_size=8, num_classes=3)
    >>> vq = VQModel(VQConfig(channels=32, channel_mult=(1, 1), codebook_size=8))
    >>> output = LPDPipeline(LPD(config), vq)(class_labels=[2, 0], num_steps=4, seed=7)
    >>> output.images[0].size, output.seeds
    ((8, 8), [7, 8])
    """

    def __init__(
        self,
        model: LPD,
        vq: VQModel,
        class_names: Sequence[str] | None = None,
        defaults: GenerationSettings | None = None,
    ) -> None:
        vocab_size = model.config.vocab_size
        if vq.config.codebook_size < vocab_size or vq.config.in_channels not in (1, 3):
            wanted = f"1 or 3 channels and a codebook for the model's {vocab_size} tokens"
            fail(ValueError, _OWNER, "vq", wanted, vq.config)
        self.model = model.eval()
        self.vq = vq.eval()
        self._plans = PlanCache(self.model)
        self.classes = ClassNames(model.config.num_classes, class_names)
        self.defaults = defaults or GenerationSettings(
            num_steps=min(GenerationSettings.num_steps, model.config.seq_len)
        )
        self._check_steps(self.defaults)
        if any(isinstance(getattr(self.defaults, name), tuple) for name in PER_IMAGE):
            fail(ValueError, _OWNER, "defaults", "numbers", self.defaults)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        vq: str | Path | None = None,
        config: LPDConfig | None = None,
        vq_config: VQConfig | None = None,
    ) -> LPDPipeline:
        """Load a model that comes with this package, from a folder, from files or from the hub.

        Parameters
        ----------
        name_or_path : str or Path
            ``"fashion-mnist"``; a folder as `save_pretrained` writes it; the ``.pth``, ``.pt`` or
            ``.safetensors`` file of a transformer; or its name on the Hugging Face hub, such as
            ``"mit-han-lab/lpd_l_256"`` (extra ``hub``; only then is there a network access, and
            none with ``HF_HUB_OFFLINE=1``).
        vq : str or Path, optional
            File or name of the tokenizer. For a name on the hub it is by default the published one,
            ``"FoundationVision/LlamaGen/vq_ds16_c2i.pt"``.
        config : LPDConfig, optional
            Where the transformer's weights do not say it, or for another grid:
            ``LPDConfig.named("lpd-l-512")`` makes a 512 px model of a 256 px checkpoint, whose
            position embedding is resized.
        vq_config : VQConfig, optional
            Where the tokenizer's weights do not say it.

        Returns
        -------
        LPDPipeline
            float32, on the CPU. Transformers of a published shape have the settings they were
            published with as defaults (``scripts/eval`` of mit-han-lab/lpd@f447b83): 20 steps, or
            48 for 512 px, and their own guidance; their classes, ImageNet's, have numbers only.

        Raises
        ------
        FileNotFoundError
            There is no such model, here or on the hub, or the tokenizer is not said.
        ValueError
            A file is damaged or the files do not fit together. Nothing in a file is executed.
        ImportError
            A name on the hub is given, and huggingface_hub is not installed.
        """
        return load(cls, name_or_path, vq, config, vq_config)

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write the files that `from_pretrained` reads.

        Parameters
        ----------
        folder : str or Path
            Created where it is missing; its parent must exist.
        dtype : torch.dtype
            Of the stored weights: float32, float16 or bfloat16.

        Raises
        ------
        OSError
            A file cannot be written; files are replaced whole.
        """
        folder = Path(folder)
        folder.mkdir(exist_ok=True)
        save_weights(self.model, folder / LPD_FILE, dtype)
        save_weights(self.vq, folder / VQ_FILE, dtype)
        write_atomically(folder / DESCRIPTION_FILE, description(self.classes.names, self.defaults))

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> LPDPipeline:
        """Move the models, in place.

        Parameters
        ----------
        device : str or torch.device, optional
            Where to compute.
        dtype : torch.dtype, optional
            Of the transformer: float32, bfloat16, float16 (or float64 with the reference kernels).
            The tokenizer stays float32: it runs once an image, and its rounding would show.

        Returns
        -------
        LPDPipeline
            Itself.

        Raises
        ------
        ValueError
            The machine has no such device.
        TypeError
            `dtype` is none of these.
        """
        if dtype is not None and dtype not in _DTYPES:
            fail(TypeError, f"{_OWNER}.to", "dtype", f"one of {_DTYPES}", dtype)
        if device is not None:
            try:
                torch.empty(0, device=device)
            except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
                reason = str(error).splitlines()[0]
                wanted = "a device of this machine"
                fail(ValueError, f"{_OWNER}.to", "device", wanted, f"{str(device)!r} ({reason})")
        self.release()  # plans are of the weights as they were
        self.model.to(device=device, dtype=dtype)
        self.vq.to(device=device)
        return self

    def release(self) -> None:
        """Give back the memory of what calls keep for the next one; that one plans anew."""
        self._plans.release()

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[ClassLabel] | Tensor,
        *,
        num_steps: int | None = None,
        order: str | Tensor | None = None,
        seed: int | Sequence[int] = 0,
        cfg_scale: PerImage | None = None,
        cfg_schedule: str | None = None,
        temperature: PerImage | None = None,
        top_k: PerImage | None = None,
        top_p: PerImage | None = None,
        repulsion_threshold: int | None = None,
        batch_size: int | None = None,
        kernels: Kernels | None = None,
        progress: Progress | None = None,
    ) -> LPDOutput:
        """Generate one image for each label.

        Parameters
        ----------
        class_labels : Sequence[int | str | None] or Tensor
            Numbers or names; -1, None or "unconditional" ask for no class.
        num_steps, order, cfg_scale, cfg_schedule, temperature, top_k, top_p, repulsion_threshold
            See `GenerationSettings`; None takes the model's default. `cfg_scale`, `temperature`,
            `top_k` and `top_p` may be sequences with one value an image. `order` may be a tensor,
            int64 ``[images or more, seq_len]`` (see `lpd_ext.orders.read_orders`): image i is
            decoded in the order of row i.
        seed : int or Sequence[int]
            An int gives image i the seed ``seed + i``; a sequence has one an image.
        batch_size : int, optional
            Images decoded together; a smaller last batch is padded to it. By default all, but no
            more than 64.
        kernels : Kernels, optional
            As `lpd_ext.decode` takes them; by default those of the model's device.
        progress : Callable, optional
            Called after each step with (steps done, steps in all, tokens so far), steps counted
            over all batches, tokens those of the current one (-1 = not yet decoded).

        Returns
        -------
        LPDOutput
            Images, and the tokens, labels, seeds and settings behind them.

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; the message names it.
        InvalidLogitsError
            The model gave logits that are no numbers; `image` is the place in this call.
        MemoryError
            There is not enough memory for a plan; the message names the sizes.
        """
        orders = order if isinstance(order, Tensor) else None
        given: dict[str, Any] = {
            "num_steps": num_steps,
            "order": order if orders is None else GIVEN_ORDER,
            "repulsion_threshold": repulsion_threshold,
            "cfg_scale": cfg_scale,
            "cfg_schedule": cfg_schedule,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        changed: dict[str, Any] = {
            name: as_numbers(name, value) if name in PER_IMAGE else value
            for name, value in given.items()
            if value is not None
        }
        settings = dataclasses.replace(self.defaults, **changed)
        self._check_steps(settings)
        entries = as_list("class_labels", class_labels, "a sequence of numbers or names")
        labels = [self.classes.label(entry) for entry in entries]
        count = len(labels)
        if count == 0:
            fail(ValueError, _OWNER, "class_labels", "at least one image", "none")
        settings.check_images(count)
        if settings.order == GIVEN_ORDER:
            orders = checked_orders(_OWNER, orders, count, self.model.config.seq_len)
        seeds = image_seeds(seed, count)
        if batch_size is None:
            batch_size = min(count, _DEFAULT_BATCH_SIZE)
        batch_size = unwrapped(batch_size)
        check_int(_OWNER, "batch_size", batch_size, 1)

        if kernels is None:
            kernels = kernels_for(self.model.device)

        images, tokens, steps = [], [], []
        num_batches = -(-count // batch_size)
        for batch in range(num_batches):
            # Padding repeats the last image, so that it brings no trouble of its own.
            rows = (torch.arange(batch_size) + batch * batch_size).clamp(max=count - 1)
            real = min(batch_size, count - batch * batch_size)

            def report(
                step: int, num_steps: int, so_far: Tensor, batch: int = batch, real: int = real
            ) -> None:
                assert progress is not None
                progress(batch * num_steps + step, num_batches * num_steps, so_far[:real])

            codes, step_of = self._decode(
                rows, labels, seeds, settings, orders, kernels,
                None if progress is None else report,
            )  # fmt: skip
            with float32_convolutions(codes.device):
                pixels = self.vq.decode(codes, self.model.config.grid)
            images += to_images(pixels[:real])
            tokens.append(codes[:real].cpu())
            steps.append(step_of[:real].cpu())
        return LPDOutput(
            images, torch.cat(tokens), torch.cat(steps), labels, seeds, settings, batch_size
        )

    def _decode(
        self,
        rows: Tensor,
        labels: Sequence[int],
        seeds: Sequence[int],
        settings: GenerationSettings,
        orders: Tensor | None,
        kernels: Kernels,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens of the images `rows` of a call and the step that decoded each."""
        config, device = self.model.config, self.model.device
        sizes = group_sizes(config.seq_len, settings.num_steps)
        batch_seeds = torch.tensor(seeds)[rows].to(_device_of_orders(device, config.seq_len))
        if orders is not None:
            order = orders[rows]
        else:
            options = {}
            if settings.order == "locality":
                options["repulsion_threshold"] = settings.repulsion_threshold
            order = ORDERS[settings.order](batch_seeds, config.grid, sizes, **options)
        numbers = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(order.device)
        steps = torch.empty_like(order).scatter_(1, order, numbers.expand_as(order))

        sampling: dict[str, Any] = {}
        for name, dtype in PER_IMAGE.items():
            value = getattr(settings, name)
            # A number stays one: cfg_scale 1 then saves half the work.
            per_image = isinstance(value, tuple)
            sampling[name] = (
                torch.tensor(value, dtype=dtype)[rows].to(device) if per_image else value
            )
        sampling["uniform"] = philox.uniform(batch_seeds, config.seq_len).to(device)
        sampling["cfg_schedule"] = settings.cfg_schedule
        class_labels, order = torch.tensor(labels)[rows].to(device), order.to(device)
        try:
            if kernels == OPS and can_plan(self.model):
                guided = isinstance(settings.cfg_scale, tuple) or settings.cfg_scale != 1
                plan = self._plan(len(rows), sizes, guided)
                tokens = plan(class_labels, order, **sampling, progress=progress)
            else:
                tokens = decode(
                    self.model, class_labels, sizes, order, **sampling,
                    kernels=kernels, progress=progress,
                )  # fmt: skip
        except InvalidLogitsError as error:
            raise InvalidLogitsError(int(rows[error.image]), error.step) from error
        return tokens, steps

    def _plan(self, batch_size: int, sizes: Sequence[int], guided: bool) -> DecodePlan:
        if self._plans.model is not self.model:  # somebody put another one in its place
            self._plans = PlanCache(self.model)
        return self._plans.get(batch_size, sizes, guided)

    def _check_steps(self, settings: GenerationSettings) -> None:
        seq_len = self.model.config.seq_len
        if settings.num_steps > seq_len:
            fail(ValueError, _OWNER, "num_steps", f"1 to {seq_len}", settings.num_steps)
