"""Whether Triton's kernels can run."""

from __future__ import annotations

import logging
from functools import cache
from subprocess import SubprocessError

log = logging.getLogger(__name__)


@cache
def can_launch() -> bool:
    """Whether Triton is installed, and can launch kernels: it compiles its launcher first, with a C compiler."""
    try:
        import triton

        if not triton.knobs.runtime.interpret:
            triton.runtime.driver.active.get_current_target()
    except ImportError:  # no Triton for this system, as for Windows
        return False
    except (AssertionError, OSError, RuntimeError, SubprocessError) as exc:
        log.warning("Triton launches no kernels, torch's slower operators run in their place: %s", exc)
        return False
    return True
