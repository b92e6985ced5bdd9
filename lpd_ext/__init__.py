"""Locality-aware Parallel Decoding of autoregressive image models: kernels, models, decode loop."""

from lpd_ext._binary import VERSION
from lpd_ext.accelerate import Accelerated, accelerate
from lpd_ext.arrays import with_arrays
from lpd_ext.decode import decode
from lpd_ext.image_plan import ImagePlan
from lpd_ext.info import info
from lpd_ext.models.config import LPDConfig, VQConfig
from lpd_ext.models.lpd import LPD
from lpd_ext.models.vq import VQModel
from lpd_ext.ops import (
    group_attention,
    group_order,
    masked_attention,
    token_selection,
    token_selection_,
)
from lpd_ext.orders import halton_order, random_order, raster_order
from lpd_ext.pipeline import LPDPipeline
from lpd_ext.plan import DecodePlan
from lpd_ext.plan_cache import PlanCache
from lpd_ext.schedule import group_sizes

__version__ = VERSION

__all__ = [
    "LPD",
    "Accelerated",
    "DecodePlan",
    "ImagePlan",
    "LPDConfig",
    "LPDPipeline",
    "PlanCache",
    "VQConfig",
    "VQModel",
    "__version__",
    "accelerate",
    "decode",
    "group_attention",
    "group_order",
    "group_sizes",
    "halton_order",
    "info",
    "masked_attention",
    "random_order",
    "raster_order",
    "token_selection",
    "token_selection_",
    "with_arrays",
]
