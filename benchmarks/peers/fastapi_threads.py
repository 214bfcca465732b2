"""FastAPI as most begin: a plain function in the thread pool, so that as many passes run as requests are there."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, FastAPI, Response

from benchmarks.peers.pipeline import create_pipeline
from benchmarks.peers.tuning import Tuning

app = FastAPI()
pipeline = create_pipeline(Tuning.of())


@app.get("/health")
def health() -> str:
    return "ok"


@app.post("/segment")
def segment(body: Annotated[bytes, Body()]) -> Response:
    [mask] = pipeline.predict([pipeline.decode(body)])
    return Response(pipeline.encode(mask), media_type="image/png")
