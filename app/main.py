"""Builds and wires every object of the service; nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import torch
from fastapi import FastAPI

from app import __version__
from app.api import errors
from app.api.dependencies import Services
from app.api.derived import Derived
from app.api.middleware import RequestMiddleware
from app.api.reception import Reception
from app.api.record import Record
from app.api.routes import attention, health, metrics, models, page, results, segment
from app.api.slow_lane import SlowLane
from app.catalog import Catalog
from app.engine.cores import compute_on
from app.engine.device import Device
from app.engine.engine import Engine
from app.engine.memory import give_back
from app.engine.scheduler import Policy
from app.engine.worker import Worker
from app.metrics import Metrics
from app.results import ResultStore
from app.settings import Settings, SettingsError
from app.traces import Spans, open_spans
from models import ModelError, ModelSpec, list_models

SWEEP_INTERVAL = 30.0  # seconds; no shorter, since passes after a sweep have to map again the pages it gave back
CODECS = 8  # threads at most: one event loop keeps no more busy, and each keeps up to 64 MiB of what it has freed
MAX_DERIVED_BYTES = 128 << 20  # the matrices of both steps of criss-cross attention at 128x256 cells
MAX_SLOW_MAPS = 8  # that take seconds each, one after another
DESCRIPTION = "Semantic segmentation with CCNet, ANN and Non-local: masks, attention maps and per-module latency."


def create_app(settings: Settings, worker: Device | None = None, specs: Sequence[ModelSpec] | None = None) -> FastAPI:
    """The service as an ASGI application. Models load in the background once it starts.

    Args:
        worker, specs: in place of those of the settings, as tests and benchmarks need it
    """
    app = FastAPI(
        title="SegLens",
        version=__version__,
        description=DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,  # they would go to `http://`, also behind a proxy that speaks TLS
        # FastAPI's own spans tell paths and queries, whose ids open results; app/traces.py writes ours.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    series = Metrics()
    series.build(__version__, torch.__version__)
    if worker is None:
        worker = Worker(
            settings.device,
            settings.threads,
            reduced=settings.precision == "auto",
            reference_operators=settings.reference_operators,
        )
    policy = Policy(
        settings.max_batch_size or worker.best_batch_size,
        settings.max_batch_pixels,
        settings.max_queue_size,
        settings.max_queue_bytes,
        worker.slots,
    )
    catalog = Catalog(list_models() if specs is None else specs, settings.model_dir)
    engine = Engine(worker, _planned(catalog, settings), policy, series, settings.stall_timeout)
    for spec in catalog.specs():
        engine.models.add(spec)
    derived = Derived(MAX_DERIVED_BYTES)
    app.state.leaving = False
    app.state.services = Services(
        settings=settings,
        engine=engine,
        catalog=catalog,
        results=ResultStore(settings.max_result_bytes, settings.result_ttl, on_removed=derived.forget),
        metrics=series,
        codecs=_threads("codec", min(CODECS, os.cpu_count() or 1)),
        derived=derived,
        slow_lane=SlowLane(_threads("slow", 1), "attention maps", MAX_SLOW_MAPS),
        reception=Reception(settings.max_queue_bytes, series),
    )
    for routes in (segment, results, attention, models, health, metrics, page):
        app.include_router(routes.router)  # in this order a request is compared with them
    app.mount("/web", page.web)
    app.mount("/swagger", page.swagger)
    errors.install(app)
    app.state.spans = open_spans(os.environ)
    app.add_middleware(RequestMiddleware, metrics=series, spans=app.state.spans)
    return app


def _threads(name: str, count: int) -> ThreadPoolExecutor:
    """Each of which computes on one core."""
    return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=compute_on, initargs=(1,))


def _planned(catalog: Catalog, settings: Settings) -> list[ModelSpec]:
    """What to load at the start: the default first, without which there is no server."""
    named = [name.strip() for name in settings.models.split(",") if name.strip()]
    first = _found(catalog, settings.default_model, "SEGLENS_DEFAULT_MODEL")
    others = [_found(catalog, name, "SEGLENS_MODELS") for name in named] or catalog.specs()
    return list({spec.name: spec for spec in [first, *others]}.values())


def _found(catalog: Catalog, name: str, setting: str) -> ModelSpec:
    try:
        return catalog.find(name)
    except ModelError as exc:
        raise SettingsError(f"{setting}: {exc}") from exc


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    # A server that cannot serve asks for its own end; its supervisor starts another.
    services.engine.start(on_failure=lambda: os.kill(os.getpid(), signal.SIGTERM))
    sweeper = asyncio.create_task(_sweep(services.results))
    yield
    sweeper.cancel()
    await services.drain()
    services.codecs.shutdown(wait=False, cancel_futures=True)
    services.slow_lane.close()
    spans: Spans | None = app.state.spans
    if spans is not None:
        await asyncio.to_thread(spans.close)


async def _sweep(results: ResultStore[Record]) -> None:
    """Lets go of old results on an idle server too, and of the gaps that new ones leave in the heap."""
    before = results.nbytes
    while True:
        await asyncio.sleep(SWEEP_INTERVAL)
        if results.nbytes != before:
            before = results.nbytes
            await asyncio.to_thread(give_back)
