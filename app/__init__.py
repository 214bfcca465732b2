"""SegLens: segmentation over HTTP, with its attention."""

__version__ = "0.2.0"
