"""Convolutions as oneDNN runs them fastest on a CPU: with their activation, their weights laid out beforehand.

The operators are those that torch's own compiler emits for a frozen network. Called from eager modules they need no C++
compiler and no compilation at the start, and leave every module in its place, to be timed and traced as before.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import cache
from math import ceil

import torch
from torch import Tensor, nn
from torch._jit_internal import is_scripting

from models.layers import ConvModule
from models.segmentor import Segmentor

# Gives criss-cross attention its values: it takes those in bfloat16, and everything else in float32.
VALUE = "decode_head.cca.value_conv"
# Where ANN joins a context to its queries' map; what reads the result rounds it in any case.
JOINS = ("decode_head.fusion.bottleneck", "decode_head.context.bottleneck")

# Heights of inputs that must share a layout of the weights, as parts of the usual height.
HEIGHTS: tuple[float, ...] = (1, 3 / 4, 2 / 3)

Threads = tuple[int, int]
Convolution = Callable[[Tensor, Tensor, Tensor | None, list[int], list[int], list[int], int], Tensor]
# Written as a graph, since `Scalar?[]` cannot be written in the Python that TorchScript reads.
GRAPH = """
graph(
    %x : Tensor, %weight : Tensor, %bias : Tensor?,
    %padding : int[], %stride : int[], %dilation : int[], %groups : int
):
  %name : str = prim::Constant[value="{name}"]()
  %algorithm : str = prim::Constant[value=""]()
  {numbers}
  %scalars : Scalar?[] = prim::ListConstruct({names})
  %out : Tensor = mkldnn::_convolution_pointwise(
    %x, %weight, %bias, %padding, %stride, %dilation, %groups, %name, %scalars, %algorithm
  )
  return (%out)
