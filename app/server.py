"""The HTTP server around the application: uvicorn, but for how it stops."""

from __future__ import annotations

import asyncio
import signal
import socket

import uvicorn
from fastapi import FastAPI

from app.api.dependencies import Services
from app.settings import Settings

# Once the engine has answered everyone, all that is left is to send these answers.
SENDING_TIMEOUT = 5


class Server(uvicorn.Server):
    """Drains the engine first and closes connections then, so that each accepted request gets its answer.

    uvicorn alone would wait for its connections, cancel them, and tell the application only at the end.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SENDING_TIMEOUT,
        )
        super().__init__(config)
        self._services: Services = app.state.services

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drained = asyncio.ensure_future(self._services.engine.stop(self._services.settings.drain_timeout))
        # A second Ctrl+C means now.
        while not self.force_exit and not drained.done():
            await asyncio.wait([drained], timeout=0.1)
        drained.cancel()
        await super().shutdown(sockets)

    def run_until_signalled(self) -> None:
        """Serve until SIGINT or SIGTERM; return once all is shut down in order."""
        # uvicorn raises the signal again when it is done, to die of it. It shall find this instead, which
        # also keeps a signal that comes before uvicorn listens for one.
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: setattr(self, "should_exit", True))
        self.run()
