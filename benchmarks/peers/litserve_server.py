"""LitServe: an API process and inference workers, batched by the worker's loop."""

import sys
from typing import Any

import litserve
from fastapi import Response, UploadFile

from benchmarks.peers.pipeline import create_pipeline
from benchmarks.peers.tuning import Tuning

TIMEOUT = 600  # seconds; LitServe's own 30 would turn a long queue into errors


class Segmenter(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.pipeline = create_pipeline(Tuning.of())

    # LitServe looks for the type itself: under `from __future__ import annotations` it would find a string.
    def decode_request(self, request: UploadFile) -> Any:
        return self.pipeline.decode(request.file.read())

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, x: Any) -> Any:
        # Unbatched, LitServe hands over the image itself.
        return self.pipeline.predict(x) if isinstance(x, list) else self.pipeline.predict([x])[0]

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> Response:
        return Response(self.pipeline.encode(output), media_type="image/png")


def main(port: int) -> None:
    tuning = Tuning.of()
    api = Segmenter(max_batch_size=tuning.max_batch, batch_timeout=tuning.wait, api_path="/segment")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=tuning.workers, timeout=TIMEOUT)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning", access_log=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
