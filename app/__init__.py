"""SegLens: segmentation over HTTP, with its attention."""

__version__ = "0.4.0"
