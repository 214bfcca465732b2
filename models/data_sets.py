"""The data sets that published models know: their classes, and the size at which they are evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from models import classes
from models.classes import ClassSet


@dataclass(frozen=True)
class DataSet:
    """
    Attributes:
        scale: (long side, short side) that images are resized to fit for evaluation, as mmsegmentation has it
    """

    name: str
    classes: ClassSet
    scale: tuple[int, int]


CITYSCAPES = DataSet("Cityscapes", classes.CITYSCAPES, (2048, 1024))
ADE20K = DataSet("ADE20K", classes.ADE20K, (2048, 512))
VOC = DataSet("Pascal VOC 2012 + Aug", classes.VOC, (2048, 512))
# No model of it is published elsewhere: the scale is that of ours.
CAMVID = DataSet("CamVid, 11 classes, 480x360", classes.CAMVID, (640, 480))

DATA_SETS = (CITYSCAPES, ADE20K, VOC, CAMVID)


def of_class_count(count: int) -> DataSet | None:
    """The data set with so many classes, if there is one."""
    return next((data_set for data_set in DATA_SETS if len(data_set.classes.names) == count), None)
