from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from models.ops import upsample
from models.ops.upsample import Size, upsample_argmax
from models.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from models.windows import (
    BelowCrop,
    Inference,
    Mode,
    View,
    Window,
    count_passes,
    list_views,
    list_windows,
    merge_views,
    place_windows,
)
from tests.models.ops.whole_map import spread

SLIDE = Inference(mode="slide", crop=(8, 10), stride=(5, 7))


def expected_windows(size: Size, crop: Size, stride: Size) -> list[tuple[int, int, int, int]]:
    """The rule as it is told: step by step until the end is reached, and the last step shifted back."""
    found = []
    top = 0
    while True:
        bottom = min(top + crop[0], size[0])
        left = 0
        while True:
            right = min(left + crop[1], size[1])
            found.append((max(bottom - crop[0], 0), max(right - crop[1], 0), bottom, right))
            if right == size[1]:
                break
            left += stride[1]
        if bottom == size[0]:
            return found
        top += stride[0]


@pytest.mark.parametrize("size", [(8, 10), (9, 10), (13, 17), (14, 18), (20, 31), (3, 40), (40, 4), (5, 5), (1, 1)])
def test_windows_cover_the_view_and_the_last_is_shifted_back(size: Size) -> None:
    windows = list_windows(size, SLIDE)
    assert [tuple(window) for window in windows] == expected_windows(size, (8, 10), (5, 7))
    assert {window.size for window in windows} == {(min(8, size[0]), min(10, size[1]))}
    seen = torch.zeros(size)
    for window in windows:
        window.cut(seen).add_(1)
    assert seen.min() >= 1


def test_cityscapes_at_769_has_eight_windows() -> None:
    """1025 x 2049 in crops of 769 every 513: two rows of four."""
    windows = list_windows((1025, 2049), Inference(mode="slide"))
    assert [(window.top, window.left) for window in windows] == [
        (top, left) for top in (0, 256) for left in (0, 513, 1026, 1280)
    ]


def test_whole_is_one_window() -> None:
    for size in ((20, 31), (2000, 3100)):
        assert list_windows(size, Inference()) == (Window(0, 0, *size),)


@pytest.mark.parametrize(("crop", "count"), [((1, 1), 24), ((2, 1), 12), ((1, 2), 12)])
def test_windows_may_lie_side_by_side_and_be_a_pixel_wide(crop: Size, count: int) -> None:
    assert len(set(list_windows((4, 6), Inference("slide", crop, stride=crop)))) == count


def test_a_view_with_a_side_below_the_crop_may_be_seen_whole() -> None:
    whole = replace(SLIDE, below_crop="whole")
    for size in ((7, 25), (25, 9)):
        assert list_windows(size, whole) == (Window(0, 0, *size),)
    for size in ((8, 25), (25, 10)):
        assert list_windows(size, whole) == list_windows(size, SLIDE), "a crop high, or wide, is not below it"


