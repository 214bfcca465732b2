"""Alerts are provoked, and a real Prometheus must raise them: the server is killed, its device stands still."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import Popen

import httpx

from tests.docker.prometheus import free_port, needs_prometheus, prometheus
from tests.servers import picture, posted

Serving = Callable[..., AbstractContextManager[tuple[str, Path, "Popen[bytes]"]]]
# Nothing but the patience of the rules is shortened.
SHORTER = {"for: 30s": "for: 1s", "for: 15s": "for: 1s", "> 30\n": "> 3\n"}
STALL_TIMEOUT = 12


@needs_prometheus
def test_a_server_that_is_killed_is_missed_and_its_restart_seen(serving: Serving, tmp_path: Path) -> None:
    port = str(free_port())
    with (
        serving("tests.e2e.failing_device", "never", port=port, status=-9) as (_, _, process),
        prometheus(tmp_path, [f"127.0.0.1:{port}"], SHORTER) as running,
    ):
        # Before the first scrape, it is missing for a moment.
        running.until(lambda: bool(running.query("up == 1")) and running.firing() == set(), "all is well")
        process.kill()
        process.wait()
        running.until(lambda: running.firing() == {"SegLensTargetMissing"}, "SegLensTargetMissing fires")
        with serving("tests.e2e.failing_device", "never", port=port):
            running.until(lambda: running.firing() == {"SegLensRestarted"}, "it is back, and was away")


@needs_prometheus
async def test_a_device_that_stands_still_is_seen_before_the_process_ends(serving: Serving, tmp_path: Path) -> None:
    with serving("tests.e2e.failing_device", "stalls", stall_timeout=str(STALL_TIMEOUT), status=1) as served:
        url, _, process = served
        port = httpx.URL(url).port or 0
        with prometheus(tmp_path, [f"127.0.0.1:{port}"], SHORTER) as running:
            assert [(await posted(port, picture(value))).status for value in (1, 2)] == [200, 200]
            running.until(lambda: bool(running.query("seglens_batch_size_count == 2")), "it has served")
            began = time.monotonic()
            waiting = [asyncio.create_task(posted(port, picture(value))) for value in range(3, 7)]
            await asyncio.to_thread(
                running.until, lambda: "SegLensQueueStalled" in running.firing(), "SegLensQueueStalled fires"
            )
            assert time.monotonic() - began < STALL_TIMEOUT, "while it still waits for the device"
            assert process.poll() is None
            assert {reply.status for reply in await asyncio.gather(*waiting)} == {500}
            assert await asyncio.to_thread(process.wait, 30) == 1
            await asyncio.to_thread(
                running.until, lambda: "SegLensTargetMissing" in running.firing(), "SegLensTargetMissing fires"
            )
