"""Draws the README's picture: a drawn street, its mask, and where one pixel of it looked.

`python -m benchmarks.example` writes benchmarks/results/example.jpg.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.api.attention import Question, attention_map
from app.api.attention_views import Look, render_heat
from app.api.derived import Derived
from app.api.record import Record
from app.api.rendering import render_file
from app.engine.device import Segmentation
from app.engine.prepare import prepare
from app.engine.worker import Worker
from app.imaging import decode, encode_rgb
from models import get_spec
from training.scenes import draw_street

MODEL = "ccnet-mobilenetv2-camvid"
SEED = 1000
POINT = (342, 330)
RESULT = Path(__file__).parent / "results" / "example.jpg"


def segment(image: NDArray[np.uint8]) -> Record:
    spec, upload = get_spec(MODEL), encode_rgb(image)
    worker = Worker("auto", 0)
    worker.load(spec, spec.name)
    (prepared,) = prepare(image, spec, spec.inference, wants_traces=True)
    (segmentation,) = worker.run(MODEL, worker.stage([prepared])).outcomes
    assert isinstance(segmentation, Segmentation)
    return Record("example", spec, upload, segmentation)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    image, _ = draw_street(SEED)
    record = segment(image)
    pictures = [
        render_file(record, "overlay", "image/png", 0.6),
        *(
            render_heat(record, attention_map(record, Question(POINT, "cca", step), Derived(0)), Look(), "PNG")
            for step in ("1", "composed")
        ),
    ]
    panels = [image, *(decode(picture, image.size) for picture in pictures)]
    rows = [np.concatenate(pair, axis=1) for pair in (panels[:2], panels[2:])]
    Image.fromarray(np.concatenate(rows)).save(RESULT, quality=90)


if __name__ == "__main__":
    main()