def test_views_are_scale_by_scale_with_the_mirror_image_second() -> None:
    preprocessing = Preprocessing(scale=(40, 20), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    views = list_views((10, 20), preprocessing, Inference(scales=(0.5, 1.0), flip=True))
    assert [(view.size, view.flipped) for view in views] == [
        ((10, 20), False),
        ((10, 20), True),
        ((20, 40), False),
        ((20, 40), True),
    ]
    assert [view.flipped for view in list_views((10, 20), preprocessing, Inference())] == [False]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("below_crop", ["shorten", "pad", "whole"])
def test_passes_are_counted_as_they_are_listed(mode: Mode, below_crop: BelowCrop, flip: bool) -> None:
    preprocessing = Preprocessing(scale=(40, 20), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    inference = Inference(mode, (8, 10), (5, 7), (0.25, 1.0, 1.6), flip, below_crop)
    for original in ((10, 20), (20, 10), (1, 90), (7, 7)):
        views = list_views(original, preprocessing, inference)
        assert count_passes(original, preprocessing, inference) == sum(len(view.windows) for view in views)


@pytest.mark.parametrize("align_corners", [False, True])
def test_overlapping_windows_are_averaged(align_corners: bool) -> None:
    view = View((13, 17), False, list_windows((13, 17), SLIDE))
    parts = [torch.randn(3, 2, 2) for _ in view.windows]
    merged = spread(place_windows(parts, view, view.size, align_corners=align_corners))
    resized = [F.interpolate(part[None], (8, 10), mode="bilinear", align_corners=align_corners)[0] for part in parts]
    for row in range(13):
        for column in range(17):
            seen = [
                part[:, row - window.top, column - window.left]
                for part, window in zip(resized, view.windows, strict=True)
                if window.top <= row < window.bottom and window.left <= column < window.right
            ]
            torch.testing.assert_close(merged[:, row, column], torch.stack(seen).mean(0))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("original", [(13, 17), (9, 30), (31, 8)])
def test_windows_are_averaged_mirrored_back_and_then_resized(
    original: Size, flipped: bool, align_corners: bool
) -> None:
    view = View((13, 17), flipped, list_windows((13, 17), SLIDE))
    parts = [torch.randn(3, 4, 5) for _ in view.windows]
    whole = spread(place_windows(parts, replace(view, flipped=False), view.size, align_corners=align_corners))
    whole = whole.flip(2) if flipped else whole
    resized = F.interpolate(whole[None], original, mode="bilinear", align_corners=align_corners)[0]
    got = spread(place_windows(parts, view, original, align_corners=align_corners))
    torch.testing.assert_close(got, resized, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("original", [(1, 1), (1, 2), (2, 1), (1, 3), (3, 2)])
def test_an_image_of_few_pixels_has_none_in_most_windows(original: Size, align_corners: bool) -> None:
    size, slide = (100, 200), Inference("slide", crop=(30, 30), stride=(20, 20))
    view = View(size, False, list_windows(size, slide))
    parts = [torch.randn(3, 4, 4) for _ in view.windows]
    whole = spread(place_windows(parts, view, size, align_corners=align_corners))
    resized = F.interpolate(whole[None], original, mode="bilinear", align_corners=align_corners)[0]
    got = spread(place_windows(parts, view, original, align_corners=align_corners))
    torch.testing.assert_close(got, resized, atol=1e-5, rtol=1e-5)
    ids, _ = merge_views([parts], [view], original, align_corners=align_corners)
    assert torch.equal(ids.long(), resized.argmax(0))


def test_windows_of_several_views_are_decided_as_their_whole_maps_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the blocks; sums of products of one block's size round apart from another's, so few ids may differ."""
    views = [View((13, 17), flipped, list_windows((13, 17), SLIDE)) for flipped in (False, True)]
    parts = [[3 * torch.randn(4, 4, 5) for _ in view.windows] for view in views]
    maps = [
        spread(place_windows(part, view, (19, 23), align_corners=False))
        for part, view in zip(parts, views, strict=True)
    ]
    mean = torch.stack([one.softmax(0) for one in maps]).mean(0)
    for elements in (1, 300, 1 << 20):
        monkeypatch.setitem(upsample.BLOCK_ELEMENTS, "cpu", elements)
        monkeypatch.setattr(upsample, "MIN_ROWS", 1)
        monkeypatch.setattr(upsample, "CHUNK_ELEMENTS", 4 * elements)
        ids, confidence = merge_views(parts, views, (19, 23), align_corners=False)
        best, second = mean.topk(2, dim=0).values
        assert ((best - second)[ids != mean.argmax(0)] < 1e-5).all()
        torch.testing.assert_close(confidence.float() / 255, best, atol=0.5 / 255 + 1e-5, rtol=0)


def test_a_view_seen_whole_may_be_resized_once_one_in_windows_is_resized_twice() -> None:
    size, original = (13, 17), (19, 23)
    part, whole = torch.randn(3, 4, 5), View(size, False, (Window(0, 0, *size),))
    at_once = F.interpolate(part[None], original, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(spread(place_windows([part], whole, original, "once", align_corners=False)), at_once)
    view = View(size, False, list_windows(size, SLIDE))
    parts = [torch.randn(3, 4, 5) for _ in view.windows]
    once, twice = (place_windows(parts, view, original, how, align_corners=False) for how in ("once", "twice"))
    torch.testing.assert_close(spread(once), spread(twice))


@pytest.mark.parametrize("align_corners", [False, True])
def test_one_view_is_resized_twice_and_then_decided(align_corners: bool) -> None:
    logits, view = torch.randn(5, 4, 5), View((32, 40), False, (Window(0, 0, 32, 40),))
    ids, confidence = merge_views([[logits]], [view], (50, 61), align_corners=align_corners)
    expected = upsample_argmax(logits, (32, 40), (50, 61), align_corners=align_corners)
    assert torch.equal(ids, expected[0])
    assert torch.equal(confidence, expected[1])


def test_several_views_are_mirrored_back_and_their_softmaxes_averaged() -> None:
    views = [View((8, 10), flipped, (Window(0, 0, 8, 10),)) for flipped in (False, True)]
    plain, mirrored = torch.randn(5, 8, 10), torch.randn(5, 8, 10)
    ids, confidence = merge_views([[plain], [mirrored]], views, (8, 10), align_corners=False)
    mean = (plain.softmax(0) + mirrored.flip(2).softmax(0)) / 2
    assert torch.equal(ids, mean.argmax(0).to(torch.uint8))
    torch.testing.assert_close(confidence.float() / 255, mean.max(0).values, atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mode": "tiles"}, "mode is 'tiles'; there are whole, slide"),
        ({"below_crop": "grow"}, "below_crop is 'grow'; there are shorten, pad, whole"),
        ({"upsampling": "nearest"}, "upsampling is 'nearest'"),
        ({"average": "votes"}, "average is 'votes'"),
        ({"mode": "slide", "crop": (0, 8)}, "must be positive"),
        ({"mode": "slide", "crop": (8, 8), "stride": (9, 8)}, "would leave gaps"),
        ({"mode": "slide", "crop": (8, 8), "stride": (8, 9)}, "would leave gaps"),
        ({"scales": ()}, "at least one"),
        ({"scales": (1.0, float("nan"))}, "all positive"),
        ({"scales": (float("inf"),)}, "all positive"),
        ({"scales": (0.0,)}, "all positive"),
        ({"scales": (-1.0,)}, "all positive"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Inference(**fields)  # type: ignore[arg-type]
