"""BentoML: an HTTP service before a model service that batches by what it has learnt of the model."""

from __future__ import annotations

import bentoml
from fastapi import FastAPI, Request, Response

from benchmarks.peers.pipeline import create_pipeline
from benchmarks.peers.tuning import Tuning

app = FastAPI()
tuning = Tuning.of()
# Neither may refuse: the queue is to be as long as the clients are many.
TRAFFIC = {"timeout": 600, "max_concurrency": 10_000}
QUIET = {"access": {"enabled": False}}
# By default a service drops its connections to another every 100 requests, and with them all that are under way.
CONNECTION = {"max_age": 1e9, "max_requests": 10**9}
BATCHING = {"batchable": True, "max_batch_size": tuning.max_batch, "max_latency_ms": 600_000}


@bentoml.service(workers=tuning.workers, threads=1, traffic=TRAFFIC, logging=QUIET, runner_connection=CONNECTION)
class Segmenter:
    def __init__(self) -> None:
        self.pipeline = create_pipeline(tuning)

    @bentoml.api(**(BATCHING if tuning.max_batch > 1 else {}))
    def predict(self, bodies: list[bytes]) -> list[bytes]:
        masks = self.pipeline.predict([self.pipeline.decode(body) for body in bodies])
        return [self.pipeline.encode(mask) for mask in masks]


@bentoml.service(workers=1, traffic=TRAFFIC, logging=QUIET)
@bentoml.asgi_app(app, path="/")
class Web:
    segmenter = bentoml.depends(Segmenter)

    @app.get("/health")
    async def health(self) -> str:
        return "ok"

    @app.post("/segment")
    async def segment(self, request: Request) -> Response:
        [png] = await self.segmenter.to_async.predict([await request.body()])
        return Response(png, media_type="image/png")
