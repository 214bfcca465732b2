"""Drives one server by a plan (JSON on stdin) and writes down what each request met.

A process of its own, so that its CPU time can be told from the servers'. It prints `start` and `end` around the window
that counts, for whoever measures the server meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import aiohttp
import uvloop

from benchmarks.peers.figures import NO_REPLY, OK, REFUSED, Record, poisson
from benchmarks.peers.plan import FORM_TYPE, Plan, form

DEFAULT_RETRY = 1.0  # seconds, where a refusal doesn't say
PAUSE = 0.02  # seconds after a failure, so that a broken server isn't hammered


class Reply(NamedTuple):
    status: int
    right: bool
    retry_after: float


class Driver:
    def __init__(self, plan: Plan, session: aiohttp.ClientSession) -> None:
        self._plan = plan
        self._session = session
        files = {name: Path(name).read_bytes() for name in {*plan.bodies, *plan.expected}}
        bodies = [files[name] for name in plan.bodies]
        # Forms are built once, so that they cost nothing to send.
        self._bodies = [form(body, plan.form_field) for body in bodies] if plan.form_field else bodies
        self._expected = [files[name] for name in plan.expected]
        self._headers = plan.headers | ({"Content-Type": FORM_TYPE} if plan.form_field else {})
        self._turns = itertools.cycle(range(len(bodies)))
        self._started = time.perf_counter() + plan.warmup
        self._records: list[Record] = []

    async def run(self) -> list[Record]:
        marks = asyncio.create_task(self._mark())
        if self._plan.clients:
            await asyncio.gather(*(self._closed() for _ in range(self._plan.clients)))
        else:
            await self._open()
        await marks
        return self._records

    @property
    def _now(self) -> float:
        return time.perf_counter() - self._started

    async def _mark(self) -> None:
        for mark, moment in (("start", 0.0), ("end", self._plan.seconds)):
            await asyncio.sleep(moment - self._now)
            print(mark, flush=True)

    async def _closed(self) -> None:
        while (now := self._now) < self._plan.seconds:
            record = await self._one(now)
            if record.status != OK:
                await asyncio.sleep(PAUSE)

    async def _open(self) -> None:
        async with asyncio.TaskGroup() as clients:
            for moment in poisson(self._plan.rate, self._plan.warmup + self._plan.seconds, self._plan.seed):
                scheduled = moment - self._plan.warmup
                if (early := scheduled - self._now) > 0:
                    await asyncio.sleep(early)
                clients.create_task(self._returning(scheduled) if self._plan.comes_back else self._one(scheduled))

    async def _one(self, scheduled: float) -> Record:
        reply = await self._send(next(self._turns), self._headers)
        record = Record(scheduled, self._now - scheduled, reply.status, reply.right)
        self._records.append(record)
        return record

    async def _returning(self, scheduled: float) -> None:
        """A client that comes back when it is told, as the same request, until it is taken or has no patience left."""
        turn, headers = next(self._turns), self._headers | {"X-Request-ID": uuid.uuid4().hex}
        reply, sent = await self._send(turn, headers), scheduled
        promise, refused, attempts = None, self._now, 1
        if reply.status in REFUSED:
            promise = reply.retry_after
        while reply.status in REFUSED and self._now - scheduled < self._plan.patience:
            await asyncio.sleep(reply.retry_after)
            sent, attempts = self._now, attempts + 1
            reply = await self._send(turn, headers)
        taken = promise is not None and reply.status == OK
        waited = sent - refused if taken else None
        latency = self._now - scheduled
        self._records.append(Record(scheduled, latency, reply.status, reply.right, promise, waited, attempts))

    async def _send(self, turn: int, headers: dict[str, str]) -> Reply:
        try:
            async with self._session.post(self._plan.url, data=self._bodies[turn], headers=headers) as response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError):
            return Reply(NO_REPLY, right=False, retry_after=DEFAULT_RETRY)
        status = response.status
        retry_after = _retry_after(response, content) if status in REFUSED else 0.0
        return Reply(status, content == self._expected[turn], retry_after)


def _retry_after(response: aiohttp.ClientResponse, content: bytes) -> float:
    """What a refusal says, in seconds: the body to the fraction, else the header, else nothing."""
    if response.content_type.endswith("json"):
        exact = json.loads(content).get("retry_after")
        if exact is not None:
            return float(exact)
    return float(response.headers.get("Retry-After", DEFAULT_RETRY))


async def drive(plan: Plan) -> list[Record]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=plan.patience)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        return await Driver(plan, session).run()


def main() -> None:
    plan = Plan.from_json(sys.stdin.read())
    # To a file: of what is printed once uvloop has run, no more may arrive than a pipe holds.
    Path(plan.records).write_text(json.dumps(uvloop.run(drive(plan))))


if __name__ == "__main__":
    main()
