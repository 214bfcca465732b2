"""The objects that `create_app` built, as endpoints ask for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, ParamSpec, TypeVar

from fastapi import Depends, Request

from app.api.derived import Derived
from app.api.reception import Reception
from app.api.record import Record
from app.api.slow_lane import SlowLane
from app.catalog import Catalog
from app.engine.engine import Engine
from app.metrics import Metrics
from app.results import ResultStore
from app.settings import Settings

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Services:
    """
    Attributes:
        codecs: threads that decode and encode images, apart from the one that runs the models
        slow_lane: for attention that takes seconds
    """

    settings: Settings
    engine: Engine
    catalog: Catalog
    results: ResultStore[Record]
    metrics: Metrics
    codecs: ThreadPoolExecutor
    derived: Derived
    slow_lane: SlowLane
    reception: Reception

    async def in_codec_thread(
        self, function: Callable[Arguments, Value], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Value:
        """Run something that takes milliseconds without holding up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.codecs, lambda: function(*args, **kwargs))

    async def drain(self) -> None:
        """Finish within the time set what was accepted, refuse what is left and whoever comes."""
        self.reception.stop()
        timeout = self.settings.drain_timeout
        await asyncio.gather(self.engine.stop(timeout), self.slow_lane.stop(timeout))


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _services(request: Request) -> Services:  # async, or FastAPI would send it to another thread
    return services_of(request)


ServicesDep = Annotated[Services, Depends(_services)]
