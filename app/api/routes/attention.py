"""/attention/{id}: where a pixel or a class looked, or who looked at it."""

from __future__ import annotations

import hashlib
import time
from functools import partial
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app import __version__
from app.api.attention import Compose, Direction, Question, attention_map, is_slow
from app.api.attention_views import Look, Norm, describe, render_heat, to_npy, to_reply
from app.api.deadline import until
from app.api.dependencies import ServicesDep
from app.api.derived import Derived
from app.api.disconnect import CLIENT_CLOSED_REQUEST, ClientLeft, while_connected
from app.api.errors import problems
from app.api.headers import CACHED, TIMINGS
from app.api.negotiation import negotiate
from app.api.parameters import describe_query, from_query
from app.api.record import Record
from app.api.rendering import IMAGE_CONTENT, IMAGE_FORMATS, JSON, fitting_type, image_type
from app.api.routes.results import find
from app.api.schemas import AttentionInfo, AttentionReply
from app.colormaps import ColormapName
from app.timings import Timings
from models.traces import Block

router = APIRouter()

NPY = "application/x-npy"  # not registered; what NumPy's own users send
AttentionFormat = Literal["overlay", "png", "json", "npy"]
OFFERS: dict[str, AttentionFormat] = {
    "image/png": "overlay",
    "image/jpeg": "overlay",
    "image/webp": "overlay",
    JSON: "json",
    NPY: "npy",
}


class AttentionQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    x: int | None = Field(None, description="Column of the pixel, from 0, in the upright image; or give `class`.")
    y: int | None = Field(None, description="Row of the pixel, from 0, in the upright image.")
    of_class: str | None = Field(
        None,
        alias="class",
        description="In place of a point: the average over this class's pixels, by name or id.",
        max_length=1000,  # Python reads no number of more than 4300 digits
    )
    block: Block | None = Field(None, description="Attention block; else the last one.")
    step: Literal["1", "2", "3", "composed"] | None = Field(
        None, description="Pass of criss-cross attention; else the last, or of two both composed."
    )
    compose: Compose | None = Field(None, description="Product of both steps, or with gamma and residual.")
    level: Literal["all", "1", "3", "6", "8"] = Field("all", description="Pool scale of a pyramid block.")
    direction: Direction = Field("from", description="What it looks at, or (`to`) who looks at it.")
    format: AttentionFormat | None = Field(None, description="Else `Accept` decides, and the overlay is the default.")
    clip: float = Field(
        99, gt=0, le=100, description="Percentile of the weights above 0 at which the colours end; the paper clips too."
    )
    norm: Norm = Field("max", description="Weights to colours: in proportion, by logarithm, by rank, by share of sum.")
    colormap: ColormapName = Field("inferno", description="Colours from no weight to the most.")
    alpha: float = Field(0.6, ge=0, le=1, description="Weight of the colours in an overlay.")
    interp: Literal["bilinear", "nearest"] = Field("bilinear", description="Between the cells of a picture.")
    size: Literal["image", "map"] = Field("image", description="Of a picture: the image's, or a pixel for each cell.")
    top: int = Field(10, ge=0, le=1000, description="How many of the heaviest cells JSON lists.")
    weights: bool = Field(True, description="Whether JSON has all weights.")

    @model_validator(mode="after")
    def _about_one_thing(self) -> Self:
        if (self.x is None) != (self.y is None) or (self.x is None) == (self.of_class is None):
            raise ValueError("give x and y, or class")
        return self

    def question(self) -> Question:
        about = (self.x, self.y) if self.x is not None and self.y is not None else self.of_class or ""
        return Question(about, self.block, self.step, self.compose, self.level, self.direction)

    def look(self) -> Look:
        alpha = self.alpha if self.format != "png" else None
        smooth, small = self.interp == "bilinear", self.size == "map"
        return Look(self.clip, self.norm, self.colormap, alpha, smooth, small)


@router.get(
    "/attention/{result_id}",
    summary="Where a pixel or a class looked, or who looked at it",
    response_model=AttentionReply,
    responses={
        200: {
            "content": {**IMAGE_CONTENT, NPY: {}},
            "headers": CACHED | TIMINGS,
            "description": "The weights, as a picture or as numbers.",
        },
        304: {"headers": CACHED, "description": "As the `ETag` in `If-None-Match`."},
        **problems(404, 406, 422, 429, 503, 504),
    },
    openapi_extra={"parameters": describe_query(AttentionQuery)},
)
async def get_attention(
    result_id: str,
    request: Request,
    services: ServicesDep,
    query: Annotated[AttentionQuery, Depends(from_query(AttentionQuery))],
    accept: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    record = find(services, result_id)
    media_type = _media_type(query.format, accept)
    if query.size == "image":
        media_type = fitting_type(media_type, accept, record.size)
    # An answer never changes, so the question names it.
    tag = _tag(result_id, query, media_type)
    headers = {"Vary": "Accept", "ETag": tag, "Cache-Control": f"private, max-age={services.settings.result_ttl:.0f}"}
    known = [] if if_none_match is None else [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    if tag in known:
        return Response(status_code=304, headers=headers)
    timings = request.state.timings = Timings()
    render = partial(_render, record, query, media_type, services.derived, timings)
    try:
        async with until(time.monotonic() + services.settings.request_timeout, "the map was made"):
            if is_slow(record, query.question(), services.derived):
                content = await while_connected(request, services.slow_lane.run(render))
            else:
                content = await services.in_codec_thread(render)
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if result_id not in services.results:  # it went meanwhile, and what was made for this answer came too late to go
        services.derived.forget(result_id)
    if known == ["*"]:  # any answer, and only now is it sure that the question has one
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers={**headers, "Server-Timing": timings.server_timing()})


@router.get(
    "/attention/{result_id}/info",
    summary="Which attention a result has",
    responses=problems(404, 422),
)
async def get_attention_info(result_id: str, services: ServicesDep) -> AttentionInfo:
    return describe(find(services, result_id))


def _media_type(wanted: AttentionFormat | None, accept: str | None) -> str:
    if wanted is None:
        return negotiate(accept, tuple(OFFERS))
    return {"json": JSON, "npy": NPY, "png": "image/png"}.get(wanted) or image_type(accept)


def _tag(result_id: str, query: AttentionQuery, media_type: str) -> str:
    asked = f"{__version__} {result_id} {query.model_dump_json()} {media_type}"
    return f'"{hashlib.sha256(asked.encode()).hexdigest()[:32]}"'


def _render(record: Record, query: AttentionQuery, media_type: str, derived: Derived, timings: Timings) -> bytes:
    with timings.stage("attention"):
        found = attention_map(record, query.question(), derived)
    wanted = query.format or OFFERS[media_type]
    with timings.stage("encode"):
        if wanted == "json":
            reply = to_reply(record, found, query.top, query.weights)
            return reply.model_dump_json(by_alias=True, exclude_none=True).encode()
        if wanted == "npy":
            return to_npy(found)
        return render_heat(record, found, query.look(), IMAGE_FORMATS[media_type])
