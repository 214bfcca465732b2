"""An image as the passes that it needs."""

from __future__ import annotations

import math

import torch

from app.engine.assembly import Assembly
from app.engine.staging import Image
from app.errors import InvalidParameter
from app.imaging import Array
from models import ModelSpec
from models.ops.upsample import Size
from models.transforms import pad, resize
from models.windows import Inference, View, count_passes, list_views

CHANNELS = 3


def check_passes(
    original: Size, spec: ModelSpec, inference: Inference, held: int, max_passes: int, max_bytes: int
) -> None:
    """Before an image [H, W] is resized for all its passes, see that there is room for them in an empty queue.

    One that needs no more than one is taken by an empty queue whatever its size.

    Args:
        held: bytes that it holds beside its passes

    Raises:
        InvalidParameter: more passes than one limit, or more bytes than the other: no later time would help
    """
    passes = count_passes(original, spec.preprocessing, inference)
    if passes > max_passes:
        detail = f"an image of {original[1]}x{original[0]} would need {passes} passes; the limit is {max_passes}"
        raise InvalidParameter(detail, limit=max_passes, actual=passes)
    views = list_views(original, spec.preprocessing, inference)
    nbytes = held + sum(len(view.windows) * math.prod(view.input_size) * CHANNELS for view in views)
    if passes > 1 and nbytes > max_bytes:
        detail = f"an image of {original[1]}x{original[0]} would take {nbytes} bytes with its passes; the limit is"
        raise InvalidParameter(f"{detail} {max_bytes}", limit=max_bytes, actual=nbytes)


def prepare(image: Array, spec: ModelSpec, inference: Inference, wants_traces: bool) -> list[Image]:
    """An image [H, W, 3] as one image for each of its passes, at the network's size.

    Of several passes, traces are kept of the one that sees the whole image as usual, if there is one.
    """
    pixels = torch.from_numpy(image)
    original = pixels.shape[0], pixels.shape[1]
    views = list_views(original, spec.preprocessing, inference)
    if len(views) == len(views[0].windows) == 1 and _is_plain(views[0], original, inference):
        resized = resize(pixels, views[0].size, antialias=spec.preprocessing.antialias)
        return [Image(resized, original, wants_traces)]
    assembly = Assembly(views, original, inference)
    images: list[Image] = []
    for view in views:
        resized = resize(pixels, view.size, antialias=spec.preprocessing.antialias)
        resized = resized.flip(1) if view.flipped else resized
        usual = not view.flipped and view.size == view.input_size == spec.preprocessing.input_size(original)
        for window in view.windows:
            cut, inside = window.cut(resized), None
            if window.size != view.input_size:
                cut, inside = pad(cut, view.input_size), window.size
            images.append(Image(cut, original, wants_traces and usual, assembly, len(images), inside))
    return images


def _is_plain(view: View, original: Size, inference: Inference) -> bool:
    """Whether a single view's mask needs nothing but the usual two resizes."""
    resized_twice = inference.upsampling == "twice" or view.size == original
    return not view.flipped and view.size == view.input_size and resized_twice


def expected_passes(spec: ModelSpec, inference: Inference, max_passes: int) -> int:
    """How many passes an image of the usual proportions needs: all that can be known before one is read.

    Raises:
        InvalidParameter: any image would need more than the limit
    """
    views = len(inference.scales) * (2 if inference.flip else 1)
    if views > max_passes:
        detail = f"scales and mirror images make {views} passes at least; the limit is {max_passes}"
        raise InvalidParameter(detail, limit=max_passes, actual=views)
    long_side, short_side = max(spec.preprocessing.scale), min(spec.preprocessing.scale)
    # One of other proportions may need fewer; what needs more than the limit is refused once it is decoded.
    return min(max_passes, count_passes((short_side, long_side), spec.preprocessing, inference))
