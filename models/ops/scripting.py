"""Functions of many small operators as TorchScript: from their first line to their last nothing of Python runs.

Between any two operators Python costs time, and its lock, which another pass or the event loop may hold just then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


def can_script() -> bool:
    """Whether torch still supports TorchScript on this Python; on newer ones it does not."""
    return sys.version_info < (3, 14)


def scripted(function: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """The same function in TorchScript, with all that it calls; itself where there is none, or no source to read."""
    if not can_script():
        return function
    try:
        compiled: Callable[Arguments, Value] = torch.jit.script(function)
    except OSError:
        return function
    return compiled
