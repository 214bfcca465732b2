"""A small data set of drawn scenes in the layout that training reads, and weights named as they are published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from models.backbones.mobilenet import MobileNetV2
from models.backbones.mobilenet_edgetpu import MobileNetEdgeTPU
from training.scenes import draw_street

WIDTH, HEIGHT = 128, 96
SEEDS = {"train": (1, 2, 3, 4), "val": (5,), "test": (6, 7)}
# CamVid's own id of unlabelled pixels; the scenes leave none, so a strip is added.
VOID, VOID_ROWS = 11, 6


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` has four scenes, `val` one, `test` two; the last rows of every mask are unlabelled."""
    root = tmp_path_factory.mktemp("drawn")
    for split, seeds in SEEDS.items():
        (root / split).mkdir()
        (root / f"{split}annot").mkdir()
        (root / f"{split}.txt").write_text("".join(f"scene{seed}\n" for seed in seeds))
        for seed in seeds:
            image, mask = draw_street(seed, WIDTH, HEIGHT)
            mask[-VOID_ROWS:] = VOID
            suffix = "jpg" if seed % 2 else "png"
            Image.fromarray(image).save(root / split / f"scene{seed}.{suffix}")
            Image.fromarray(mask).save(root / f"{split}annot" / f"scene{seed}.png")
    return root


FIRST_BLOCKS = {"layer1": 1, "layer2": 4, "layer3": 7, "layer4": 14}


@pytest.fixture(scope="session")
def torchvision_name() -> Callable[[str], str]:
    """Our name of a MobileNetV2's tensor to torchvision's: the way back from what the code under test does."""

    def torchvision_name(key: str) -> str:
        if key.startswith("stem."):
            _, layer, leaf = key.split(".")
            return f"features.0.{int(layer == 'bn')}.{leaf}"
        stage, index, part, layer, leaf = key.split(".")
        block = FIRST_BLOCKS[stage] + int(index)
        place = ("expand", "depthwise", "project").index(part) - (block == 1)
        is_norm = int(layer == "bn")
        inner = f"{place + is_norm}" if part == "project" else f"{place}.{is_norm}"
        return f"features.{block}.conv.{inner}.{leaf}"

    return torchvision_name


@pytest.fixture(scope="session")
def mobilenet_file(tmp_path_factory: pytest.TempPathFactory, torchvision_name: Callable[[str], str]) -> Path:
    """A new MobileNetV2 as torchvision would publish it."""
    path = tmp_path_factory.mktemp("published") / "mobilenet.safetensors"
    torch.manual_seed(0)
    state = {key: value for key, value in MobileNetV2().state_dict().items() if "num_batches" not in key}
    save_file({torchvision_name(key): value for key, value in state.items()}, path)
    return path


@pytest.fixture(scope="session")
def deeplab_state() -> dict[str, Tensor]:
    """A new MobileNet-EdgeTPU as DeepLab's graph numbers it, with the five convolutions of DeepLab's own head."""
    torch.manual_seed(0)
    convolutions = [module for module in MobileNetEdgeTPU().modules() if isinstance(module, nn.Conv2d)]
    state: dict[str, Tensor] = {}
    for index, convolution in enumerate([*convolutions, *[nn.Conv2d(8, 8, 1)] * 5]):
        state[f"conv.{index:02d}.weight"] = convolution.weight.detach().clone()
        state[f"conv.{index:02d}.bias"] = torch.randn(convolution.out_channels) / 10
    return state


@pytest.fixture(scope="session")
def edgetpu_file(tmp_path_factory: pytest.TempPathFactory, deeplab_state: dict[str, Tensor]) -> Path:
    path = tmp_path_factory.mktemp("published") / "edgetpu.safetensors"
    save_file(deeplab_state, path)
    return path
