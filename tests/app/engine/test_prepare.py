"""Images as the passes that they need."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.engine.prepare import check_passes, expected_passes, prepare
from app.errors import InvalidParameter
from models import ModelSpec
from models.transforms import resize
from models.windows import WHOLE, Inference, list_views

SLIDE = Inference("slide", crop=(16, 16), stride=(12, 12))


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("wants_traces", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (33, 50), (90, 20), (1, 1), (32, 48)])
def test_prepared_is_resized(spec: ModelSpec, size: tuple[int, int], wants_traces: bool) -> None:
    pixels = noise(*size)
    (image,) = prepare(pixels, spec, WHOLE, wants_traces)
    expected = resize(torch.from_numpy(pixels), spec.preprocessing.input_size(size))
    assert torch.equal(image.pixels, expected)
    assert image.pixels.dtype == torch.uint8
    assert (image.original, image.wants_traces) == (size, wants_traces)


def test_of_a_large_picture_only_the_input_is_kept(spec: ModelSpec) -> None:
    (image,) = prepare(noise(320, 480), spec, WHOLE, False)
    assert image.pixels.untyped_storage().nbytes() == image.pixels.nbytes == 32 * 48 * 3


# --- several passes


@pytest.mark.parametrize(
    "inference",
    [SLIDE, Inference(scales=(0.5, 1.0, 1.5), flip=True), Inference("slide", (16, 20), (9, 11), (1, 2), True)],
)
def test_each_window_of_each_view_is_a_pass(spec: ModelSpec, inference: Inference) -> None:
    pixels = noise(64, 96)
    images = prepare(pixels, spec, inference, wants_traces=False)
    expected = []
    for view in list_views((64, 96), spec.preprocessing, inference):
        resized = resize(torch.from_numpy(pixels), view.size)
        expected += [window.cut(resized.flip(1) if view.flipped else resized) for window in view.windows]
    assert len(images) == len(expected) == expected_passes(spec, inference, 200)
    assert all(torch.equal(image.pixels, window) for image, window in zip(images, expected, strict=True))
    assert [image.part for image in images] == list(range(len(images)))
    assert len({image.assembly for image in images}) == 1


def test_a_mirror_image_alone_is_assembled_too(spec: ModelSpec) -> None:
    images = prepare(noise(64, 96), spec, Inference(flip=True), wants_traces=True)
    assert [image.wants_traces for image in images] == [True, False]


def test_traces_are_kept_of_the_usual_view_alone(spec: ModelSpec) -> None:
    for inference, kept in (
        (Inference(scales=(0.5, 1.0, 1.5), flip=True), [False, False, True, False, False, False]),
        (Inference(scales=(0.5,)), [True]),
        (SLIDE, [False] * 12),
    ):
        images = prepare(noise(32, 48), spec, inference, wants_traces=True)
        assert [image.wants_traces for image in images] == kept


def test_windows_share_the_memory_of_their_view(spec: ModelSpec) -> None:
    images = prepare(noise(64, 96), spec, SLIDE, wants_traces=False)
    assert len({image.pixels.untyped_storage().data_ptr() for image in images}) == 1
    assert {image.input_size for image in images} == {(16, 16)}


def test_more_passes_than_the_limit(spec: ModelSpec) -> None:
    with pytest.raises(InvalidParameter, match="96x64 would need 12 passes; the limit is 11") as raised:
        check_passes((64, 96), spec, SLIDE, 0, max_passes=11, max_bytes=1 << 20)
    assert (raised.value.limit, raised.value.actual) == (11, 12)
    check_passes((64, 96), spec, SLIDE, 0, max_passes=12, max_bytes=1 << 20)


@pytest.mark.parametrize("inference", [SLIDE, Inference(scales=(1.0, 2.0), flip=True)])
def test_larger_passes_than_the_limit(spec: ModelSpec, inference: Inference) -> None:
    images = prepare(noise(64, 96), spec, inference, wants_traces=False)
    nbytes = 1000 + sum(image.pixels.nbytes for image in images)
    with pytest.raises(InvalidParameter, match=f"96x64 would take {nbytes} bytes .* the limit is {nbytes - 1}"):
        check_passes((64, 96), spec, inference, 1000, max_passes=12, max_bytes=nbytes - 1)
    check_passes((64, 96), spec, inference, 1000, max_passes=12, max_bytes=nbytes)


def test_a_single_pass_of_any_size_is_taken_by_an_empty_queue(spec: ModelSpec) -> None:
    check_passes((64, 96), spec, WHOLE, 1000, max_passes=12, max_bytes=1)


def test_what_no_image_can_need_is_refused_before_one_is_there(spec: ModelSpec) -> None:
    inference = Inference(scales=(1.0,) * 6, flip=True)
    assert expected_passes(spec, inference, 12) == 12
    with pytest.raises(InvalidParameter, match="12 passes at least; the limit is 11") as raised:
        expected_passes(spec, inference, 11)
    assert (raised.value.limit, raised.value.actual) == (11, 12)


def test_no_more_than_the_limit_are_expected(spec: ModelSpec) -> None:
    assert expected_passes(spec, SLIDE, 100) == 12
    assert expected_passes(spec, SLIDE, 5) == 5, "an image of other proportions may need so few"


def test_padded_windows_are_of_the_crops_size_and_say_what_is_padding(spec: ModelSpec) -> None:
    inference = Inference("slide", crop=(40, 20), stride=(20, 14), below_crop="pad")
    images = prepare(noise(32, 48), spec, inference, wants_traces=True)
    assert [(image.input_size, image.inside, image.wants_traces) for image in images] == [
        ((40, 20), (32, 20), False)
    ] * 3
    assert all(image.pixels[32:].max() == 0 for image in images)
    assert torch.equal(images[0].pixels[:32], torch.from_numpy(noise(32, 48))[:, :20])


def test_a_mask_that_is_upsampled_another_way_is_assembled(spec: ModelSpec) -> None:
    for size, assembled in (((32, 48), False), ((64, 96), True)):
        (image,) = prepare(noise(*size), spec, Inference(upsampling="bicubic"), wants_traces=True)
        assert (image.assembly is not None, image.wants_traces) == (assembled, True)
