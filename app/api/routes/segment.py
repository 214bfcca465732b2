"""POST /segment: an image in, its mask out."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import Field
from starlette.requests import ClientDisconnect

from app.api.body import OPENAPI_BODY, read_image
from app.api.dependencies import Services, ServicesDep
from app.api.disconnect import ClientLeft, while_connected
from app.api.errors import problems
from app.api.record import Record
from app.api.rendering import IMAGE_CONTENT, choose_format, render_image, render_json
from app.api.schemas import ResultQuery, SegmentReply
from app.engine.memory import outlive
from app.engine.worker import prepare
from app.errors import DeadlineExceeded
from app.results import new_id
from app.timings import Timings

router = APIRouter()

CLIENT_CLOSED_REQUEST = 499  # nginx's number for it; seen in logs and metrics only


class SegmentQuery(ResultQuery):
    model: str | None = Field(None, description="Name of a model, of those at /models; else the default.")
    attention: bool = Field(True, description="Keep what /attention/{id} needs.")


@router.post(
    "/segment",
    summary="Segment an image",
    response_model=SegmentReply,
    responses={
        200: {"content": IMAGE_CONTENT, "description": "The mask, in the format asked for."},
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
    settings = services.settings
    allowed = min(settings.request_timeout, x_request_timeout_seconds or settings.request_timeout)
    deadline = asyncio.get_running_loop().time() + allowed
    wanted, media_type = choose_format(query.format, accept)
    model = services.engine.spec(query.model or settings.default_model).name
    services.engine.check_room(model)
    timings = Timings()
    try:
        with timings.stage("read"):
            body = await _read(request, settings.max_body_bytes, deadline)
        record = await while_connected(request, _run(services, timings, body, model, deadline, query.attention))
    except (ClientLeft, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    content: bytes | SegmentReply
    if wanted == "json":
        content = await services.in_codec_thread(timings.timed("encode", render_json), record)
    else:
        render = timings.timed("encode", render_image)
        content = await services.in_codec_thread(render, record, wanted, media_type, query.alpha)
    services.metrics.stages(model, timings)
    if isinstance(content, SegmentReply):
        content.timings_ms = timings.milliseconds()
        content = content.model_dump_json(by_alias=True, exclude_none=True).encode()
    return Response(content, media_type=media_type, headers=_headers(record, timings))


async def _read(request: Request, max_bytes: int, deadline: float) -> bytes:
    try:
        async with asyncio.timeout_at(deadline):
            return await read_image(request, max_bytes)
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the whole body had come") from None


async def _run(
    services: Services, timings: Timings, body: bytes, model: str, deadline: float, wants_traces: bool
) -> Record:
    spec = services.engine.spec(model)
    try:
        async with asyncio.timeout_at(deadline):
            image = await services.in_codec_thread(
                timings.timed("decode", prepare),
                body,
                services.settings.max_image_pixels,
                spec.preprocessing,
                wants_traces,
            )
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the image was decoded") from None
    segmentation = await services.engine.segment(model, image, deadline, len(body))
    timings.stages |= segmentation.timings.stages
    timings.modules = segmentation.timings.modules
    record = Record(new_id(), spec, body, await services.in_codec_thread(outlive, segmentation))
    kept = services.results.put(record.id, record)
    return record if kept else replace(record, kept=False)


def _headers(record: Record, timings: Timings) -> dict[str, str]:
    headers = {"Server-Timing": timings.server_timing(), "Vary": "Accept"}
    if record.kept:
        headers["X-Result-Id"] = record.id
    if record.kept and record.segmentation.traces:
        headers["Link"] = f'</attention/{record.id}>; rel="attention"'
    return headers
