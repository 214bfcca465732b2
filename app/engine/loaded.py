"""A model on the device, and who needs it to stay there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from models import ModelSpec
from models.precision import Precision


@dataclass(eq=False)
class Loaded:
    """One loading of a model; whoever came while it served is answered by it, though another may have replaced it.

    Attributes:
        key: what the device knows it by
        precision: what it computes in there
    """

    spec: ModelSpec
    key: str
    precision: Precision
    _uses: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    def hold(self) -> None:
        """Keep it on the device until a `release`."""
        self._uses += 1

    def release(self) -> None:
        self._uses -= 1
        if not self._uses:
            self._unused.set()

    async def unused(self) -> None:
        """Wait until nobody holds it."""
        while self._uses:
            self._unused.clear()
            await self._unused.wait()
