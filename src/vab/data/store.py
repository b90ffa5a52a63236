"""Manifests of clips, and their latents on disk.

A store is a folder: ``store.json`` (what made it), ``codebooks.safetensors`` (the codec's vectors, so that
training needs no codec), ``failures.csv``, and shards ``shard-000000.arrow`` ...

The shards are uncompressed Arrow IPC files of one record batch each, not Parquet: their columns are memory
mapped as they lie, so any row is read without decoding its neighbours, opening a store of any size takes no
memory, and the processes of one machine share the pages. Codec tokens do not compress anyway.
A shard is written under a temporary name, synced and renamed, so a killed run leaves only whole shards.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from vab.config import audio_frames, video_frames
from vab.errors import VABError
from vab.utils.files import sync_folder, write_whole
from vab.utils.provenance import sha256


class StoreError(VABError, ValueError):
    """A store that cannot be read, or that was made with other settings."""


@dataclass(frozen=True)
class StoreMeta:
    """What made a store. Latents made with different values never mix."""

    codec: str
    vision: str
    codebooks: int  # K
    vocabulary: int  # V
    codebook_dim: int  # C
    vision_dim: int
    seconds: float  # the window
    fps: float  # video features per second
    fill: str = "zero"  # what follows a sound shorter than the window: zero or repeat
    codec_fingerprint: str = ""
    vision_fingerprint: str = ""

    @property
    def token_shape(self) -> tuple[int, int]:
        """K, T."""
        return self.codebooks, audio_frames(self.seconds)

    @property
    def feature_shape(self) -> tuple[int, int]:
        """F, dim."""
        return video_frames(self.seconds, self.fps), self.vision_dim


@dataclass(frozen=True)
class Latents:
    """One clip's latents; a stream it does not have is None."""

    id: str
    label: str
    split: str
    tokens: NDArray[np.uint16] | None  # [K, T]
    features: NDArray[np.float16] | None  # [F, dim]
    real_tokens: int | None = None  # how many of the T are the clip's own, not filled up; None is all
    real_features: int | None = None  # and of the F


