"""Probes: each answers at once, from the event loop, whatever the device is doing."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from app import __version__
from app.api.dependencies import ServicesDep
from app.api.errors import problems
from app.api.schemas import Health
from app.errors import InferenceFailed, NotReady

router = APIRouter()


@router.get("/livez", summary="Is the process worth keeping?", response_class=PlainTextResponse, responses=problems())
async def livez(services: ServicesDep) -> str:
    if services.engine.state == "failed":
        raise InferenceFailed("the engine failed; restart the process")
    return "alive"


@router.get("/readyz", summary="Can it take requests?", response_class=PlainTextResponse, responses=problems(503))
async def readyz(request: Request, services: ServicesDep) -> str:
    services.engine.check_ready()
    if request.app.state.leaving:
        raise NotReady("the server is about to stop")
    return "ready"


@router.get("/health", summary="How is it?", responses=problems())
async def health(services: ServicesDep) -> Health:
    return Health(
        status=services.engine.state,
        version=__version__,
        device=services.engine.device,
        models=[model.spec.name for model in services.engine.models.models if model.state == "ready"],
        queue_size=services.engine.queue_size,
        results=len(services.results),
    )
