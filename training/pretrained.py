"""Published weights under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.backbones.mobilenet import MobileNetV2
from models.backbones.mobilenet_edgetpu import MobileNetEdgeTPU
from models.folding import fold_batch_norm
from models.transforms import IMAGENET_MEAN, IMAGENET_STD


def load_pretrained(path: Path, output_stride: int) -> MobileNetV2 | MobileNetEdgeTPU:
    """A backbone with the weights of a file: torchvision's MobileNetV2, or DeepLab's MobileNet-EdgeTPU.

    Its batch norm is folded away: the statistics came from many thousand photos, and a few hundred pictures in
    batches of four would only blur them.

    Raises:
        ValueError: the file holds neither
    """
    try:
        state = load_file(path)
        if "conv.00.weight" in state:
            if output_stride != 16:
                raise ValueError(f"a MobileNet-EdgeTPU has output stride 16, not {output_stride}")
            edgetpu = MobileNetEdgeTPU().eval()
            fold_batch_norm(edgetpu)
            load_deeplab(edgetpu, state)
            return edgetpu
        mobilenet = MobileNetV2(output_stride=output_stride).eval()
        load_torchvision(mobilenet, state)
    # Tensors of another network fail in as many ways as there are networks.
    except (SafetensorError, ValueError, IndexError, RuntimeError, OSError) as exc:
        raise ValueError(f"{path}: no weights of a backbone that we know: {exc}") from exc
    fold_batch_norm(mobilenet)
    return mobilenet


def load_torchvision(net: MobileNetV2, state: Mapping[str, Tensor]) -> None:
    """Copy torchvision's `mobilenet_v2` weights (with batch norm) into ours; its classifier is dropped.

    Raises:
        ValueError: tensors are missing or left over
    """
    renamed = {
        _rename(key): tensor
        for key, tensor in state.items()
        if re.match(r"features\.(\d|1[0-7])\.", key) and not key.endswith("num_batches_tracked")
    }
    wanted = {key: tensor for key, tensor in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    if wanted.keys() != renamed.keys():
        raise ValueError(f"not a torchvision MobileNetV2: {sorted(wanted.keys() ^ renamed.keys())[:5]} don't match")
    _copy("a torchvision MobileNetV2", wanted, renamed)


def load_deeplab(net: MobileNetEdgeTPU, state: Mapping[str, Tensor]) -> None:
    """Copy the backbone of DeepLab's slim MobileNet-EdgeTPU into ours; DeepLab's own head is dropped.

    Args:
        net: with batch norm folded away, like the published weights
        state: `conv.00.weight`, `conv.00.bias` and so on, numbered in the order of the published graph

    Raises:
        ValueError: tensors are missing or misshapen
    """
    # Our convolutions are registered in the graph's order.
    convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    wanted = {
        f"conv.{index:02d}.{leaf}": tensor
        for index, convolution in enumerate(convolutions)
        for leaf, tensor in convolution.named_parameters()
    }
    _copy("DeepLab's MobileNet-EdgeTPU", wanted, state)
    _take_imagenet_input(convolutions[0])


@torch.no_grad()
def _copy(what: str, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for key, tensor in wanted.items():
        if key not in state:
            raise ValueError(f"not {what}: no {key}")
        if state[key].shape != tensor.shape:
            raise ValueError(f"not {what}: {key} is {list(state[key].shape)}, not {list(tensor.shape)}")
        tensor.copy_(state[key])


@torch.no_grad()
def _take_imagenet_input(stem: nn.Conv2d) -> None:
    """Rescale a first convolution that was trained on pixels from -1 to 1 for ImageNet's mean and deviation."""
    assert stem.bias is not None
    deviation = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) / 127.5
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1) / 127.5 - 1
    stem.bias += (stem.weight * mean).sum((1, 2, 3))
    stem.weight *= deviation


# torchvision numbers all blocks through; (first block, stage) of each of ours.
STAGE_STARTS = ((14, 4), (7, 3), (4, 2), (1, 1))


def _rename(key: str) -> str:
    _, number, *rest = key.split(".")
    block = int(number)
    if block == 0:
        return f"stem.{('conv', 'bn')[int(rest[0])]}.{rest[1]}"
    start, stage = next((start, stage) for start, stage in STAGE_STARTS if block >= start)
    names = ("depthwise", "project") if block == 1 else ("expand", "depthwise", "project")
    # `conv.<i>.0` and `.1` are convolution and norm of part i; of the last part they are `conv.<i>` and `conv.<i + 1>`.
    part, last = int(rest[1]), len(names) - 1
    part, layer = (part, int(rest[2])) if part < last else (last, part - last)
    return f"layer{stage}.{block - start}.{names[part]}.{('conv', 'bn')[layer]}.{rest[-1]}"
