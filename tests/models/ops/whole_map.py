"""What `decide` decides, for those who want to see it."""

from collections.abc import Sequence

from torch import Tensor

from models.ops import upsample
from models.ops.upsample import Patch


def spread(patches: Sequence[Patch]) -> Tensor:
    """The whole map [K, H, W] in float32, by the steps of `decide`."""
    whole, width = (0, len(patches[0].rows.start)), len(patches[0].columns.start)
    return upsample._rows([upsample._widen(patch, [whole]) for patch in patches], 0, whole, width)
