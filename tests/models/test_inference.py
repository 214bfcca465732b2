"""One image to its mask: at the image's own size, and what the parts give when put together by hand."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from models.heads.fcn import Head
from models.inference import segment_image
from models.ops.upsample import upsample_argmax
from models.segmentor import Segmentor
from models.traces import Trace
from models.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Size, normalize, resize
from models.windows import Inference

PREPROCESSING = Preprocessing(scale=(48, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD)
# Size of the image, and that of the network's input.
SIZES = [
    pytest.param((61, 97), (30, 48), id="down"),
    pytest.param((97, 61), (48, 30), id="down, upright"),
    pytest.param((20, 31), (31, 48), id="up"),
    pytest.param((32, 48), (32, 48), id="as it is"),
]


def random_image(size: Size) -> torch.Tensor:
    return torch.randint(256, (*size, 3), dtype=torch.uint8)


@pytest.fixture
def segmentor(tiny_segmentor: Callable[[str, str], Segmentor]) -> Segmentor:
    """None of its classes wins everywhere."""
    segmentor = tiny_segmentor("mobilenet", "ccnet")
    bias = segmentor.decode_head.conv_seg.bias
    assert bias is not None
    with torch.no_grad():
        bias -= segmentor(normalize(random_image((32, 48)).unsqueeze(0), PREPROCESSING)).logits.mean((0, 2, 3))
    return segmentor


@pytest.mark.parametrize(("original", "input_size"), SIZES)
def test_mask_and_confidence_have_the_image_s_size(original: Size, input_size: Size, segmentor: Segmentor) -> None:
    seen: list[Size] = []
    segmentor.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(tuple(arguments[0].shape[2:])))
    ids, confidence = segment_image(segmentor, random_image(original), PREPROCESSING)
    assert seen == [input_size]
    assert (ids.shape, confidence.shape) == (original, original)
    assert (ids.dtype, confidence.dtype) == (torch.uint8, torch.uint8)
    assert ids.max() < segmentor.num_classes
    assert confidence.min() >= 255 // segmentor.num_classes


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("original", "input_size"), SIZES)
def test_answer_is_that_of_the_parts(
    original: Size, input_size: Size, align_corners: bool, segmentor: Segmentor
) -> None:
    image = random_image(original)
    segmentor.align_corners = align_corners
    with torch.inference_mode():
        logits = segmentor(normalize(resize(image, input_size).unsqueeze(0), PREPROCESSING)).logits[0]
        ids, confidence = upsample_argmax(logits, input_size, original, align_corners=align_corners)
    assert ids.min() < ids.max()
    answer, its_confidence = segment_image(segmentor, image, PREPROCESSING)
    assert torch.equal(answer, ids)
    assert torch.equal(its_confidence, confidence)


def test_image_is_left_as_it_is(segmentor: Segmentor) -> None:
    image = random_image((32, 48))
    before = image.clone()
    segment_image(segmentor, image, PREPROCESSING)
    assert torch.equal(image, before)


def different(one: Tensor, other: Tensor) -> float:
    """Share of the pixels; where two classes are as likely, rounding decides."""
    return (one != other).float().mean().item()


def test_every_scale_and_its_mirror_image_are_seen(segmentor: Segmentor) -> None:
    seen: list[Tensor] = []
    segmentor.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    segment_image(segmentor, random_image((32, 48)), PREPROCESSING, Inference(scales=(0.5, 1.0, 1.25), flip=True))
    assert [tuple(batch.shape[2:]) for batch in seen] == [(16, 24)] * 2 + [(32, 48)] * 2 + [(40, 60)] * 2
    assert torch.equal(seen[3], seen[2].flip(3))


@pytest.mark.parametrize("scales", [(1.0,), (0.75, 1.0, 1.5)])
@pytest.mark.parametrize("original", [(32, 48), (61, 97)])
def test_mirrored_image_has_the_mirrored_answer(
    original: Size, scales: tuple[float, ...], segmentor: Segmentor
) -> None:
    image = random_image(original)
    ids = segment_image(segmentor, image, PREPROCESSING, Inference(scales=scales, flip=True))[0]
    mirrored = segment_image(segmentor, image.flip(1), PREPROCESSING, Inference(scales=scales, flip=True))[0]
    assert different(mirrored.flip(1), ids) < 0.005
    plain = segment_image(segmentor, image.flip(1), PREPROCESSING, Inference(scales=scales, flip=False))[0]
    assert different(plain.flip(1), ids) > 0.02  # so the flip it is that makes them alike


class Sided(nn.Module):
    """Features that are the same for every image, and differ between its left and right half."""

    def __init__(self, left: list[float], right: list[float]) -> None:
        super().__init__()
        self.sides = nn.Parameter(torch.tensor([left, right]).T[None, :, None])

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"c4": self.sides}


class Passing(Head):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, num_classes)
        self.conv_seg.weight = nn.Parameter(torch.eye(num_classes)[:, :, None, None])
        self.conv_seg.bias = None

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Trace, ...]]:
        return features["c4"], ()


def test_probabilities_are_averaged_and_not_logits() -> None:
    left, right = [0.0, 2.0, -30.0], [10.0, 5.0, 10.5]
    both = torch.tensor([left, right])
    assert [int(mean.argmax()) for mean in (both.mean(0), both.softmax(1).mean(0))] == [0, 1]
    segmentor = Segmentor(Sided(left, right), Passing(3)).eval()
    image, preprocessing = random_image((1, 2)), Preprocessing((2, 1), IMAGENET_MEAN, IMAGENET_STD)
    assert segment_image(segmentor, image, preprocessing, Inference(scales=(1.0,), flip=False))[0].tolist() == [[1, 2]]
    assert segment_image(segmentor, image, preprocessing, Inference(scales=(1.0,), flip=True))[0].tolist() == [[1, 1]]
