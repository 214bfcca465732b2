"""The models that come with the package: one table, name to spec."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

from models.checkpoint import load_segmentor
from models.classes import ClassSet
from models.data_sets import CAMVID
from models.errors import CheckpointError, UnknownModel
from models.segmentor import Segmentor
from models.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from models.windows import WHOLE, Inference

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class ModelSpec:
    """All that goes with a model's weights. The architecture itself is read from the weights.

    Attributes:
        sha256: of the weights file, checked before it is read
        miou: percent on the data set's test split at original size, single scale; None if nobody has said
        inference: how the model looks at an image unless told otherwise
        align_corners: how its logits are resized, fixed when it was trained
        recurrence: passes of its criss-cross attention; None if they are as its file has it
    """

    name: str
    title: str
    weights: Path
    sha256: str
    classes: ClassSet
    preprocessing: Preprocessing
    miou: float | None
    dataset: str
    licence: str
    source: str
    inference: Inference = WHOLE
    align_corners: bool = False
    recurrence: int | None = None


# The networks see CamVid's 480x360 enlarged by 4/3: that is where their training's scales have their middle.
CAMVID_PREPROCESSING = Preprocessing(scale=CAMVID.scale, mean=IMAGENET_MEAN, std=IMAGENET_STD, multiple=16)


def _trained_here(name: str, title: str, sha256: str, miou: float) -> ModelSpec:
    return ModelSpec(
        name=name,
        title=title,
        weights=WEIGHTS / f"{name}.safetensors",
        sha256=sha256,
        classes=CAMVID.classes,
        preprocessing=CAMVID_PREPROCESSING,
        miou=miou,
        dataset=CAMVID.name,
        licence="CC BY-NC 4.0",
        source="trained here by training/train.py; see models/weights/README.md",
    )


SPECS = {
    spec.name: spec
    for spec in (
        _trained_here(
            "ccnet-mobilenetv2-camvid",
            "CCNet, MobileNetV2, CamVid",
            "8fa3639c2dd925869b1262ec56e6a3b581ecc20ea59d487844d8450218a95211",
            67.4,
        ),
        _trained_here(
            "ann-mobilenetv2-camvid",
            "ANN, MobileNetV2, CamVid",
            "a0a98fcde78005b6f315a279d00fddbc9d7f157568f9ddf3a6787102e8011356",
            66.9,
        ),
        _trained_here(
            "nonlocal-mobilenetv2-camvid",
            "Non-local, MobileNetV2, CamVid",
            "f413304a9f2b37ce3c35a66d190d6d1a1ec5e356d4fab3a4e72777863b18a4ba",
            67.3,
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
        CheckpointError: as `load_model`
    """
    return load_model(get_spec(name))


def load_model(spec: ModelSpec) -> Segmentor:
    """A model with its weights, in eval mode, float32, on the CPU.

    Raises:
        CheckpointError: the weights are missing, unreadable or not those the spec was made for
    """
    if not spec.weights.is_file():
        raise CheckpointError(f"{spec.weights}: the weights of {spec.name} are missing")
    with spec.weights.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    if digest != spec.sha256:
        raise CheckpointError(f"{spec.weights}: sha256 is {digest}, not {spec.sha256}: a damaged or changed file")
    return load_segmentor(spec.weights, align_corners=spec.align_corners, recurrence=spec.recurrence)
