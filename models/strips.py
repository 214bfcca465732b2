"""Inverted residual blocks, some rows at a time: their wide map stays in the cache from one convolution to the next.

At 640x480 the widest map of a MobileNetV2 has 29 MB, written by the 1x1 convolution and read again by the depthwise
one. In strips the same numbers come out, to the bit, wherever a convolution doesn't depend on the size of its input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.backbones.mobilenet import InvertedResidual
from models.fused import FusedConv

# Elements of the wide map: in one strip, and the fewest that are worth strips, whose calls cost some 0.1 ms each.
STRIP_ELEMENTS, WORTH_IT = 3 << 18, 1 << 21


class Strips(nn.Module):
    """A block that widens; its convolutions must have been fused."""

    def __init__(self, block: InvertedResidual) -> None:
        super().__init__()
        self.block: nn.Module = block
        self.expand, self.depthwise, self.project = (
            block.get_submodule(name) for name in ("expand", "depthwise", "project")
        )
        assert isinstance(self.depthwise, FusedConv)
        assert isinstance(self.project, FusedConv)
        self._hidden = self.depthwise.out_channels
        self._pad, self._stride = self.depthwise.padding[0], self.depthwise.stride[0]
        self._out_channels, self._out_dtype = self.project.out_channels, self.project.out_dtype
        self._has_residual = block.has_residual
        self.strip_elements, self.worth_it = STRIP_ELEMENTS, WORTH_IT

    def forward(self, x: Tensor) -> Tensor:
        count, _, height, width = x.shape
        # Of several images the strips would not lie in one piece.
        if count > 1 or height * width * self._hidden < self.worth_it:
            out: Tensor = self.block(x)
            return out
        new_height, new_width = (height - 1) // self._stride + 1, (width - 1) // self._stride + 1
        at_once = max(1, self.strip_elements // (width * self._hidden * self._stride))
        whole = torch.empty(
            [1, self._out_channels, new_height, new_width],
            dtype=torch.promote_types(self._out_dtype, x.dtype) if self._has_residual else self._out_dtype,
            memory_format=torch.channels_last,
        )
        for top in range(0, new_height, at_once):
            bottom = min(top + at_once, new_height)
            strip = self._strip(x, top, bottom)
            rows = whole[:, :, top:bottom]
            if self._has_residual:
                torch.add(strip, x[:, :, top:bottom], out=rows)
            else:
                rows.copy_(strip)
        return whole

    def _strip(self, x: Tensor, top: int, bottom: int) -> Tensor:
        """Rows `top` to `bottom` of the output, without the residual."""
        first, last = top * self._stride - self._pad, (bottom - 1) * self._stride + self._pad + 1
        if first >= 0 and last <= x.shape[2]:
            wide = self.depthwise(self.expand(x[:, :, first:last]), pads_rows=False)
            return self.project(wide)  # type: ignore[no-any-return]
        # At an edge the convolution pads both sides, and the rows that it makes of zeros on the inner side are cut off.
        # To copy the wide map between zeros would cost more.
        before = max(0, first) // self._stride
        wide = self.depthwise(self.expand(x[:, :, before * self._stride : min(last, x.shape[2])]))
        return self.project(wide[:, :, top - before : bottom - before])  # type: ignore[no-any-return]


def run_in_strips(network: nn.Module) -> None:
    """Replace, in place, every block of MobileNetV2 that widens, its convolutions fused."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, InvertedResidual) and child.expand is not None:
                setattr(parent, name, Strips(child))
