"""`python -m tests.e2e.failing_device FAULT serve`: the server, on a device that fails in its third pass, if ever.

With the fault `loads` it loads for ever once it has run a batch.
"""

from __future__ import annotations

import sys
import threading
from functools import partial

from app import __main__ as command
from app.engine.device import Ran
from app.engine.staging import Staged
from app.errors import DeviceError
from app.main import create_app
from models import ModelSpec
from models.precision import Precision
from tests.fakes import FakeDevice
from tests.servers import SPEC


class Failing(FakeDevice):
    def __init__(self, fault: str) -> None:
        super().__init__(best_batch_size=1)
        self._fault = fault

    def load(self, spec: ModelSpec, key: str) -> Precision:
        if self._fault == "loads" and self.batches:
            threading.Event().wait()  # for as long as a large model takes
        return super().load(spec, key)

    def run(self, key: str, staged: Staged) -> Ran:
        if len(self.batches) < 2 or self._fault in ("never", "loads"):
            return super().run(key, staged)
        match self._fault:
            case "breaks":
                raise DeviceError("cuda:0 has failed for good: an illegal memory access was encountered")
            case "ends":
                raise SystemExit(0)
            case _:
                threading.Event().wait()  # it stalls, and never comes back
                raise AssertionError


if __name__ == "__main__":
    device = Failing(sys.argv.pop(1))
    command.create_app = partial(create_app, worker=device, specs=[SPEC])  # type: ignore[attr-defined]
    sys.exit(command.main())
