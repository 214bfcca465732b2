from __future__ import annotations

import threading

import pytest

from app.api.dependencies import Services
from app.errors import MalformedBody


async def test_codec_threads_are_apart(services: Services) -> None:
    name = await services.in_codec_thread(lambda: threading.current_thread().name)
    assert name.startswith("codec")
    assert await services.in_codec_thread(divmod, 7, 2) == (3, 1)


async def test_an_error_in_a_codec_thread_is_the_callers(services: Services) -> None:
    def fail() -> None:
        raise MalformedBody("broken")

    with pytest.raises(MalformedBody, match="broken"):
        await services.in_codec_thread(fail)