class LatentStore:
    """Latents on disk; rows are numbered from 0 in the order of writing."""

    def __init__(self, directory: Path, meta: StoreMeta) -> None:
        self.directory = directory
        self.meta = meta
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.splits: list[str] = []
        self._starts: list[int] = []  # first row of each shard
        self._has: dict[str, list[NDArray[np.bool_]]] = {"tokens": [], "features": []}
        self._values: dict[str, list[NDArray]] = {"tokens": [], "features": []}
        self._real: dict[str, list[NDArray[np.int32]]] = {"tokens": [], "features": []}
        self._hashes: list[str] = []
        for shard in sorted(directory.glob("shard-*.arrow")):
            self._map(shard)

    @classmethod
    def create(cls, directory: str | Path, meta: StoreMeta, codebook_vectors: NDArray) -> LatentStore:
        """A new store, or the one that stands there if it was made the same way (else ``StoreError``).

        ``codebook_vectors`` [K, V, C] are kept for training.
        """
        directory = Path(directory)
        if (directory / "store.json").exists():
            store = cls.open(directory)
            old, new = asdict(store.meta), asdict(meta)
            other = [f"{key} is {old[key]!r}, now {new[key]!r}" for key in new if old[key] != new[key]]
            if other:
                raise StoreError(f"{directory} was made otherwise: {'; '.join(other)}. Use another folder.")
            return store
        if codebook_vectors.shape != (meta.codebooks, meta.vocabulary, meta.codebook_dim):
            raise StoreError(f"codebook vectors are {codebook_vectors.shape}, the store says {meta}")
        directory.mkdir(parents=True, exist_ok=True)
        vectors = np.ascontiguousarray(codebook_vectors, dtype=np.float32)
        write_whole(directory / "codebooks.safetensors", save({"codebooks": vectors}))
        write_whole(directory / "store.json", (json.dumps(asdict(meta), indent=1) + "\n").encode())
        return cls(directory, meta)

    @classmethod
    def open(cls, directory: str | Path) -> LatentStore:
        """The store of that folder; ``StoreError`` if there is none or a shard is damaged."""
        path = Path(directory) / "store.json"
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise StoreError(
                f"{directory} holds no store (no store.json); make one with `vab extract`"
            ) from None
        except json.JSONDecodeError as error:
            raise StoreError(f"{path}: {error}") from None
        unknown = set(values) ^ {field.name for field in fields(StoreMeta)}
        if unknown:
            raise StoreError(f"{path} comes from another version of vab: {', '.join(sorted(unknown))}")
        return cls(Path(directory), StoreMeta(**values))

    def _map(self, shard: Path) -> None:
        try:
            with pa.memory_map(str(shard)) as source:  # the pages stay mapped, the file need not stay open
                table = pa.ipc.open_file(source).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise StoreError(f"{shard} is damaged ({error}); delete it and extract again") from None
        if "real_tokens" not in table.column_names:
            raise StoreError(f"{shard} comes from an older version of vab; extract again")
        self._starts.append(len(self.ids))
        self.ids += table["id"].to_pylist()
        self.labels += table["label"].to_pylist()
        self.splits += table["split"].to_pylist()
        self._hashes.append(table.schema.metadata[b"sha256"].decode())
        for name, shape in (("tokens", self.meta.token_shape), ("features", self.meta.feature_shape)):
            column = table[name].chunk(0)
            self._has[name].append(column.is_valid().to_numpy(zero_copy_only=False))
            self._values[name].append(column.values.to_numpy().reshape(-1, *shape))
            self._real[name].append(table[f"real_{name}"].to_numpy())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the store for one writer; removes what a killed one left half written."""
        with (self.directory / ".lock").open("w") as lock:
            if os.name == "posix":
                import fcntl

                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise StoreError(f"{self.directory}: another process writes to this store") from None
            for stale in self.directory.glob(".*.tmp"):
                stale.unlink()
            yield

    def add(self, rows: Sequence[Latents]) -> None:
        """Write one shard of clips; all of it or nothing. ``StoreError`` on wrong shapes or known ids."""
        if not rows:
            return
        ids = [row.id for row in rows]
        known = set(self.ids).intersection(ids)
        if known or len(set(ids)) != len(ids):
            raise StoreError(f"{self.directory} has these clips already: {sorted(known) or ids}")
        tokens = self._column(rows, "tokens", np.dtype(np.uint16), self.meta.token_shape)
        features = self._column(rows, "features", np.dtype(np.float16), self.meta.feature_shape)
        texts = [ids, [row.label for row in rows], [row.split for row in rows]]
        long, many = self.meta.token_shape[1], self.meta.feature_shape[0]
        real = [
            [long if row.real_tokens is None else row.real_tokens for row in rows],
            [many if row.real_features is None else row.real_features for row in rows],
        ]
        values = (tokens.values.to_numpy().data, features.values.to_numpy().data)
        content = sha256(json.dumps([texts, real]), *values)
        arrays = [*(pa.array(text, pa.string()) for text in texts), tokens, features]
        arrays += [pa.array(counts, pa.int32()) for counts in real]
        names = ["id", "label", "split", "tokens", "features", "real_tokens", "real_features"]
        batch = pa.record_batch(arrays, names=names)
        batch = batch.replace_schema_metadata({"sha256": content})
        shard = self.directory / f"shard-{len(self._starts):06d}.arrow"
        temporary = shard.with_name(f".{shard.name}.tmp")
        with temporary.open("wb") as stream:
            with pa.ipc.new_file(stream, batch.schema) as writer:
                writer.write_batch(batch)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(shard)
        sync_folder(self.directory)
        self._map(shard)

    def _column(
        self, rows: Sequence[Latents], name: str, kind: np.dtype, shape: tuple[int, int]
    ) -> pa.FixedSizeListArray:
        """[n, *shape] as one fixed-size list per row; an absent stream is null."""
        values = np.zeros((len(rows), *shape), kind)
        absent = np.ones(len(rows), bool)
        for i, row in enumerate(rows):
            value = getattr(row, name)
            if value is None:
                continue
            if value.shape != shape or value.dtype != kind:
                raise StoreError(f"{name} of {row.id} are {value.dtype} {value.shape}, not {kind} {shape}")
            values[i], absent[i] = value, False
        flat = pa.array(values.reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, math.prod(shape), mask=pa.array(absent))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Latents:
        has = {name: bool(self.has(name)[row]) for name in self._has}
        tokens = self.gather("tokens", [row])[0] if has["tokens"] else None
        features = self.gather("features", [row])[0] if has["features"] else None
        texts = (self.ids[row], self.labels[row], self.splits[row])
        real = (int(self.real(name)[row]) for name in ("tokens", "features"))
        return Latents(*texts, tokens, features, *real)

    def has(self, name: str) -> NDArray[np.bool_]:
        """[N]: which rows have ``tokens`` or ``features``."""
        return np.concatenate([np.zeros(0, bool), *self._has[name]])

    def real(self, name: str) -> NDArray[np.int32]:
        """[N]: how many places of each row's ``tokens`` or ``features`` are the clip's own."""
        return np.concatenate([np.zeros(0, np.int32), *self._real[name]])

    def gather(self, name: str, rows: Sequence[int] | NDArray[np.int64]) -> NDArray:
        """``tokens`` [n, K, T] or ``features`` [n, F, dim] of those rows; zeros where a row has none."""
        values = self._values[name]
        shape = self.meta.token_shape if name == "tokens" else self.meta.feature_shape
        out = np.empty((len(rows), *shape), np.uint16 if name == "tokens" else np.float16)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for i, (shard, row) in enumerate(zip(shards, rows, strict=True)):
            out[i] = values[shard][row - self._starts[shard]]
        return out

    def preload(self, limit: int = 2 << 30) -> None:
        """Copy the latents to memory when they take less than ``limit`` bytes; else they stay mapped."""
        shards = [shard for values in self._values.values() for shard in values]
        if sum(shard.nbytes for shard in shards) < limit:
            self._values = {name: [shard.copy() for shard in v] for name, v in self._values.items()}

    def codebook_vectors(self) -> NDArray[np.float32]:
        """[K, V, C] of the codec that made the tokens."""
        return load_file(self.directory / "codebooks.safetensors")["codebooks"]

    def feature_statistics(self, clips: int = 10_000) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation [dim] of the training pictures, over ``clips`` spread evenly.

        Without a picture there is nothing to know: zeros and ones.
        """
        seen = np.flatnonzero(self.has("features") & (np.array(self.splits) == "train"))
        rows = np.array(sorted(seen, key=lambda row: self.ids[row]))
        if not len(rows):
            dim = self.meta.vision_dim
            return np.zeros(dim, np.float32), np.ones(dim, np.float32)
        rows = rows[np.linspace(0, len(rows), min(clips, len(rows)), endpoint=False).astype(np.int64)]
        values = self.gather("features", rows).reshape(-1, self.meta.vision_dim).astype(np.float32)
        return values.mean(0), values.std(0).clip(min=1e-3)

    def fingerprint(self) -> str:
        """Hash of settings, vectors and content; the order of the shards does not count."""
        vectors = self.codebook_vectors()
        return sha256(json.dumps(asdict(self.meta)), vectors.tobytes(), *sorted(self._hashes))
