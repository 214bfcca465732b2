"""The models there are, on the device or not: the bundled ones, and what is in the folder for checkpoints."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.description import read_description
from models import ModelError, ModelSpec, UnknownModel, recognise

log = logging.getLogger(__name__)

# In this order: of two files of one name, the later goes before the earlier.
SUFFIXES = (".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class Unreadable:
    """A file that is no model that we know.

    Attributes:
        name: that it would have
        reason: one sentence
    """

    name: str
    reason: str


Found = ModelSpec | Unreadable
Stamp = tuple[tuple[str, int, int], ...]  # of a file and what lies beside it: path, time of change in ns, bytes


def describe(path: Path) -> ModelSpec:
    """What a checkpoint file is, with what the YAML file beside it says.

    Raises:
        CheckpointError: as `models.recognise` and `read_description`
    """
    return recognise(path, read_description(path))


class Catalog:
    """Looks at its folder whenever it is asked; a file is read again only if it has changed. Any thread may ask."""

    def __init__(self, bundled: Sequence[ModelSpec], folder: Path | None) -> None:
        """
        Args:
            folder: where files may come and go; one named as a bundled model is goes before it
        """
        self._bundled = {spec.name: spec for spec in bundled}
        self._folder = folder
        self._known: dict[Path, tuple[Stamp, Found]] = {}
        self._lock = threading.Lock()

    def look(self) -> dict[str, Found]:
        """All models by name, bundled ones first; these alone, if the folder is gone."""
        with self._lock:
            self._known = {path: self._recognised(path) for path in self._files()}
            models: dict[str, Found] = dict(self._bundled)
            for _, found in self._known.values():
                # What cannot be served takes no other's place.
                if isinstance(found, ModelSpec) or not isinstance(models.get(found.name), ModelSpec):
                    models[found.name] = found
            return models

    def specs(self) -> list[ModelSpec]:
        """All that can be read."""
        return [found for found in self.look().values() if isinstance(found, ModelSpec)]

    def find(self, name: str) -> ModelSpec:
        """What is to be loaded under a name, as it is on disk now.

        Raises:
            UnknownModel: the message lists the names there are
            ModelError: its file is no model that we know
        """
        models = self.look()
        found = models.get(name)
        if found is None:
            raise UnknownModel(f"no model {name!r}; there are {', '.join(models)}")
        if isinstance(found, Unreadable):
            raise ModelError(found.reason)
        return found

    def _files(self) -> list[Path]:
        if self._folder is None:
            return []
        try:
            files = [path for path in self._folder.iterdir() if path.suffix in SUFFIXES and _is_offered(path)]
            return sorted(files, key=lambda path: (path.stem, SUFFIXES.index(path.suffix)))
        except OSError as exc:
            log.warning("the folder for models cannot be read: %s", exc)
            return []

    def _recognised(self, path: Path) -> tuple[Stamp, Found]:
        stamp: Stamp = ()
        # What cannot be printed cannot be said in JSON or a log either.
        name = path.stem if path.stem.isprintable() else ascii(path.stem)[1:-1]
        try:
            stamp, known = _stamp(path), self._known.get(path)
            if known is not None and known[0] == stamp:
                return known
            _check_name(path.stem)
            spec = describe(path)
        except (ModelError, OSError) as exc:
            unreadable = Unreadable(name, str(exc))
            if (stamp, unreadable) != self._known.get(path):  # of a link that leads nowhere, once is enough
                log.warning("%s cannot be served: %s", name, exc)
            return stamp, unreadable
        log.info("%s is %s, with the classes of %s", path.name, spec.title, spec.dataset)
        return stamp, spec


def _check_name(name: str) -> None:
    """
    Raises:
        ModelError: no request could name a model so
    """
    if "," in name or name != name.strip() or not name.isprintable():
        raise ModelError(
            f"the file's name is {name!a}: a model's has no comma, no space at an end, and nothing unprintable"
        )


def _is_offered(path: Path) -> bool:
    """Whether somebody has put a file there, be it by a link that leads nowhere."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _stamp(path: Path) -> Stamp:
    with os.scandir(path.parent) as entries:
        beside = [(entry.name, entry.stat()) for entry in entries if Path(entry.name).stem == path.stem]
    return tuple(sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in beside))
