"""Parameters of requests and bodies of replies."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from app.api.errors import Problem
from app.regions import Polygon
from models.precision import Precision

Format = Literal["json", "png", "palette", "color", "overlay", "confidence", "coco", "geojson", "npz"]
Part = Literal["mask", "rle", "polygons"]
DEFAULT_ALPHA = 0.5
MOST_TEXT = 2000  # characters of a list, far more than anyone needs


class ResultQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Format | None = Field(None, description="Format of the reply; else `Accept` decides; JSON is the default.")
    alpha: float = Field(DEFAULT_ALPHA, ge=0, le=1, description="Weight of the colours in an overlay.")
    include: str = Field("mask", description="The heavy parts that JSON has, as in mask,rle,polygons; or none.")

    @field_validator("include")
    @classmethod
    def _names_parts(cls, include: str) -> str:
        unknown = {name.strip() for name in include.split(",")} - {"", *get_args(Part)}
        if unknown:
            raise ValueError(f"there is no part {min(unknown)!r}; there are {', '.join(get_args(Part))}")
        return include

    @property
    def parts(self) -> tuple[Part, ...]:
        named = [name.strip() for name in self.include.split(",")]
        return tuple(part for part in get_args(Part) if part in named)


class SegmentQuery(ResultQuery):
    model: str | None = Field(
        None,
        max_length=MOST_TEXT,
        description="Name of a model, of those at /models, or several parted by commas; else the default.",
    )
    attention: bool = Field(True, description="Keep what /attention/{id} needs.")
    mode: Literal["whole", "slide"] | None = Field(
        None, description="The whole image at once, or windows that slide over it; else as the model was evaluated."
    )
    scales: str | None = Field(
        None,
        max_length=MOST_TEXT,
        description="Factors on the usual input size, as in 0.5,1,1.5: the mean of what each of them gives.",
    )
    flip: bool | None = Field(None, description="Take the mirror image too.")


class ImageSize(BaseModel):
    width: int
    height: int


class Rle(BaseModel):
    """COCO's run lengths of a mask."""

    size: tuple[int, int] = Field(description="Height and width.")
    counts: str


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
    rle: Rle | None = Field(None, description="If asked for by `include`.")
    polygons: list[Polygon] | None = Field(
        None, description="If asked for by `include`: each its outline, then its holes, as closed rings of [x, y]."
    )


class Links(BaseModel):
    """Empty if the result is larger than all the memory there is for results."""

    mask: str | None = None
    overlay: str | None = None
    attention: str | None = Field(None, description="Absent if there is none to show, or it was not kept.")


class SegmentReply(BaseModel):
    id: str
    model: str
    image: ImageSize
    class_map: dict[str, str] = Field(description="Class id to class name.")
    segmentation_mask: str | None = Field(
        None, description="Base64 of a grayscale PNG; each pixel is a class id. Absent if `include` leaves it out."
    )
    predictions: list[Prediction]
    timings_ms: dict[str, float] = Field(description="Stages of this request, and `module.*` of its batch.")
    links: Links


class ModelFailure(BaseModel):
    model: str
    problem: Problem


class ClassPair(BaseModel):
    classes: list[str] = Field(description="What the first model says there, and what the second.")
    share: float = Field(description="Of the image's pixels.")


class ModelPair(BaseModel):
    models: list[str]
    share: float = Field(description="Of the image's pixels: where the two differ.")
    top: list[ClassPair] = Field(description="In what they differ most, at most five.")


class Disagreement(BaseModel):
    """Classes of two models are the same if their names are."""

    share: float = Field(description="Of the image's pixels: where not all models say the same.")
    mask: str = Field(
        description="Base64 of a grayscale PNG: 0 where all agree, 255 where each model says something else."
    )
    pairs: list[ModelPair]


class ComparisonReply(BaseModel):
    """The reply to a request that names several models."""

    image: ImageSize
    results: list[SegmentReply] = Field(description="Of the models that succeeded, in the order they were named.")
    failures: list[ModelFailure] = Field(description="Of the others: what each alone would have been answered.")
    disagreement: Disagreement | None = Field(description="Null if fewer than two succeeded.")
    timings_ms: dict[str, float] = Field(description="What was done once: read, decode; and the total.")


class CocoSegment(BaseModel):
    """One of COCO's results: a class of the mask."""

    image_id: str = Field(description="The result's id.")
    category_id: int
    segmentation: Rle
    score: float


class Cell(BaseModel):
    row: int
    column: int


class WeightedCell(Cell):
    weight: float


class ClassPixels(BaseModel):
    id: int
    name: str
    pixels: int = Field(description="Of the mask.")


class AttentionReply(BaseModel):
    """Members that do not apply are absent."""

    id: str
    model: str
    block: str
    step: str | None = Field(None, description="Of a recurrent block.")
    compose: str | None = Field(None, description="Of both steps together.")
    level: str | None = Field(None, description="Of a pyramid block.")
    direction: str
    image: ImageSize = Field(description="In whose pixels x and y are.")
    x: int | None = None
    y: int | None = None
    of_class: ClassPixels | None = Field(
        None, serialization_alias="class", description="The class whose pixels were averaged over, in place of a point."
    )
    cell: Cell | None = Field(None, description="Where the pixel lies in the grid.")
    grid: ImageSize
    sum: float = Field(description="1 for what is looked at; for who looks, 1 is as much as the cell itself gives.")
    max: float
    entropy: float = Field(description="Bits, of the weights as shares of their sum.")
    on_cross: float | None = Field(None, description="Share of the weight on the cell's own row and column.")
    gamma: float | None = Field(None, description="Of a rollout: the factor of attention beside its residual.")
    anchors: dict[str, list[list[float]]] | None = Field(None, description="Of a pyramid block: weights by pool scale.")
    levels: dict[str, float] | None = Field(None, description="Of a pyramid block: share of the weight by pool scale.")
    top: list[WeightedCell] = Field(description="The heaviest cells.")
    weights: list[list[float]] | None = Field(None, description="The whole map, rows of the grid.")


class BlockInfo(BaseModel):
    block: str
    steps: list[str] = Field(description="Values of `step`; empty if the block runs once.")
    composes: list[str] = Field(description="Values of `compose`; empty unless there are two steps.")
    levels: list[str] = Field(description="Values of `level`; empty unless the block is a pyramid.")
    grid: ImageSize


class AttentionInfo(BaseModel):
    id: str
    model: str
    image: ImageSize
    blocks: list[BlockInfo]
    classes: list[ClassPixels] = Field(description="Values of `class`: those that the mask has.")


class ModelClass(BaseModel):
    id: int
    name: str
    color: tuple[int, int, int] = Field(description="RGB.")


class ModelInfo(BaseModel):
    """A model. Of a file that is none, only name, state and reason say anything."""

    name: str
    title: str
    default: bool = False
    state: str = Field(description="available, loading, ready or failed; a model that serves is ready.")
    reason: str | None = Field(description="Why the last load failed.")
    device: str = ""
    precision: Precision | None = Field(
        None, description="What it computes in: float32, mixed (bfloat16 in part) or bfloat16; null unless it serves."
    )
    dataset: str = ""
    miou: float | None = Field(None, description="Percent, on the data set's test split; null if nobody has said.")
    input_rule: str = ""
    inference: str = Field("", description="How the model looks at an image, unless a request says otherwise.")
    classes: list[ModelClass] = []
    licence: str = ""
    source: str = ""


class Health(BaseModel):
    status: str
    version: str
    device: str
    models: list[str]
    queue_size: int
    results: int
