"""What the official CCNet's and ANN's evaluation scripts make of an image, written out step by step; and ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.inference import segment_image
from models.ops.upsample import Size
from models.recognition import recognise
from models.registry import ModelSpec, load_model
from models.transforms import resize_like_opencv
from tests.models.reference import Sizes, State, logits_of, random_state, shapes_of

MEANS = {"official_ccnet": (104.00698793, 116.66876762, 122.67891434), "official_ann": (102.9801, 115.9465, 122.7717)}
Network = Callable[[Tensor], Tensor]  # [1, 3, H, W] to logits


def saved(name: str, tmp_path: Path, **inference: object) -> tuple[State, ModelSpec]:
    """A checkpoint, and its specification at a hundredth of the size."""
    state = random_state(shapes_of(name, Sizes(classes=19)))
    # One class wins everywhere, otherwise.
    bias = next(key for key in state if key.endswith(("head.bottleneck.3.bias", "cls.bias")))
    random = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 255 - 110
    state[bias] -= logits_of(name, state, random).mean((0, 2, 3))
    torch.save(state, tmp_path / "model.pth")
    spec = recognise(tmp_path / "model.pth")
    spec = replace(spec, preprocessing=replace(spec.preprocessing, scale=(128, 64)))
    return state, replace(spec, inference=replace(spec.inference, **inference))  # type: ignore[arg-type]


def picture(size: Size) -> Tensor:
    """[H, W, 3] uint8, with areas as photographs have them."""
    height, width = size
    coarse = torch.randint(256, (1, 3, height // 9 + 2, width // 9 + 2)).float()
    return F.interpolate(coarse, size, mode="bilinear")[0].permute(1, 2, 0).to(torch.uint8)


def to_input(name: str, image: Tensor) -> Tensor:
    """Blue first, less the mean."""
    return (image.flip(2).float() - torch.tensor(MEANS[name])).permute(2, 0, 1)[None]


def network(name: str, state: State) -> Network:
    return lambda image: logits_of(name, state, image)


def aligned(logits: Tensor, size: Size) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)


def assert_mask(spec: ModelSpec, image: Tensor, logits: Tensor) -> None:
    """That ours is the mask of these logits [K, H, W], but where two classes are as good as level."""
    ids, confidence = segment_image(load_model(spec), image, spec.preprocessing, spec.inference)
    assert ids.shape == logits.shape[1:]
    assert len(ids.unique()) > 1
    best, second = logits.topk(2, dim=0).values
    certain = best - second > 1e-3 * logits.abs().max()
    assert certain.float().mean() > 0.9
    assert torch.equal(ids[certain].long(), logits.argmax(0)[certain])
    assert (confidence[certain].float() / 255 - logits.softmax(0).max(0).values[certain]).abs().max() < 0.01


# --- CCNet


def ccnet_slides(network: Network, image: Tensor, tile: int) -> Tensor:
    """Tiles two thirds of their side apart, each padded with zeros to its full size; their logits are averaged."""
    height, width = image.shape[2:]
    stride = math.ceil(tile * 2 / 3)
    total, count = torch.zeros(19, height, width), torch.zeros(height, width)
    for row in range(math.ceil((height - tile) / stride) + 1):
        for column in range(math.ceil((width - tile) / stride) + 1):
            bottom, right = min(row * stride + tile, height), min(column * stride + tile, width)
            top, left = max(bottom - tile, 0), max(right - tile, 0)
            part = torch.zeros(1, 3, tile, tile)
            part[:, :, : bottom - top, : right - left] = image[:, :, top:bottom, left:right]
            scores = aligned(network(part), (tile, tile))[0]
            total[:, top:bottom, left:right] += scores[:, : bottom - top, : right - left]
            count[top:bottom, left:right] += 1
    return total / count


@pytest.mark.parametrize("size", [(64, 128), (50, 128), (36, 128), (64, 41), (33, 50)])
def test_ccnet_slides_over_images_of_any_size(size: Size, tmp_path: Path) -> None:
    name, tile = "official_ccnet", 49
    state, spec = saved(name, tmp_path, crop=(tile, tile), stride=(33, 33))
    spec = replace(spec, preprocessing=replace(spec.preprocessing, scale=(max(size), min(size))))
    image = picture(size)
    assert_mask(spec, image, ccnet_slides(network(name, state), to_input(name, image), tile))


def test_padding_is_what_makes_the_difference(tmp_path: Path) -> None:
    _, spec = saved("official_ccnet", tmp_path, crop=(49, 49), stride=(33, 33))
    image, model = picture((30, 128)), load_model(spec)
    padded, shorter = (
        segment_image(model, image, spec.preprocessing, replace(spec.inference, below_crop=how))[0]  # type: ignore[arg-type]
        for how in ("pad", "shorten")
    )
    assert (padded != shorter).float().mean() > 0.01


def test_ccnets_scales_are_averaged_as_logits_after_one_resize_each(tmp_path: Path) -> None:
    name, scales = "official_ccnet", (0.75, 1.0, 1.5)
    state, spec = saved(name, tmp_path, mode="whole", scales=scales, flip=True)
    image, total = picture((64, 128)), torch.zeros(1, 19, 64, 128)
    for scale in scales:
        scaled = to_input(name, resize_like_opencv(image, (int(64 * scale), int(128 * scale))))
        total += aligned(logits_of(name, state, scaled), (64, 128))
        total += aligned(logits_of(name, state, scaled.flip(3)), (64, 128)).flip(3)
    assert_mask(spec, image, total[0] / (2 * len(scales)))


# --- ANN


def ann_crops(network: Network, image: Tensor, crop: int, ratio: float) -> Tensor:
    """Crops whose logits are averaged; or the whole image, if it is smaller than a crop."""
    height, width = image.shape[2:]
    if min(height, width) < crop:
        return aligned(network(image), (height, width))[0]

    def starts(length: int) -> list[int]:
        stride = int(crop * ratio)
        found = [stride * index for index in range((length - crop) // stride + 1)]
        return [*found, length - crop] if length - found[-1] > crop else found

    total, count = torch.zeros(19, height, width), torch.zeros(height, width)
    for top in starts(height):
        for left in starts(width):
            area = (..., slice(top, top + crop), slice(left, left + crop))
            total[area] += aligned(network(image[area]), (crop, crop))[0]
            count[area] += 1
    return total / count


def cubic(logits: Tensor, size: Size) -> Tensor:
    """OpenCV's INTER_CUBIC."""
    return F.interpolate(logits[None], size, mode="bicubic", align_corners=False)[0]


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("size", [(64, 128), (40, 90), (90, 61), (100, 200)])
def test_ann_enlarges_logits_bicubically(size: Size, mode: str, tmp_path: Path) -> None:
    name, crop = "official_ann", 48
    state, spec = saved(name, tmp_path, mode=mode, crop=(crop, crop), stride=(32, 32))
    image = picture(size)
    view = spec.preprocessing.input_size(size)
    given = to_input(name, resize_like_opencv(image, view) if view != size else image)
    predict = network(name, state)
    logits = ann_crops(predict, given, crop, 0.667) if mode == "slide" else aligned(predict(given), view)[0]
    assert_mask(spec, image, cubic(logits, size))


def test_anns_crops_at_several_scales(tmp_path: Path) -> None:
    """At the smallest the image is smaller than a crop, and seen whole."""
    name, crop, scales = "official_ann", 54, (0.75, 1.0, 1.25)
    state, spec = saved(name, tmp_path, mode="slide", crop=(crop, crop), stride=(36, 36), scales=scales, flip=True)
    image, total = picture((64, 128)), torch.zeros(19, 64, 128)
    for scale in scales:
        given = to_input(name, resize_like_opencv(image, (int(64 * scale), int(128 * scale))))
        total += cubic(ann_crops(network(name, state), given, crop, 0.667), (64, 128))
        total += cubic(ann_crops(network(name, state), given.flip(3), crop, 0.667), (64, 128)).flip(2)
    assert_mask(spec, image, total / (2 * len(scales)))
