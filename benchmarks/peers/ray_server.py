"""Ray Serve: a proxy before replicas, batched by @serve.batch."""

from __future__ import annotations

import signal
import sys

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.pipeline import create_pipeline
from benchmarks.peers.tuning import Tuning

tuning = Tuning.of()
QUIET = {"enable_access_log": False, "log_level": "WARNING"}
OBJECT_STORE = 200 << 20  # bytes; images pass by it only when they are large


@serve.deployment(
    num_replicas=tuning.workers,
    max_ongoing_requests=10_000,
    ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": tuning.environment()}},
)
class Segmenter:
    def __init__(self) -> None:
        self.pipeline = create_pipeline(Tuning.of())

    async def __call__(self, request: Request) -> Response:
        return Response(await self.predict(await request.body()), media_type="image/png")

    @serve.batch(max_batch_size=tuning.max_batch, batch_wait_timeout_s=tuning.wait)
    async def predict(self, bodies: list[bytes]) -> list[bytes]:
        masks = self.pipeline.predict([self.pipeline.decode(body) for body in bodies])
        return [self.pipeline.encode(mask) for mask in masks]


def main(port: int) -> None:
    ray.init(num_cpus=2, include_dashboard=False, logging_level="warning", object_store_memory=OBJECT_STORE)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=QUIET)
    serve.run(Segmenter.bind(), route_prefix="/segment", logging_config=QUIET)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