"""


def can_fuse() -> bool:
    """Whether this torch has the operators, and takes graphs as text; neither is a public part of it."""
    operators = ("_convolution_pointwise", "_reorder_convolution_weight", "_get_mkldnn_serialized_md")
    has_operators = torch._C._has_mkldnn and all(hasattr(torch.ops.mkldnn, name) for name in operators)
    return has_operators and all(hasattr(torch._C, name) for name in ("parse_ir", "_create_function_from_graph"))


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
        size: torch.Size,
        out_dtype: torch.dtype | None = None,
        threads: Threads = (1, 1),
    ) -> None:
        """
        Args:
            dtype: of the weights and the products
            size: of its usual input; others work too
            out_dtype: of the result, if another than `dtype`
            threads: how many compute a pass that runs beside others, and one that runs alone; changes torch's number
                on the calling thread
        """
        super().__init__()
        self.out_channels = conv.out_channels
        weight = conv.weight.detach().to(dtype, memory_format=torch.channels_last)
        assert isinstance(conv.padding, tuple)
        self.padding, self.stride, self.dilation = (list(pair) for pair in (conv.padding, conv.stride, conv.dilation))
        self.groups = conv.groups
        self.beside = threads[0]
        beside, alone = (self._lay_out(weight, size, number) for number in threads)
        self.weight = nn.Parameter(beside, requires_grad=False)
        same = beside is alone or _layout(beside) == _layout(alone)
        self.weight_alone = self.weight if same else nn.Parameter(alone, requires_grad=False)
        # In float32 whatever the dtype: added before the sum is rounded, it costs nothing.
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach(), requires_grad=False)
        self._dtype = dtype
        self.out_dtype = out_dtype or dtype
        name, scalars = _onednn_name(activation)
        self._convolve = _convolution_with(name, scalars)
        self.activation = None if name != "none" or isinstance(activation, nn.Identity) else activation

    def forward(self, x: Tensor, pads_rows: bool = True) -> Tensor:
        """
        Args:
            pads_rows: False if the input has the rows above and below already. Not keyword-only, which TorchScript
                does not know
        """
        padding = [self.padding[0] if pads_rows else 0, self.padding[1]]
        # torch's own look at the type costs as much as a small operator.
        x = x if x.dtype == self._dtype else x.to(self._dtype)
        weight = self.weight
        # TorchScript cannot ask for the number of threads, so each number has a script of its own, see `alone`.
        if not is_scripting():  # noqa: SIM102 - TorchScript leaves the rest out only if this condition stands alone
            if torch.get_num_threads() != self.beside:
                weight = self.weight_alone
        out: Tensor = self._convolve(x, weight, self.bias, padding, self.stride, self.dilation, self.groups)
        out = out if out.dtype == self.out_dtype else out.to(self.out_dtype)
        return out if self.activation is None else self.activation(out)

    def _lay_out(self, weight: Tensor, size: torch.Size, threads: int) -> Tensor:
        """The weights in oneDNN's layout for the usual input, if flatter inputs have the same; else as they are.

        Weights that are not in the layout for an input oneDNN lays out anew in each pass: slowly from another layout,
        fast from none.
        """
        count, channels, height, width = size
        torch.set_num_threads(threads)
        layouts: dict[bytes, Tensor] = {}
        for part in HEIGHTS:
            laid_out = torch.ops.mkldnn._reorder_convolution_weight(
                *(weight, self.padding, self.stride, self.dilation, self.groups),
                [count, channels, ceil(part * height), width],
            )
            layouts[_layout(laid_out)] = laid_out
        return layouts.popitem()[1] if len(layouts) == 1 else weight


def alone(module: nn.Module) -> nn.Module | None:
    """A copy with the weights for passes that run alone, sharing all else; None if these are the usual ones."""
    fused = [part for part in module.modules() if isinstance(part, FusedConv)]
    if all(conv.weight is conv.weight_alone for conv in fused):
        return None
    shared = (*module.parameters(), *(conv._convolve for conv in fused))
    copied = deepcopy(module, {id(part): part for part in shared})
    for part in copied.modules():
        if isinstance(part, FusedConv):
            part.weight = part.weight_alone
    return copied


def fuse_convolutions(segmentor: Segmentor, image: Tensor, *, reduced: bool, threads: Threads = (1, 1)) -> None:
    """Replace, in place, every convolution and its activation; batch norms must have been folded.

    Args:
        image: [1, 3, H, W] of the usual size
        reduced: bfloat16 in those that `tolerates` names. It rounds their results: whether the network bears that, the
            caller must find out
        threads: as for `FusedConv`
    """
    sizes = _input_sizes(segmentor, image)
    late = _late_blocks(segmentor)
    made: dict[nn.Module, FusedConv] = {}  # a module that two share is replaced by one that they share

    def fused(module: ConvModule | nn.Conv2d, name: str) -> FusedConv:
        conv, activation = (
            (module.conv, module.activation) if isinstance(module, ConvModule) else (module, nn.Identity())
        )
        if module not in made:
            dtype = torch.bfloat16 if reduced and tolerates(name, conv, late) else torch.float32
            # What heads do between convolutions they do in float32, as they would otherwise.
            keeps = name == VALUE or not name.startswith("decode_head.")
            made[module] = FusedConv(conv, activation, dtype, sizes[conv], dtype if keeps else torch.float32, threads)
        return made[module]

    before = torch.get_num_threads()
    # On a thread of its own, which ends and takes its OpenMP helpers with it. Each thread that has computed on several
    # cores has helpers; once all together are more than the cores, OpenMP lets them sleep after every operator.
    # The initializer: when a thread first computes, torch gives it the number of threads that was last asked for.
    with ThreadPoolExecutor(1, initializer=torch.get_num_threads) as brief:
        try:
            brief.submit(_replace, segmentor, "", fused).result()
        finally:
            torch.set_num_threads(before)


def tolerates(name: str, conv: nn.Conv2d, late: tuple[str, ...]) -> bool:
    """Whether a convolution may round to bfloat16.

    It may in the last stage and the end of the one before, the decoder, the head's dense filters, where criss-cross
    attention takes its values from, and where ANN joins maps. Rounding early in the network reaches every class
    boundary, and the head's other 1x1 convolutions are what attention and classes are made of.

    Args:
        late: how the names of the third stage's last blocks begin
    """
    if name.startswith("decode_head."):
        return name == VALUE or name.startswith(JOINS) or (conv.groups == 1 and max(conv.kernel_size) > 1)
    return name.startswith(("backbone.layer4.", "decoder.", *late))


def _late_blocks(segmentor: Segmentor) -> tuple[str, ...]:
    """The last third of the third stage."""
    count = len(segmentor.get_submodule("backbone.layer3")._modules)
    return tuple(f"backbone.layer3.{index}." for index in range(count - count // 3, count))


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


def _layout(weight: Tensor) -> bytes:
    """What tells one layout from another; empty if there is none."""
    if not weight.is_mkldnn:
        return b""
    description: Tensor = torch.ops.mkldnn._get_mkldnn_serialized_md(weight)
    return description.numpy().tobytes()


def _onednn_name(activation: nn.Module) -> tuple[str, tuple[float, ...]]:
    """What the operator calls an activation, and its numbers; "none" for one that it doesn't have."""
    match activation:
        case nn.ReLU6():
            return "hardtanh", (0.0, 6.0)
        case nn.ReLU():
            return "relu", ()
        case nn.LeakyReLU():
            return "leaky_relu", (float(activation.negative_slope),)
        case _:
            return "none", ()


@cache
def _convolution_with(name: str, scalars: tuple[float, ...]) -> Convolution:
    """The operator with an activation, as both Python and TorchScript can call it."""
    numbers = [f"%n{index} : float = prim::Constant[value={scalar!r}]()" for index, scalar in enumerate(scalars)]
    graph = GRAPH.format(
        name=name, numbers="\n  ".join(numbers), names=", ".join(f"%n{index}" for index in range(len(scalars)))
    )
    convolution: Convolution = torch._C._create_function_from_graph(f"convolution_{name}", torch._C.parse_ir(graph))
    return convolution
