"""/attention/{id}: where a pixel looked."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.attention import AttentionMap, attention_map, describe, render_heat, to_npy, to_reply
from app.api.dependencies import ServicesDep
from app.api.errors import problems
from app.api.negotiation import negotiate
from app.api.record import Record
from app.api.rendering import IMAGE_CONTENT, IMAGE_FORMATS, JSON, image_type
from app.api.routes.results import find
from app.api.schemas import AttentionInfo, AttentionReply
from app.colormaps import ColormapName
from app.imaging import ImageFormat

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

    x: int = Field(description="Column of the pixel, from 0, in the upright image.")
    y: int = Field(description="Row of the pixel, from 0, in the upright image.")
    block: Literal["cca", "afnb", "apnb", "nl"] | None = Field(None, description="Attention block; else the last one.")
    step: Literal["1", "2", "3", "composed"] | None = Field(
        None, description="Pass of criss-cross attention; else the last, or of two both composed."
    )
    level: Literal["all", "1", "3", "6", "8"] = Field("all", description="Pool scale of a pyramid block.")
    format: AttentionFormat | None = Field(None, description="Else `Accept` decides, and the overlay is the default.")
    clip: float = Field(
        99, gt=0, le=100, description="Percentile of the weights above 0 at which the colours end; the paper clips too."
    )
    colormap: ColormapName = Field("inferno", description="Colours from no weight to the most.")
    alpha: float = Field(0.6, ge=0, le=1, description="Weight of the colours in an overlay.")


@router.get(
    "/attention/{result_id}",
    summary="Where a pixel looked",
    response_model=AttentionReply,
    responses={
        200: {"content": {**IMAGE_CONTENT, NPY: {}}, "description": "The weights, as a picture or as numbers."},
        **problems(404, 406, 422),
    },
)
async def get_attention(
    result_id: str,
    services: ServicesDep,
    query: Annotated[AttentionQuery, Query()],
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    record = find(services, result_id)
    media_type = _media_type(query.format, accept)
    content = await services.in_codec_thread(_render, record, query, media_type)
    return Response(content, media_type=media_type, headers={"Vary": "Accept"})


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


def _render(record: Record, query: AttentionQuery, media_type: str) -> bytes:
    found = attention_map(record, (query.x, query.y), query.block, query.step, query.level)
    wanted = query.format or OFFERS[media_type]
    if wanted == "json":
        return to_reply(record, found).model_dump_json(exclude_none=True).encode()
    if wanted == "npy":
        return to_npy(found)
    return _picture(record, found, query, IMAGE_FORMATS[media_type])


def _picture(record: Record, found: AttentionMap, query: AttentionQuery, image_format: ImageFormat) -> bytes:
    alpha = query.alpha if query.format != "png" else None
    return render_heat(record, found, query.clip, query.colormap, alpha, image_format)
