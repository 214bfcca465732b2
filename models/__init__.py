"""Segmentation networks with attention: CCNet, ANN, Non-local. Tensors only: no HTTP, no queue, no settings."""

from models.card import Card
from models.checkpoint import load_segmentor
from models.errors import CheckpointError, ModelError, UnknownModel
from models.recognition import recognise
from models.registry import ModelSpec, create_model, get_spec, list_models, load_model
from models.segmentor import Output, Segmentor
from models.traces import Trace
from models.windows import Inference

__all__ = [
    "Card",
    "CheckpointError",
    "Inference",
    "ModelError",
    "ModelSpec",
    "Output",
    "Segmentor",
    "Trace",
    "UnknownModel",
    "create_model",
    "get_spec",
    "list_models",
    "load_model",
    "load_segmentor",
    "recognise",
]
