"""Which models are on the device, and how they come and go while others serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, ParamSpec, TypeVar

from app.engine.device import Device
from app.engine.loaded import Loaded
from app.engine.memory import settle
from app.engine.threads import DeviceThreads
from app.errors import LoadFailed, ModelNotLoaded, ServiceError, UnknownModel
from app.metrics import Metrics
from models import ModelError, ModelSpec
from models.precision import Precision

log = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")
ModelState = Literal["available", "loading", "ready", "failed"]


@dataclass(eq=False)
class Model:
    """
    Attributes:
        spec: of what serves, or would be loaded next
        loaded: what serves
        loads: under way, or to come at the start
        reason: why the last load failed, unless one has succeeded since
    """

    spec: ModelSpec
    loaded: Loaded | None = None
    loads: int = 0
    reason: str | None = None

    @property
    def state(self) -> ModelState:
        """Whether it takes requests: one that serves is ready, whatever becomes of its replacement."""
        if self.loaded is not None:
            return "ready"
        if self.loads:
            return "loading"
        return "available" if self.reason is None else "failed"


class Residents:
    """Only the event loop touches it; the device's threads do the work."""

    def __init__(self, worker: Device, threads: DeviceThreads, metrics: Metrics) -> None:
        self._worker = worker
        self._threads = threads
        self._metrics = metrics
        self._models: dict[str, Model] = {}
        self._numbers = count(1)
        self._change = asyncio.Lock()
        self._calls: set[Future[Any]] = set()

    @property
    def models(self) -> list[Model]:
        """All that were ever to be loaded."""
        return list(self._models.values())

    @property
    def is_at_work(self) -> bool:
        """Whether a thread of the device is about a model, be it that nobody waits for it any more."""
        return bool(self._calls)

    def plan(self, specs: Sequence[ModelSpec]) -> None:
        """Make known what is to be loaded first."""
        for spec in specs:
            self._models[spec.name] = Model(spec, loads=1)

    def add(self, spec: ModelSpec) -> None:
        """Make known what could be loaded, if it isn't yet."""
        self._models.setdefault(spec.name, Model(spec))

    async def load_planned(self) -> None:
        """Load what was planned, in that order.

        Raises:
            LoadFailed: the first of them, without which the server does not start; other failures are only noted
        """
        planned = [model for model in self.models if model.loads]
        for index, model in enumerate(planned):
            try:
                await self.load(model.spec)
            except LoadFailed:
                if index == 0:
                    raise
            finally:
                model.loads -= 1

    def model(self, name: str) -> Model:
        """
        Raises:
            UnknownModel: the message lists the names there are
        """
        try:
            return self._models[name]
        except KeyError:
            raise UnknownModel(f"no model {name!r} is served; there are {', '.join(self._models)}") from None

    def serving(self, name: str) -> Loaded:
        """What answers requests for a model.

        Raises:
            UnknownModel, ModelNotLoaded
        """
        model = self.model(name)
        if model.loaded is None:
            reason = "" if model.reason is None else f": {model.reason}"
            raise ModelNotLoaded(f"model {name!r} is not loaded, but {model.state}{reason}")
        return model.loaded

    async def load(self, spec: ModelSpec) -> None:
        """Bring a model to the device, warm it, and let it take over from what has served under its name.

        What it has replaced is freed as soon as nobody holds it any more.

        Raises:
            LoadFailed: what has served before still does
        """
        model = self._models.setdefault(spec.name, Model(spec))
        model.loads += 1
        try:
            # One at a time: two would share the memory that is left, and keep unloads waiting.
            async with self._change:
                # Never a key that was given before: what has it may be held still, though it serves no more.
                key = f"{spec.name}#{next(self._numbers)}"
                loaded = Loaded(spec, key, await self._bring(spec, key))
                replaced, model.loaded, model.spec, model.reason = model.loaded, loaded, spec, None
        except (ModelError, ServiceError) as exc:
            model.reason = str(exc)
            log.error("%s could not be loaded: %s", spec.name, exc, exc_info=exc.__cause__)
            # Else all that was read of the file would stay until the collector comes, which `settle` made rare.
            exc.__traceback__ = exc.__context__ = exc.__cause__ = None
            raise LoadFailed(f"{spec.name} could not be loaded: {exc}") from None
        finally:
            model.loads -= 1
        self._metrics.model(spec.name, spec.dataset, len(spec.classes.names), str(self._worker.device))
        if replaced is not None:
            await self.free(replaced)

    async def withdraw(self, name: str) -> Loaded | None:
        """Let a model take no more requests.

        Returns:
            the loading that has served it, which is still on the device; None if there is none

        Raises:
            UnknownModel
        """
        model = self.model(name)
        async with self._change:
            withdrawn, model.loaded, model.reason = model.loaded, None, None
        self._metrics.model_gone(name)
        return withdrawn

    async def free(self, loaded: Loaded) -> None:
        """Give back the memory of what no longer serves, once nobody holds it."""
        await loaded.unused()
        await self._call(self._worker.unload, loaded.key)

    async def _bring(self, spec: ModelSpec, key: str) -> Precision:
        precision = await self._call(self._worker.load, spec, key)
        try:
            await self._call(self._worker.warm_up, key)
        except ServiceError:
            await self._call(self._worker.unload, key)
            raise
        # It is here to stay, and need not hold up each collection of garbage.
        await self._call(settle)
        return precision

    async def _call(
        self, function: Callable[Arguments, Value], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Value:
        call = self._threads.call(function, *args, **kwargs)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return await asyncio.wrap_future(call)
