"""An upload, decoded once for all the models that are to segment it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from copy import copy

from app.api.deadline import until
from app.api.dependencies import Services
from app.api.inference import choose_inference
from app.api.schemas import SegmentQuery
from app.engine.prepare import check_passes, prepare
from app.engine.staging import Image
from app.errors import ServiceError
from app.imaging import Array, decode
from app.timings import Timings
from models import ModelSpec

Prepared = list[Image] | ServiceError


class Picture:
    """What came in. Decoded it can be a hundred times as large: that array is let go as soon as it has been resized."""

    def __init__(
        self,
        services: Services,
        body: bytes,
        query: SegmentQuery,
        timings: Timings,
        check: Callable[[tuple[int, int]], object] = lambda size: None,
    ) -> None:
        """
        Args:
            timings: of the request, which get the stage `decode`
            check: called with width and height before any pass; its ServiceError is that of every model
        """
        self.body = body
        self._services, self._query, self._timings, self._check = services, query, timings, check
        self._asked: list[ModelSpec] = []
        self._decoding: asyncio.Future[list[Prepared]] | None = None
        self._waiting = 0

    async def prepared(self, spec: ModelSpec, deadline: float) -> list[Image]:
        """The passes of one model. All models that ask in the same turn of the event loop share one decoding.

        Raises:
            UnsupportedImage, TooLarge, MalformedBody: as `app.imaging.decode`
            ServiceError: as `check`
            InvalidParameter: more passes than the limit, or larger ones
            DeadlineExceeded
        """
        place = len(self._asked)
        self._asked.append(spec)
        if self._decoding is None or place == 0:
            self._decoding = asyncio.ensure_future(self._decode())
        decoding = self._decoding
        self._waiting += 1
        try:
            async with until(deadline, "the image was decoded"):
                # Shielded: who gives up must not take it from the others.
                found = (await asyncio.shield(decoding))[place]
        finally:
            self._waiting -= 1
            if not self._waiting:
                decoding.cancel()  # it may not have begun yet
                self._decoding = None  # else the picture and the frames of its error would hold each other
        if isinstance(found, ServiceError):
            raise found
        return found

    async def _decode(self) -> list[Prepared]:
        asked, self._asked = self._asked, []
        return await self._services.in_codec_thread(self._timings.timed("decode", self._prepare_all), asked)

    def _prepare_all(self, specs: list[ModelSpec]) -> list[Prepared]:
        try:
            image = decode(self.body, self._services.settings.max_image_pixels)
            self._check((image.shape[1], image.shape[0]))
        except ServiceError as exc:
            # A copy has no frames: they hold the picture, which would hold them until garbage is looked for.
            return [copy(exc)] * len(specs)
        return [self._prepare(image, spec) for spec in specs]

    def _prepare(self, image: Array, spec: ModelSpec) -> Prepared:
        inference, settings = choose_inference(self._query, spec.inference), self._services.settings
        size = image.shape[0], image.shape[1]
        try:
            check_passes(size, spec, inference, len(self.body), settings.max_passes, settings.max_queue_bytes)
        except ServiceError as exc:
            return copy(exc)
        return prepare(image, spec, inference, self._query.attention)
