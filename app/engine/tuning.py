"""Makes a loaded network fast on its device, and makes sure that it still is the same network."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import torch
from torch import Tensor

from app.engine.prepare import prepare
from app.imaging import decode
from models import ModelSpec, Segmentor
from models.fused import Threads, can_fuse, fuse_convolutions, has_bfloat16
from models.ops.scripting import can_script
from models.ops.upsample import upsample_argmax
from models.precision import lower_precision
from models.scripted import script_stages
from models.strips import run_in_strips
from models.transforms import normalize

log = logging.getLogger(__name__)

SAMPLE = Path(__file__).parents[1] / "web" / "sample.jpg"
LEAST_AGREEMENT = 0.9995  # of the sample's pixels, so that bfloat16 may stand for float32


@torch.inference_mode()
def tune(segmentor: Segmentor, spec: ModelSpec, *, reduced: bool, threads: Threads) -> Segmentor:
    """The network to run in place of one that is on the CPU, its batch norms folded.

    Args:
        threads: that a pass computes on beside others, and alone
        reduced: bfloat16 in part, if this CPU has it and the sample picture's mask stays the same
    """
    if not can_fuse():
        log.warning("%s: torch %s has no fused convolutions; the plain ones are slower", spec.name, torch.__version__)
        return segmentor
    image = _sample(spec)
    if reduced and has_bfloat16():
        lower = copy.deepcopy(segmentor)
        make_fast(lower, image, threads, reduced=True)
        agreement = (_mask(lower, image) == _mask(segmentor, image)).double().mean().item()
        if agreement >= LEAST_AGREEMENT:
            log.info("%s: bfloat16 in part, %.3f %% of the sample as in float32", spec.name, 100 * agreement)
            return lower
        log.info("%s: float32; bfloat16 would give %.3f %% of the sample the same class", spec.name, 100 * agreement)
    make_fast(segmentor, image, threads, reduced=False)
    return segmentor


@torch.inference_mode()
def tune_on_cuda(segmentor: Segmentor, spec: ModelSpec) -> Segmentor:
    """The network to run in place of one whose batch norms are folded: as much of it in bfloat16 as it bears.

    That is all of it, or all behind its first stage, whichever leaves the sample picture's mask the same first.
    """
    image = _sample(spec).to(next(segmentor.parameters()).device)
    mask = _mask(segmentor, image)
    for first in ("stem", "layer2"):
        lower = copy.deepcopy(segmentor)
        lower_precision(lower, first)
        agreement = (_mask(lower, image) == mask).double().mean().item()
        if agreement >= LEAST_AGREEMENT:
            log.info("%s: bfloat16 from %s on, %.3f %% of the sample as in float32", spec.name, first, 100 * agreement)
            return lower
    log.info("%s: float32; bfloat16 would give %.3f %% of the sample the same class", spec.name, 100 * agreement)
    return segmentor


def make_fast(segmentor: Segmentor, image: Tensor, threads: Threads, *, reduced: bool) -> None:
    """Have a network on the CPU, its batch norms folded, run as the service runs it, in place."""
    fuse_convolutions(segmentor, image, reduced=reduced, threads=threads)
    run_in_strips(segmentor)
    if can_script():
        script_stages(segmentor)


def _sample(spec: ModelSpec) -> Tensor:
    """[1, 3, H, W] as the model is usually given it."""
    first, *_ = prepare(decode(SAMPLE.read_bytes(), 1 << 30), spec, spec.inference, wants_traces=False)
    return normalize(first.pixels.unsqueeze(0), spec.preprocessing)


def _mask(segmentor: Segmentor, image: Tensor) -> Tensor:
    size = image.shape[2], image.shape[3]
    return upsample_argmax(segmentor(image).logits[0], size, size, align_corners=segmentor.align_corners)[0]
