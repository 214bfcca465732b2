"""One image to its mask: at the image's own size, and what the parts give when put together by hand."""

from collections.abc import Callable

import pytest
import torch

from models.inference import segment_image
from models.ops.upsample import upsample_argmax
from models.segmentor import Segmentor
from models.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Size, normalize, resize

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
