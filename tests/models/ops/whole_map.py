"""What `decide` decides, for those who want to see it."""

from collections.abc import Sequence

from torch import Tensor

from models.ops import upsample
from models.ops.upsample import Patch


def spread(patches: Sequence[Patch]) -> Tensor:
    """The whole map [K, H, W] in float32, by the steps of `decide`."""
    height = len(patches[0].rows.start)
    return upsample._rows([upsample._widen(patch, 0, height) for patch in patches], 0, height)
