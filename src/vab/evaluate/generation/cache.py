"""Features on disk, in the files of av-benchmark: dicts of tensors by clip, in the folder ``cache``.

Beside a table lies what av-benchmark does not keep: with which weights, and from which state of each file the
features were made. While they are being made they stand in a ``.part`` file, which a later run goes on from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch

from vab.errors import first_line
from vab.evaluate.backbones.registry import Features, FeatureSpec
from vab.evaluate.metrics.statistics import EvaluationError
from vab.utils.files import atomic, write_whole
from vab.utils.provenance import sha256

EVERY = 60.0  # seconds between saves
ITS_LENGTH = 8.0  # seconds of sound behind av-benchmark's own cache


def cache_folder(folder: Path, seconds: float, base: Path | None) -> Path:
    """Where the features of a folder's sounds lie: in it, as av-benchmark has it for 8 s, or in ``base``."""
    name = "cache" if seconds == ITS_LENGTH else f"cache_{seconds:g}s"
    if base is None:
        return folder / name
    place = folder.resolve()  # folders of one name must not share
    return base / f"{place.name}-{sha256(str(place))[:8]}" / name


class FeatureCache:
    """Features of one kind for the clips of one folder.

    Tables that have no record were made by av-benchmark: they count for whatever file has their name.
    Raises ``EvaluationError`` for a file that cannot be read, or a folder that cannot be written.
    """

    def __init__(self, folder: Path, kind: FeatureSpec, weights: str | None) -> None:
        """``weights`` is their hash; None: not known, so what is here is taken whatever it was made with."""
        self.folder, self.kind = folder, kind
        self.features: dict[str, tuple[Features, ...]] = {}
        self.stamps: dict[str, str | None] = {}
        self.weights = weights
        self.saved_at = time.monotonic()
        self.dirty = False
        self._read()

    @property
    def external(self) -> bool:
        """Whether it holds anything that somebody else made."""
        return any(stamp is None for stamp in self.stamps.values())

    def has(self, name: str, stamp: str | None) -> bool:
        """Whether the features of a clip are here, made from its file as it is (None: whatever it is)."""
        if name not in self.features:
            return False
        return stamp is None or self.stamps[name] is None or self.stamps[name] == stamp

    def keep(self, names: Collection[str]) -> None:
        """Drop the features that were made of clips that are gone. What others made stays in their tables."""
        gone = {name for name in set(self.features) - set(names) if self.stamps[name] is not None}
        for name in gone:
            del self.features[name], self.stamps[name]
        self.dirty = self.dirty or bool(gone)

    def put(self, name: str, stamp: str, features: tuple[Features, ...]) -> None:
        """Keep the features of a clip; saved now and then."""
        self.features[name], self.stamps[name] = features, stamp
        self.dirty = True
        if time.monotonic() - self.saved_at > EVERY:
            self.save(False)

    def save(self, complete: bool) -> None:
        """Write what is new: the tables if it is complete, else the file a later run goes on from."""
        if not self.dirty:
            return
        part = self.folder / f"{self.kind.name}.part"
        try:
            if complete:
                for n, table in enumerate(self.kind.tables):
                    _save({k: self.features[k][n] for k in sorted(self.features)}, self._path(table))
                record = {"weights": self.weights, "stamps": self.stamps}
                write_whole(self._record(), json.dumps(record).encode())
                part.unlink(missing_ok=True)
                self.dirty = False
            else:
                new = {k: v for k, v in self.features.items() if self.stamps[k] is not None}
                stamps = {k: self.stamps[k] for k in new}
                _save({"weights": self.weights, "stamps": stamps, "features": new}, part)
        except OSError as error:
            advice = "give another folder with --cache"
            raise EvaluationError(f"{self.folder}: {first_line(error)}; {advice}") from None
        self.saved_at = time.monotonic()

    def _path(self, table: str) -> Path:
        return self.folder / f"{table}.pth"

    def _record(self) -> Path:
        return self.folder / f"{self.kind.name}.json"

    def _read(self) -> None:
        paths = [self._path(table) for table in self.kind.tables]
        if all(path.is_file() for path in paths):
            record = _record_of(self._record())
            if record is None or self._fits(record["weights"]):
                tables = [_load(path) for path in paths]
                names = set.intersection(*(set(table) for table in tables))
                self.features = {name: tuple(table[name] for table in tables) for name in sorted(names)}
                stamps = None if record is None else record["stamps"]
                # a clip that the record does not know was written just before a crash: make it again
                self.stamps = {name: None if stamps is None else stamps.get(name, "") for name in names}
                self.weights = self.weights or (record or {}).get("weights")
        part = self.folder / f"{self.kind.name}.part"
        if part.is_file():
            found = _load(part)
            if self._fits(found["weights"]):
                self.features |= found["features"]
                self.stamps |= found["stamps"]
                self.dirty = True

    def _fits(self, weights: str | None) -> bool:
        return self.weights is None or weights == self.weights


def _record_of(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"weights": record["weights"], "stamps": dict(record["stamps"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path}: not a record of features ({error}); delete it") from None


def _load(path: Path) -> dict[str, Any]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise EvaluationError(f"{path}: not a cache of features ({first_line(error)}); delete it") from None
    if not isinstance(found, dict):
        raise EvaluationError(f"{path}: not a cache of features but a {type(found).__name__}; delete it")
    return found


def _save(content: dict[str, Any], path: Path) -> None:
    with atomic(path) as temporary:
        torch.save(content, temporary)


def tables_in(folder: Path, kinds: Iterable[FeatureSpec]) -> list[FeatureSpec]:
    """The kinds whose tables lie in a folder."""
    return [kind for kind in kinds if all((folder / f"{table}.pth").is_file() for table in kind.tables)]
