"""The mask of an image from what its passes gave."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from itertools import islice

from torch import Tensor

from models import Trace
from models.ops.upsample import Size
from models.windows import WHOLE, Inference, View, merge_views


@dataclass(eq=False)
class Assembly:
    """Puts together what the passes of one image gave, in whatever order, on whichever threads.

    Logits wait at the resolution that the network gave them, a 64th of the pixels or so.

    Attributes:
        inference: by which the views were listed
        traces: of the one pass that was to keep them
    """

    views: tuple[View, ...]
    original: Size
    inference: Inference = WHOLE
    _logits: dict[int, Tensor] = field(default_factory=dict)
    traces: tuple[Trace, ...] = ()
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, part: int, logits: Tensor, traces: tuple[Trace, ...]) -> bool:
        """Keep the logits [K, h, w] of one pass; true if all are there. A pass that is run again counts once."""
        with self._lock:
            self._logits[part] = logits.clone()  # what it is cut from holds its batch mates too
            self.traces = traces or self.traces
            return len(self._logits) == sum(len(view.windows) for view in self.views)

    def merge(self, *, align_corners: bool) -> tuple[Tensor, Tensor]:
        """Class ids and confidence [H, W] uint8, once all passes are there."""
        parts = iter([self._logits[part] for part in sorted(self._logits)])
        views = [list(islice(parts, len(view.windows))) for view in self.views]
        return merge_views(views, self.views, self.original, self.inference, align_corners=align_corners)
