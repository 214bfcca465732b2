"""POST /segment: an image in, its mask out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.requests import ClientDisconnect

from app.api.body import OPENAPI_BODY, announced_bytes, read_image
from app.api.dependencies import Services, ServicesDep
from app.api.disconnect import ClientLeft, while_connected
from app.api.errors import problems
from app.api.inference import choose_inference
from app.api.record import Record
from app.api.rendering import CONTENT, choose_format, render_file, render_json
from app.api.schemas import Format, SegmentQuery, SegmentReply
from app.engine.memory import outlive
from app.engine.prepare import expected_passes, prepare
from app.errors import DeadlineExceeded
from app.results import new_id
from app.timings import Timings

router = APIRouter()

CLIENT_CLOSED_REQUEST = 499  # nginx's number for it; seen in logs and metrics only


@router.post(
    "/segment",
    summary="Segment an image",
    response_model=SegmentReply,
    responses={
        200: {"content": CONTENT, "description": "The mask, in the format asked for."},
        **problems(400, 404, 406, 413, 415, 422, 429, 503, 504, 507),
    },
    openapi_extra=OPENAPI_BODY,
)
async def segment(
    request: Request,
    services: ServicesDep,
    query: Annotated[SegmentQuery, Query()],
    accept: Annotated[str | None, Header()] = None,
    x_request_timeout_seconds: Annotated[float | None, Header(gt=0, allow_inf_nan=False)] = None,
) -> Response:
    settings, caller = services.settings, request.state.request_id
    allowed = min(settings.request_timeout, x_request_timeout_seconds or settings.request_timeout)
    deadline = time.monotonic() + allowed
    wanted, media_type = choose_format(query.format, accept)
    spec = services.engine.models.model(query.model or settings.default_model).spec
    model, passes = spec.name, expected_passes(spec, choose_inference(query, spec.inference))
    timings = Timings()
    # For the request's line in the log, and its spans.
    request.state.noted, request.state.timings = {"model": model, "passes": passes}, timings
    # Too large comes before too busy: no later time would help.
    announced = announced_bytes(request, settings.max_body_bytes)
    services.engine.check_room(model, caller, announced, deadline, passes)
    try:
        with timings.stage("read"):
            body = await _read(request, settings.max_body_bytes, deadline)
        upload = Upload(body, model, caller, deadline, query, passes)
        render = partial(_render, wanted=wanted, media_type=media_type, query=query)
        record, content = await while_connected(request, _run(services, upload, timings, render))
    except (ClientLeft, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    services.metrics.stages(model, timings)
    return Response(content, media_type=media_type, headers=_headers(record, timings))


@dataclass(frozen=True)
class Upload:
    """What came in, and for whom."""

    body: bytes
    model: str
    caller: str
    deadline: float
    query: SegmentQuery
    passes: int


async def _read(request: Request, max_bytes: int, deadline: float) -> bytes:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await read_image(request, max_bytes)
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the whole body had come") from None


async def _run(
    services: Services, upload: Upload, timings: Timings, render: Callable[[Record, Timings], bytes]
) -> tuple[Record, bytes]:
    body, settings = upload.body, services.settings
    with services.engine.admitted(upload.model, upload.caller, len(body), upload.deadline, upload.passes) as job:
        spec = job.payload.loaded.spec
        try:
            async with asyncio.timeout(upload.deadline - time.monotonic()):
                images = await services.in_codec_thread(
                    timings.timed("decode", prepare),
                    body,
                    settings.max_image_pixels,
                    settings.max_passes,
                    spec,
                    choose_inference(upload.query, spec.inference),
                    upload.query.attention,
                )
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the image was decoded") from None
        segmentation = await services.engine.segment(job, images)
        timings.stages |= segmentation.timings.stages
        timings.modules, timings.batch_size = segmentation.timings.modules, segmentation.timings.batch_size

        def finish() -> tuple[Record, bytes]:
            record = Record(new_id(), spec, body, outlive(segmentation))
            record = replace(record, kept=record.nbytes <= services.results.max_bytes)
            return record, render(record, timings)

        record, content = await services.in_codec_thread(finish)
    if record.kept:
        services.results.put(record.id, record)
    return record, content


def _render(record: Record, timings: Timings, wanted: Format, media_type: str, query: SegmentQuery) -> bytes:
    if wanted != "json":
        with timings.stage("encode"):
            return render_file(record, wanted, media_type, query.alpha)
    with timings.stage("encode"):
        reply = render_json(record, query.parts)
    reply.timings_ms = timings.milliseconds()
    return reply.model_dump_json(by_alias=True, exclude_none=True).encode()


def _headers(record: Record, timings: Timings) -> dict[str, str]:
    headers = {"Server-Timing": timings.server_timing(), "Vary": "Accept"}
    if record.kept:
        headers["X-Result-Id"] = record.id
    if record.kept and record.segmentation.traces:
        headers["Link"] = f'</attention/{record.id}>; rel="attention"'
    return headers
