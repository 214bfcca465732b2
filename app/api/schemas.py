"""Parameters of requests and bodies of replies."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Format = Literal["json", "png", "palette", "color", "overlay"]
DEFAULT_ALPHA = 0.5


class ResultQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Format | None = Field(None, description="Format of the reply; else `Accept` decides; JSON is the default.")
    alpha: float = Field(DEFAULT_ALPHA, ge=0, le=1, description="Weight of the colours in an overlay.")


class ImageSize(BaseModel):
    width: int
    height: int


class Prediction(BaseModel):
    """One class that occurs in the mask. x and y are the centre of its bounding box, as detection libraries have it."""

    class_name: str = Field(serialization_alias="class")
    class_id: int
    confidence: float = Field(description="Mean softmax probability over the class's pixels.")
    area: int = Field(description="Pixels.")
    fraction: float = Field(description="Share of the image's pixels.")
    x: float
    y: float
    width: int
    height: int


class Links(BaseModel):
    """Empty if the result is larger than all the memory there is for results."""

    mask: str | None = None
    overlay: str | None = None
    attention: str | None = Field(None, description="Absent if the request had attention=false.")


class SegmentReply(BaseModel):
    id: str
    model: str
    image: ImageSize
    class_map: dict[str, str] = Field(description="Class id to class name.")
    segmentation_mask: str = Field(description="Base64 of a grayscale PNG; each pixel is a class id.")
    predictions: list[Prediction]
    timings_ms: dict[str, float] = Field(description="Stages of this request, and `module.*` of its batch.")
    links: Links


class Cell(BaseModel):
    row: int
    column: int


class WeightedCell(Cell):
    weight: float


class AttentionReply(BaseModel):
    id: str
    model: str
    block: str
    step: str | None = Field(description="Of a recurrent block.")
    level: str | None = Field(description="Of a pyramid block.")
    x: int
    y: int
    cell: Cell = Field(description="Where the pixel lies in the grid.")
    grid: ImageSize
    sum: float
    max: float
    entropy: float = Field(description="Bits.")
    on_cross: float = Field(description="Share of the weight on the cell's own row and column.")
    anchors: dict[str, list[list[float]]] | None = Field(description="Of a pyramid block: weights by pool scale.")
    levels: dict[str, float] | None = Field(description="Of a pyramid block: share of the weight by pool scale.")
    top: list[WeightedCell] = Field(description="The heaviest cells.")
    weights: list[list[float]] = Field(description="The whole map, rows of the grid.")


class BlockInfo(BaseModel):
    block: str
    steps: list[str] = Field(description="Values of `step`; empty if the block runs once.")
    levels: list[str] = Field(description="Values of `level`; empty unless the block is a pyramid.")
    grid: ImageSize


class AttentionInfo(BaseModel):
    id: str
    model: str
    image: ImageSize
    blocks: list[BlockInfo]


class ModelClass(BaseModel):
    id: int
    name: str
    color: tuple[int, int, int] = Field(description="RGB.")


class ModelInfo(BaseModel):
    name: str
    title: str
    default: bool
    state: str = Field(description="available, loading, ready or failed; a model that serves is ready.")
    reason: str | None = Field(description="Why the last load failed.")
    device: str
    dataset: str
    miou: float | None = Field(description="Percent, on the data set's test split; null if nobody has said.")
    input_rule: str
    classes: list[ModelClass]
    licence: str
    source: str


class Health(BaseModel):
    status: str
    version: str
    device: str
    models: list[str]
    queue_size: int
    results: int
