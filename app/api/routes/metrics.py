"""GET /metrics, for Prometheus."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from app.api.dependencies import ServicesDep
from app.api.errors import problems

router = APIRouter()


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}}, **problems(422)},
)
async def metrics(request: Request, services: ServicesDep, accept: Annotated[str, Header()] = "") -> Response:
    services.engine.observe()
    services.metrics.ready(services.engine.state == "ready" and not request.app.state.leaving)
    services.metrics.results(services.results.nbytes)
    # Some milliseconds for all the series: too long for the event loop.
    content, content_type = await services.in_codec_thread(services.metrics.render, accept)
    return Response(content, media_type=content_type)
