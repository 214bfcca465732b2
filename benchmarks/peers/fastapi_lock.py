"""FastAPI with one pass at a time: a lock before the device, codecs in threads, no batches."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Request, Response

from benchmarks.peers.pipeline import create_pipeline
from benchmarks.peers.tuning import Tuning

app = FastAPI()
tuning = Tuning.of()
pipeline = create_pipeline(tuning)
device = asyncio.Lock()


@app.get("/health")
async def health() -> str:
    return "ok"


@app.post("/segment")
async def segment(request: Request) -> Response:
    body = await request.body()
    png = _segment_now(body) if tuning.workload == "null" else await _segment(body)
    return Response(png, media_type="image/png")


async def _segment(body: bytes) -> bytes:
    image = await asyncio.to_thread(pipeline.decode, body)
    async with device:
        [mask] = await asyncio.to_thread(pipeline.predict, [image])
    return await asyncio.to_thread(pipeline.encode, mask)


def _segment_now(body: bytes) -> bytes:
    """Where nothing takes time, nobody would send it to a thread."""
    [mask] = pipeline.predict([pipeline.decode(body)])
    return pipeline.encode(mask)
