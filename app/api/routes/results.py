"""/results/{id}: a mask again, in any format, without a second forward pass."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Response

from app.api.deadline import until
from app.api.dependencies import Services, ServicesDep
from app.api.errors import problems
from app.api.parameters import describe_query, from_query
from app.api.record import Record
from app.api.rendering import CONTENT, choose_format, fitting_type, render_file, render_json
from app.api.schemas import CocoSegment, ResultQuery, SegmentReply
from app.errors import ResultExpired

router = APIRouter()


@router.get(
    "/results/{result_id}",
    summary="Fetch a result again",
    response_model=SegmentReply | list[CocoSegment],
    responses={200: {"content": CONTENT, "description": "The mask."}, **problems(404, 406, 422, 504)},
    openapi_extra={"parameters": describe_query(ResultQuery)},
)
async def get_result(
    result_id: str,
    services: ServicesDep,
    query: Annotated[ResultQuery, Depends(from_query(ResultQuery))],
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    record = find(services, result_id)
    wanted, media_type = choose_format(query.format, accept)
    media_type = fitting_type(media_type, accept, record.size)
    async with until(time.monotonic() + services.settings.request_timeout, "the answer was ready"):
        if wanted == "json":
            reply = await services.in_codec_thread(render_json, record, query.parts)
            content = reply.model_dump_json(by_alias=True, exclude_none=True).encode()
        else:
            content = await services.in_codec_thread(render_file, record, wanted, media_type, query.alpha)
    return Response(content, media_type=media_type, headers={"Vary": "Accept"})


@router.delete(
    "/results/{result_id}",
    summary="Forget a result",
    status_code=204,
    response_class=Response,
    responses=problems(404, 422),
)
async def delete_result(result_id: str, services: ServicesDep) -> None:
    services.results.delete(result_id)


def find(services: Services, result_id: str) -> Record:
    """
    Raises:
        ResultExpired: there is none of that id, or no more
    """
    try:
        record = services.results.get(result_id)
    except ResultExpired:
        services.metrics.result_request("miss")
        raise
    services.metrics.result_request("hit")
    return record
