from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from models.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, normalize, resize

CAMVID = Preprocessing(scale=(480, 360), mean=IMAGENET_MEAN, std=IMAGENET_STD)
CITYSCAPES = Preprocessing(scale=(2048, 1024), mean=IMAGENET_MEAN, std=IMAGENET_STD)


def random_image(height: int, width: int) -> torch.Tensor:
    return torch.randint(256, (height, width, 3), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("preprocessing", "original", "expected"),
    [
        (CAMVID, (360, 480), (360, 480)),
        (CAMVID, (720, 960), (360, 480)),
        (CAMVID, (960, 720), (480, 360)),
        (CAMVID, (90, 120), (360, 480)),
        (CAMVID, (500, 500), (360, 360)),
        (CAMVID, (333, 500), (320, 480)),
        (CAMVID, (101, 37), (480, 176)),
        (CAMVID, (1, 10_000), (1, 480)),
        (CAMVID, (1, 1), (360, 360)),
        (CITYSCAPES, (1024, 2048), (1024, 2048)),
        (CITYSCAPES, (375, 1242), (618, 2048)),
    ],
)
def test_input_size_fits_the_scale_and_keeps_the_ratio(
    preprocessing: Preprocessing, original: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert preprocessing.input_size(original) == expected


@pytest.mark.parametrize(
    ("original", "factor", "expected"),
    [
        ((360, 480), 1.0, (480, 640)),
        ((1080, 1920), 1.0, (368, 640)),
        ((333, 500), 1.0, (432, 640)),
        ((1, 10_000), 1.0, (16, 640)),
        ((360, 480), 0.75, (368, 480)),
    ],
)
def test_input_size_is_rounded_to_the_multiple(
    original: tuple[int, int], factor: float, expected: tuple[int, int]
) -> None:
    stepped = Preprocessing(scale=(640, 480), mean=IMAGENET_MEAN, std=IMAGENET_STD, multiple=16)
    assert stepped.input_size(original, factor) == expected


def test_order_of_the_scale_does_not_matter() -> None:
    turned = Preprocessing(scale=(360, 480), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert turned.input_size((500, 700)) == CAMVID.input_size((500, 700))


@pytest.mark.parametrize("size", [(30, 20), (7, 90), (120, 160), (1, 1), (61, 40)])
def test_resize_is_pillows_smoothed_bilinear(size: tuple[int, int]) -> None:
    image = random_image(61, 83)
    expected = Image.fromarray(image.numpy()).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    got = resize(image, size)
    assert got.dtype == torch.uint8
    assert got.shape == (*size, 3)
    assert np.abs(got.numpy().astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_resize_leaves_the_right_size_alone() -> None:
    image = random_image(7, 9)
    assert resize(image, (7, 9)) is image


def test_thin_lines_do_not_alias_away() -> None:
    stripes = torch.zeros(64, 64, 3, dtype=torch.uint8)
    stripes[:, ::4] = 255
    assert ((resize(stripes, (16, 16))[:, 1:-1].int() - 64).abs() <= 12).all()


def test_normalize_subtracts_and_divides_per_channel() -> None:
    preprocessing = Preprocessing(scale=(8, 8), mean=(10, 20, 30), std=(1, 2, 4))
    images = torch.stack([torch.tensor([[[11, 26, 50]]]), torch.tensor([[[10, 20, 30]]])]).to(torch.uint8)
    assert normalize(images, preprocessing).flatten(1).tolist() == [[1, 3, 5], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalize_gives_planes_of_the_dtype_without_a_copy_of_the_layout(dtype: torch.dtype) -> None:
    images = torch.stack([random_image(6, 8), random_image(6, 8)])
    batch = normalize(images, CAMVID, dtype)
    exact = (images.double() - torch.tensor(IMAGENET_MEAN).double()) / torch.tensor(IMAGENET_STD).double()
    assert batch.shape == (2, 3, 6, 8)
    assert batch.dtype == dtype
    assert batch.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(batch.double(), exact.permute(0, 3, 1, 2), rtol=torch.finfo(dtype).eps, atol=1e-6)


RESIZED = load_file(Path(__file__).parent / "golden" / "opencv_resize.safetensors")


@pytest.mark.parametrize("name", ["larger", "smaller", "uneven", "one_column", "one_row"])
def test_resize_without_smoothing_is_opencvs_to_the_last_bit(name: str) -> None:
    image, expected = RESIZED[f"{name}_in"], RESIZED[f"{name}_out"]
    height, width = expected.shape[:2]
    assert torch.equal(resize(image, (height, width), antialias=False), expected)


def test_bgr_turns_the_channels_after_they_are_normalized() -> None:
    preprocessing = Preprocessing(scale=(8, 8), mean=(10, 20, 30), std=(1, 2, 4), bgr=True)
    image = torch.tensor([[[[11, 26, 50]]]], dtype=torch.uint8)
    assert normalize(image, preprocessing).flatten().tolist() == [5, 3, 1]


def test_scale_times_factor_is_cut_to_whole_pixels() -> None:
    """mmsegmentation's ratios of an odd scale: 2049 x 1025 times a half is 1024 x 512."""
    odd = Preprocessing(scale=(2049, 1025), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert odd.input_size((1024, 2048), 0.5) == (512, 1024)
    assert odd.input_size((1024, 2048)) == (1025, 2049)
