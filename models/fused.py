"""Convolutions as oneDNN runs them fastest on a CPU: with their activation, their weights laid out beforehand.

The operators are those that torch's own compiler emits for a frozen network. Called from eager modules they need no C++
compiler and no compilation at the start, and leave every module in its place, to be timed and traced as before.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.layers import ConvModule
from models.segmentor import Segmentor


def can_fuse() -> bool:
    """Whether this torch has the operators, which are no public part of it."""
    return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16, twice as fast as float32; where it doesn't, oneDNN emulates it slowly."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class FusedConv(nn.Module):
    """A convolution and the activation after it in one pass over memory, of inputs of any dtype."""

    def __init__(
        self,
        conv: nn.Conv2d,
        activation: nn.Module,
        dtype: torch.dtype,
        size: torch.Size | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            dtype: of the weights and the products
            out_dtype: of the result, if another than `dtype`
            size: of its usual input, for which the weights are laid out; others work, after a copy of them each time
        """
        super().__init__()
        self.out_channels = conv.out_channels
        weight = conv.weight.detach().to(dtype, memory_format=torch.channels_last)
        # As four lists and an int: what the operators take.
        assert isinstance(conv.padding, tuple)
        self._geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        if size is not None:
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._geometry, list(size))
        self.weight = nn.Parameter(weight, requires_grad=False)
        # In float32 whatever the dtype: it is added before the sum is rounded, and costs nothing.
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach(), requires_grad=False)
        self._dtype = dtype
        self._out_dtype = out_dtype or dtype
        self._name, self._scalars = _onednn_name(activation)
        self.activation = nn.Identity() if self._name != "none" else activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x.to(self._dtype), self.weight, self.bias, *self._geometry, self._name, self._scalars, ""
        )
        return self.activation(out.to(self._out_dtype))  # type: ignore[no-any-return]


def fuse_convolutions(segmentor: Segmentor, image: Tensor, *, reduced: bool) -> None:
    """Replace, in place, every convolution, its batch norm folded, together with its activation.

    Args:
        image: [1, 3, H, W] of the usual size
        reduced: bfloat16 in those that `tolerates` names, whose weights are then laid out for the image's size; it
            rounds what they put out, so that the caller must see whether the network bears it
    """
    sizes = _input_sizes(segmentor, image) if reduced else {}
    made: dict[nn.Module, FusedConv] = {}  # a module that two share is replaced by one

    def fused(module: ConvModule | nn.Conv2d, name: str) -> FusedConv:
        conv, activation = (
            (module.conv, module.activation) if isinstance(module, ConvModule) else (module, nn.Identity())
        )
        if module not in made:
            lower = reduced and tolerates(name, conv)
            dtype = torch.bfloat16 if lower else torch.float32
            # What heads do between convolutions they do in float32, as they would otherwise.
            out_dtype = torch.float32 if name.startswith("decode_head.") else dtype
            made[module] = FusedConv(conv, activation, dtype, sizes[conv] if lower else None, out_dtype)
        return made[module]

    _replace(segmentor, "", fused)


def tolerates(name: str, conv: nn.Conv2d) -> bool:
    """Whether a convolution may round to bfloat16: in the last stage, the decoder and the head's dense filters.

    Rounding early in the network reaches every class boundary, and the head's 1x1 convolutions are what attention
    and classes are made of. What is left has 70 to 78 % of the bundled models' arithmetic.
    """
    if name.startswith("decode_head."):
        return conv.groups == 1 and max(conv.kernel_size) > 1
    return name.startswith(("backbone.layer4.", "decoder."))


def _replace(module: nn.Module, path: str, fused: Callable[[ConvModule | nn.Conv2d, str], FusedConv]) -> None:
    # Not named_children(), which leaves out the second name of a shared module.
    for name, child in list(module._modules.items()):
        if isinstance(child, ConvModule | nn.Conv2d):
            setattr(module, name, fused(child, f"{path}{name}"))
        elif child is not None:
            _replace(child, f"{path}{name}.", fused)


def _input_sizes(segmentor: Segmentor, image: Tensor) -> dict[nn.Module, torch.Size]:
    sizes: dict[nn.Module, torch.Size] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes[module] = inputs[0].shape

    hooks = [part.register_forward_pre_hook(note) for part in segmentor.modules() if isinstance(part, nn.Conv2d)]
    segmentor(image)
    for hook in hooks:
        hook.remove()
    return sizes


def _onednn_name(activation: nn.Module) -> tuple[str, list[float]]:
    """What the operator calls an activation, and its numbers; "none" for one that it doesn't have."""
    match activation:
        case nn.ReLU6():
            return "hardtanh", [0.0, 6.0]
        case nn.ReLU():
            return "relu", []
        case nn.LeakyReLU():
            return "leaky_relu", [activation.negative_slope]
        case _:
            return "none", []
