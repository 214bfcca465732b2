"""The YAML file beside a checkpoint, `NAME.yaml` for `NAME.pth`, that says what the checkpoint itself does not."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from models import Card, CheckpointError
from models.windows import Average, BelowCrop, Mode, Upsampling

Byte = Annotated[int, Field(ge=0, le=255)]
Side = Annotated[int, Field(ge=1, le=65535)]
Sides = tuple[Side, Side]
Triple = tuple[float, float, float]


class Description(BaseModel):
    """Each key may be left out: then it is as the checkpoint has it, or as its layout and data set have it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    title: str | None = None
    dataset: str | None = None
    classes: tuple[str, ...] | None = Field(None, min_length=1)
    palette: tuple[tuple[Byte, Byte, Byte], ...] | None = None
    mean: Triple | None = None
    std: Triple | None = None
    bgr: bool | None = None
    scale: Sides | None = None
    mode: Mode | None = None
    crop: Sides | None = None
    stride: Sides | None = None
    scales: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(None, min_length=1)
    flip: bool | None = None
    below_crop: BelowCrop | None = None
    upsampling: Upsampling | None = None
    average: Average | None = None
    align_corners: bool | None = None
    recurrence: Literal[1, 2, 3] | None = None
    miou: float | None = None
    licence: str | None = None
    source: str | None = None


def read_description(checkpoint: Path) -> Card:
    """What the YAML file beside a checkpoint says: nothing if there is none.

    Raises:
        CheckpointError: it is no YAML, or has keys or values that we do not know; the message names them
    """
    beside = [path for suffix in (".yaml", ".yml") if (path := checkpoint.with_suffix(suffix)).is_file()]
    if not beside:
        return Card()
    path, *others = beside
    if others:
        raise CheckpointError(f"{path}: there is {others[0].name} too; keep one of them")
    try:
        description = Description.model_validate(yaml.safe_load(path.read_bytes()) or {})
    # Of deeply nested text YAML's parser makes a RecursionError.
    except (yaml.YAMLError, UnicodeError, RecursionError) as exc:
        raise CheckpointError(f"{path}: no YAML: {' '.join(str(exc).split())}") from exc
    except ValidationError as exc:
        raise CheckpointError(f"{path}: {'; '.join(map(_sentence, exc.errors()))}") from exc
    return Card(**dict(description))


def _sentence(error: ErrorDetails) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {name!r}; there are {', '.join(Description.model_fields)}"
    if not name:
        return f"not a mapping of keys to values, but {reprlib.repr(error['input'])}"
    given = "" if error["type"] == "missing" else f", not {reprlib.repr(error['input'])}"
    return f"{name}: {error['msg']}{given}"
