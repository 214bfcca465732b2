"""/models: what is served."""

from __future__ import annotations

from fastapi import APIRouter, Request

import models
from app.api.admin import AdminDep
from app.api.dependencies import Services, ServicesDep
from app.api.errors import problems
from app.api.schemas import ModelClass, ModelInfo
from app.catalog import Found, Unreadable
from app.engine.residents import Model
from app.errors import LoadFailed, UnknownModel
from models.transforms import Preprocessing
from models.windows import Inference

router = APIRouter()


@router.get("/models", summary="List the models", responses=problems())
async def list_models(services: ServicesDep) -> list[ModelInfo]:
    return list((await _look(services)).values())


@router.get("/models/{name}", summary="Describe a model", responses=problems(404, 422))
async def get_model(name: str, services: ServicesDep) -> ModelInfo:
    infos = await _look(services)
    if name not in infos:
        raise UnknownModel(f"no model {name!r}; there are {', '.join(infos)}")
    return infos[name]


@router.post(
    "/models/{name}/load",
    summary="Load a model, or replace it by what its file now holds",
    responses=problems(401, 403, 404, 422, 503),
    dependencies=[AdminDep],
)
async def load_model(name: str, request: Request, services: ServicesDep) -> ModelInfo:
    try:
        spec = await services.in_codec_thread(services.catalog.find, name)
    except models.UnknownModel as exc:
        raise UnknownModel(str(exc)) from None
    except models.ModelError as exc:
        raise LoadFailed(f"{name} could not be loaded: {exc}") from None
    request.state.noted = {"model": name}  # for the log: there is one
    await services.engine.load(spec)
    return _describe(services, services.engine.models.model(name))


@router.post(
    "/models/{name}/unload",
    summary="Take a model from the device",
    responses=problems(401, 403, 404, 422, 503),
    dependencies=[AdminDep],
)
async def unload_model(name: str, request: Request, services: ServicesDep) -> ModelInfo:
    await services.engine.unload(name)
    request.state.noted = {"model": name}
    return _describe(services, services.engine.models.model(name))


async def _look(services: Services) -> dict[str, ModelInfo]:
    """What is on the device or on its way there, and what could be, as it is on disk now."""
    found: dict[str, Found] = await services.in_codec_thread(services.catalog.look)
    known = {model.spec.name: model for model in services.engine.models.models}
    # One that serves does so whatever has become of its file.
    names = [*found, *(name for name, model in known.items() if model.loaded and name not in found)]
    return {name: _info(services, found.get(name), known.get(name)) for name in names}


def _info(services: Services, found: Found | None, known: Model | None) -> ModelInfo:
    if known is not None and (known.loaded or known.loads or found is None):
        return _describe(services, known)
    if isinstance(found, Unreadable):
        return ModelInfo(name=found.name, title=found.name, state="failed", reason=found.reason)
    assert found is not None
    return _describe(services, Model(found, reason=None if known is None else known.reason))


def _describe(services: Services, model: Model) -> ModelInfo:
    spec = model.spec
    return ModelInfo(
        name=spec.name,
        title=spec.title,
        default=spec.name == services.settings.default_model,
        state=model.state,
        reason=model.reason,
        device=services.engine.device,
        precision=model.loaded and model.loaded.precision,
        dataset=spec.dataset,
        miou=spec.miou,
        input_rule=_input_rule(spec.preprocessing),
        inference=_inference_rule(spec.inference),
        classes=[
            ModelClass(id=index, name=name, color=color)
            for index, (name, color) in enumerate(zip(spec.classes.names, spec.classes.palette, strict=True))
        ],
        licence=spec.licence,
        source=spec.source,
    )


def _inference_rule(inference: Inference) -> str:
    (height, width), (down, right) = inference.crop, inference.stride
    mode = "whole" if inference.mode == "whole" else f"windows of {width}x{height} every {right}x{down}"
    scales = "" if inference.scales == (1.0,) else f", scales {', '.join(f'{scale:g}' for scale in inference.scales)}"
    return mode + scales + (", mirror images too" if inference.flip else "")


def _input_rule(preprocessing: Preprocessing) -> str:
    long_side, short_side = preprocessing.scale
    rule = f"resized, keeping its ratio, to fit {long_side}x{short_side} (long side x short side)"
    return (
        rule if preprocessing.multiple == 1 else f"{rule}, each side rounded to a multiple of {preprocessing.multiple}"
    )
