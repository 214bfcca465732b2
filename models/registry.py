"""The models that come with the package: one table, name to spec."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from models.checkpoint import load_segmentor
from models.classes import CAMVID, ClassSet
from models.errors import CheckpointError, UnknownModel
from models.segmentor import Segmentor
from models.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class ModelSpec:
    """All that goes with a model's weights. The architecture itself is read from the weights.

    Attributes:
        sha256: of the weights file, checked before it is read
        miou: percent on the data set's test split at original size, single scale
    """

    name: str
    title: str
    weights: Path
    sha256: str
    classes: ClassSet
    preprocessing: Preprocessing
    miou: float
    dataset: str
    licence: str
    source: str


CAMVID_PREPROCESSING = Preprocessing(scale=(480, 360), mean=IMAGENET_MEAN, std=IMAGENET_STD)

SPECS = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="ccnet-mobilenetv2-camvid",
            title="CCNet, MobileNetV2, CamVid",
            weights=WEIGHTS / "ccnet-mobilenetv2-camvid.safetensors",
            sha256="35f5dc47ef74d77bb949bc815bb5d3b75fd64b2e1f36a5fb57c66b04842f90ea",
            classes=CAMVID,
            preprocessing=CAMVID_PREPROCESSING,
            miou=64.5,
            dataset="CamVid, 11 classes, 480x360",
            licence="CC BY-NC 4.0",
            source="trained here by training/train.py; see models/weights/README.md",
        ),
    )
}


def list_models() -> list[ModelSpec]:
    return list(SPECS.values())


def get_spec(name: str) -> ModelSpec:
    """
    Raises:
        UnknownModel: the message lists the names there are
    """
    try:
        return SPECS[name]
    except KeyError:
        raise UnknownModel(f"no model {name!r}; there are {', '.join(SPECS)}") from None


def create_model(name: str) -> Segmentor:
    """The registered model with its weights, in eval mode, float32, on the CPU.

    Raises:
        UnknownModel: no such name
        CheckpointError: the weights are missing or not the ones that were published
    """
    spec = get_spec(name)
    if not spec.weights.is_file():
        raise CheckpointError(f"{spec.weights}: the weights of {name} are missing")
    digest = sha256(spec.weights.read_bytes()).hexdigest()
    if digest != spec.sha256:
        raise CheckpointError(f"{spec.weights}: sha256 is {digest}, not {spec.sha256}: a damaged or changed file")
    return load_segmentor(spec.weights)
