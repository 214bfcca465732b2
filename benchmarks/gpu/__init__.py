"""All figures of a GPU: `python -m benchmarks.gpu`."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton, which looks then
