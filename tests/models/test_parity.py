"""Against outputs of mmsegmentation 1.2.2, recorded with small networks of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.checkpoint import load_segmentor
from models.folding import fold_batch_norm
from models.ops.upsample import upsample_argmax
from models.segmentor import Segmentor
from models.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, normalize
from models.windows import Inference, View, Window, list_windows, merge_views, place_windows
from tests.models.ops.whole_map import spread
from tests.models.reference import logits_of


@dataclass(frozen=True)
class Case:
    name: str
    path: Path
    segmentor: Segmentor
    recorded: dict[str, Tensor]


@pytest.fixture(params=["tiny_ccnet", "tiny_ann", "tiny_nonlocal"])
def case(request: pytest.FixtureRequest, shared: Path) -> Case:
    folder = shared / "data" / "parity" / request.param
    with np.load(folder / "io.npz") as arrays:
        recorded = {name: torch.from_numpy(arrays[name]) for name in arrays}
    path = folder / "checkpoint.pth"
    return Case(request.param.removeprefix("tiny_"), path, load_segmentor(path), recorded)


def assert_parity(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    assert (got.argmax(1) != want.argmax(1)).float().mean() <= 1e-3


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("size", ["even", "odd"])
def test_logits_are_mmsegmentations(case: Case, size: str, folded: bool) -> None:
    if folded:
        fold_batch_norm(case.segmentor)
    with torch.no_grad():
        logits = case.segmentor(case.recorded[f"x_{size}"]).logits
    assert_parity(logits, case.recorded[f"logits_{size}"])


@pytest.mark.parametrize("size", ["even", "odd"])
def test_the_reference_of_our_tests_is_mmsegmentations_too(case: Case, size: str) -> None:
    state = torch.load(case.path, weights_only=True)["state_dict"]
    assert_parity(logits_of(case.name, state, case.recorded[f"x_{size}"]), case.recorded[f"logits_{size}"])


def test_masks_are_mmsegmentations(case: Case) -> None:
    labels = case.recorded["labels_whole_even"][0]
    with torch.no_grad():
        logits = case.segmentor(case.recorded["x_even"]).logits[0]
    ids, _ = upsample_argmax(logits, (256, 320), (256, 320), align_corners=False)
    assert (ids != labels).float().mean() <= 1e-3


@pytest.mark.parametrize(
    ("recorded", "align_corners"), [("whole_even_s4", False), ("whole_even_align_corners_s4", True)]
)
def test_masks_follow_align_corners(case: Case, recorded: str, align_corners: bool) -> None:
    want = case.recorded[recorded][0].argmax(0)
    logits = case.recorded["logits_even"][0]
    ids, _ = upsample_argmax(logits, (256, 320), (256, 320), align_corners=align_corners)
    other, _ = upsample_argmax(logits, (256, 320), (256, 320), align_corners=not align_corners)
    assert (ids[::4, ::4] != want).float().mean() <= 1e-3
    assert (other[::4, ::4] != want).float().mean() > 1e-3


def every_fourth(probabilities: Tensor) -> Tensor:
    return probabilities[..., ::4, ::4]


def run_view(segmentor: Segmentor, image: Tensor, view: View) -> list[Tensor]:
    """Logits of each window of a view of a normalised image [3, H, W] of the view's size."""
    image = image.flip(2) if view.flipped else image
    with torch.no_grad():
        return [
            segmentor(window.cut(image.permute(1, 2, 0)).permute(2, 0, 1)[None]).logits[0] for window in view.windows
        ]


def test_sliding_windows_are_mmsegmentations(case: Case) -> None:
    inference = Inference(mode="slide", crop=(128, 160), stride=(85, 107))
    view = View((256, 320), False, list_windows((256, 320), inference))
    logits = run_view(case.segmentor, case.recorded["x_even"][0], view)
    merged = spread(place_windows(logits, view, view.size, align_corners=False))
    assert_parity(every_fourth(merged)[None], case.recorded["slide_even_s4"])
    ids, _ = merge_views([logits], [view], view.size, align_corners=False)
    assert (ids != case.recorded["labels_slide_even"][0]).float().mean() <= 1e-3


def test_scales_and_flip_are_mmsegmentations(case: Case) -> None:
    """The reference resized its input as floats, so the views are made here; their merging is ours."""
    image, probabilities = case.recorded["x_even"], []
    for scale in (0.5, 1.0, 1.5):
        size = (int(256 * scale), int(320 * scale))
        scaled = F.interpolate(image, size, mode="bilinear", align_corners=False)[0]
        for flipped in (False, True):
            view = View(size, flipped, (Window(0, 0, *size),))
            logits = run_view(case.segmentor, scaled, view)
            patches = place_windows(logits, view, (256, 320), align_corners=False)
            probabilities.append(spread(patches).softmax(0))
    mean = torch.stack(probabilities).mean(0)
    assert_parity(every_fourth(mean)[None], case.recorded["msflip_probs_even_s4"])


def test_preprocessing_is_mmsegmentations(case: Case) -> None:
    rgb = case.recorded["pre_u8_bgr"].flip(-1)
    got = normalize(rgb[None], Preprocessing(scale=(2048, 1024), mean=IMAGENET_MEAN, std=IMAGENET_STD))
    torch.testing.assert_close(got, case.recorded["pre_out"], rtol=1e-5, atol=1e-5)
