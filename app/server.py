"""The HTTP server around the application: uvicorn, but for how it stops."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from app.connection import Connection
from app.settings import Settings

log = logging.getLogger(__name__)

# Seconds that a connection without requests, or with half a request's head, is kept. If the server closes it, a request
# on its way is lost, so the client or the proxy should be first: most of them wait for up to a minute.
IDLE_TIMEOUT = 75
# Once the engine has answered everyone, all that is left is to send these answers.
SENDING_TIMEOUT = 5
# Clients may send their next request right after their last answer: they get a 503 then, not a connection reset.
STILL_LISTENING = 0.2
# Highest file descriptor for the port's copy: above those of the connections. The kernel's table is as long as this.
HIGHEST_FILE = 1 << 16


class Server(uvicorn.Server):
    """Drains the engine first and closes connections then, so that each accepted request gets its answer.

    uvicorn alone would wait for its connections, cancel them, and tell the application only at the end.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=Connection,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=IDLE_TIMEOUT,
            timeout_graceful_shutdown=SENDING_TIMEOUT,
        )
        super().__init__(config)
        self._state, self._services = app.state, app.state.services
        self._copies: list[int] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen so that, if the process is killed, its port is closed before its connections break.

        Linux closes a killed process's files from the highest number down. The port has a low one and would go last: a
        client that lost its request and came again at once would be let in, and lose another request. So the port is
        kept open by a copy with a high number too.
        """
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn's log has the reason, and often no more than that
            log.error("can't listen: SEGLENS_HOST is %s, SEGLENS_PORT %d", self.config.host, self.config.port)
            raise
        if sys.platform == "linux":
            import fcntl  # other systems may have none

            listeners = [listener for server in self.servers for listener in server.sockets]
            high = min(_allow_files(), HIGHEST_FILE) - len(listeners)
            with suppress(OSError):  # the system counts files in another way: it is as it would be by itself
                for listener in listeners:  # each the first number that is free from there on
                    self._copies.append(fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD_CLOEXEC, high))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._give_notice()
        drained = asyncio.ensure_future(self._services.drain())
        # A second Ctrl+C means now.
        while not self.force_exit and not drained.done():
            await asyncio.wait([drained], timeout=0.1)
        drained.cancel()
        if not self.force_exit:
            await asyncio.sleep(STILL_LISTENING)
        for copy in self._copies:
            os.close(copy)
        self._copies.clear()
        await super().shutdown(sockets)

    async def _give_notice(self) -> None:
        """Serve on for a while, so that whoever looks at /readyz sends no more before anyone is refused."""
        self._state.leaving = True
        ends = time.monotonic() + self._services.settings.drain_notice
        while not self.force_exit and self._services.engine.state == "ready" and time.monotonic() < ends:  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    def run_until_signalled(self) -> None:
        """Serve until SIGINT or SIGTERM; return once all is shut down in order."""
        # uvicorn raises the signal again when it is done, to die of it. It shall find this instead, which
        # also keeps a signal that comes before uvicorn listens for one.
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: setattr(self, "should_exit", True))
        self.run()


def _allow_files() -> int:
    """Have all files that the system grants: each connection is one, and idle ones fill the 1024 that many begin with.

    Returns:
        how many
    """
    import resource  # other systems may have none

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
