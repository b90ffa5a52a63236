"""Feature cache on disk, in the files of av-benchmark: dicts of tensors by clip, in the folder ``cache``.

Beside a table lies a record of what av-benchmark does not keep: the weights, and the state of each file, that
the features were made from. Unfinished work stands in a ``.part`` file, which a later run goes on from.
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
from vab.utils.files import atomic, read_json, write_whole
from vab.utils.provenance import sha256

SAVE_EVERY_SECONDS = 60.0
AV_BENCHMARK_SECONDS = 8.0  # of sound behind av-benchmark's own cache


def cache_folder(folder: Path, seconds: float, base: Path | None) -> Path:
    """The cache folder of a folder of clips: inside it, as av-benchmark has it for 8 s, or in ``base``.

    That of a manifest lies in the folder that is called as it is, without its ending.
    """
    folder = folder.with_suffix("") if folder.is_file() else folder
    name = "cache" if seconds == AV_BENCHMARK_SECONDS else f"cache_{seconds:g}s"
    if base is None:
        return folder / name
    # the hash keeps apart folders of the same name
    place = folder.resolve()
    return base / f"{place.name}-{sha256(str(place))[:8]}" / name


class FeatureCache:
    """Features of one spec for the clips of one folder.

    Tables that have no record were made by av-benchmark: they count for whatever file has their name.
    Raises ``EvaluationError`` for a file that cannot be read, or a folder that cannot be written.
    """

    def __init__(self, folder: Path, spec: FeatureSpec, weights: str | None) -> None:
        """``weights`` is their hash; None: not known, so what is here is taken whatever it was made with."""
        self.folder = folder
        self.tables = _paths(folder, spec)
        self.record = folder / f"{spec.name}.json"
        self.part = folder / f"{spec.name}.part"
        self.features: dict[str, tuple[Features, ...]] = {}
        self.stamps: dict[str, str | None] = {}
        self.weights = weights
        self.saved_at = time.monotonic()
        self.dirty = False
        self._read()

    @property
    def external(self) -> bool:
        """True if it holds features that somebody else made."""
        return any(stamp is None for stamp in self.stamps.values())

    def has(self, name: str, stamp: str | None) -> bool:
        """True if it holds the features of a clip, made from this state of its file (None: any state)."""
        if name not in self.features:
            return False
        return stamp is None or self.stamps[name] is None or self.stamps[name] == stamp

    def keep(self, names: Collection[str]) -> None:
        """Drop the features of clips that are gone; those that somebody else made stay in their tables."""
        # without a stamp: from a table that somebody else made
        gone = {name for name in set(self.features) - set(names) if self.stamps[name] is not None}
        for name in gone:
            del self.features[name], self.stamps[name]
        self.dirty = self.dirty or bool(gone)

    def put(self, name: str, stamp: str, features: tuple[Features, ...]) -> None:
        """Store the features of a clip, and save every minute."""
        self.features[name] = features
        self.stamps[name] = stamp
        self.dirty = True
        if time.monotonic() - self.saved_at > SAVE_EVERY_SECONDS:
            self.save(False)

    def save(self, complete: bool) -> None:
        """Write changes: the tables if all clips are done, else the part that a later run goes on from."""
        if not self.dirty:
            return
        try:
            if complete:
                for n, path in enumerate(self.tables):
                    _save({k: self.features[k][n] for k in sorted(self.features)}, path)
                # last, so that a crash before it leaves clips that the record does not know
                record = {"weights": self.weights, "stamps": self.stamps}
                write_whole(self.record, json.dumps(record).encode())
                self.part.unlink(missing_ok=True)
                self.dirty = False
            else:
                # features that somebody else made stand in their own tables already
                new = {k: v for k, v in self.features.items() if self.stamps[k] is not None}
                stamps = {k: self.stamps[k] for k in new}
                _save({"weights": self.weights, "stamps": stamps, "features": new}, self.part)
        except OSError as error:
            advice = "give another folder with --cache"
            raise EvaluationError(f"{self.folder}: {first_line(error)}; {advice}") from None
        self.saved_at = time.monotonic()

    def _read(self) -> None:
        # the tables, if they were made with the same weights
        if all(path.is_file() for path in self.tables):
            record = _record_of(self.record)
            if record is None or self._fits(record["weights"]):
                tables = [_load(path) for path in self.tables]
                names = set.intersection(*(set(table) for table in tables))
                self.features = {name: tuple(table[name] for table in tables) for name in sorted(names)}
                if record is None:
                    self.stamps = dict.fromkeys(names)
                else:
                    # a clip that the record does not know was written just before a crash: extract it again
                    self.stamps = {name: record["stamps"].get(name, "") for name in names}
                    self.weights = self.weights or record["weights"]
        if self.part.is_file():
            # unfinished work of an earlier run counts before the tables
            unfinished = _load(self.part)
            if self._fits(unfinished["weights"]):
                self.features |= unfinished["features"]
                self.stamps |= unfinished["stamps"]
                self.dirty = True

    def _fits(self, weights: str | None) -> bool:
        return self.weights is None or weights == self.weights


def _record_of(path: Path) -> dict[str, Any] | None:
    try:
        record = read_json(path)
        return {"weights": record["weights"], "stamps": dict(record["stamps"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path}: not a record of features ({error}); delete it") from None


def _load(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise EvaluationError(f"{path}: not a cache of features ({first_line(error)}); delete it") from None
    if not isinstance(content, dict):
        raise EvaluationError(f"{path}: not a cache of features but a {type(content).__name__}; delete it")
    return content


def _save(content: dict[str, Any], path: Path) -> None:
    # into an open file: torch writes the name of a path, here a random one, into the archive
    with atomic(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def _paths(folder: Path, spec: FeatureSpec) -> list[Path]:
    return [folder / f"{table}.pth" for table in spec.tables]


def tables_in(folder: Path, specs: Iterable[FeatureSpec]) -> list[FeatureSpec]:
    """The specs whose tables lie in a folder."""
    return [spec for spec in specs if all(path.is_file() for path in _paths(folder, spec))]
