"""The real model as each peer runs it: the same functions and the same tuned network as in our worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from app.engine.tuning import tune
from app.imaging import Array, decode, encode_ids
from benchmarks.peers.pipeline import MAX_PIXELS, by_shape
from models import create_model, get_spec
from models.folding import fold_batch_norm
from models.ops.upsample import Size, upsample_argmax
from models.transforms import normalize, resize

MODEL = "ccnet-mobilenetv2-camvid"


class Image(NamedTuple):
    pixels: Tensor  # [h, w, 3] uint8 at the network's input size
    original: Size


class Network:
    def __init__(self, *, reduced: bool = False) -> None:
        spec, segmentor = get_spec(MODEL), create_model(MODEL)
        self._preprocessing = spec.preprocessing
        fold_batch_norm(segmentor)
        segmentor.use_channels_last()
        self._segmentor = tune(segmentor, spec, reduced=reduced, threads=(torch.get_num_threads(),) * 2)
        blank = torch.zeros(*self._preprocessing.input_size((360, 480)), 3, dtype=torch.uint8)
        for _ in range(3):
            self.predict([Image(blank, (360, 480))])

    def decode(self, body: bytes) -> Image:
        pixels = torch.from_numpy(decode(body, MAX_PIXELS))
        original = pixels.shape[0], pixels.shape[1]
        return Image(resize(pixels, self._preprocessing.input_size(original)), original)

    def predict(self, images: Sequence[Image]) -> list[Array]:
        return by_shape(images, lambda image: image.pixels.shape, self._run)

    def encode(self, mask: Array) -> bytes:
        return encode_ids(mask)

    @torch.inference_mode()
    def _run(self, images: Sequence[Image]) -> list[Array]:
        batch = normalize(torch.stack([image.pixels for image in images]), self._preprocessing)
        input_size, align_corners = (batch.shape[2], batch.shape[3]), self._segmentor.align_corners
        return [
            upsample_argmax(logits, input_size, image.original, align_corners=align_corners)[0].numpy()
            for logits, image in zip(self._segmentor(batch).logits, images, strict=True)
        ]
