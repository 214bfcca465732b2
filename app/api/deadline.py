"""Gives up whatever a request waits for once its time is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.errors import DeadlineExceeded


@asynccontextmanager
async def until(deadline: float, what: str) -> AsyncIterator[None]:
    """
    Args:
        deadline: by `time.monotonic`
        what: had not come about by then, as in "the image was decoded"

    Raises:
        DeadlineExceeded
    """
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            yield
    except TimeoutError:
        raise DeadlineExceeded(f"the deadline passed before {what}") from None
