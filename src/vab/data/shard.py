"""Shards: the files of a latent store, with their columns, their checksums, and the name these give.

A shard is an uncompressed Arrow IPC file of one record batch, not Parquet: its columns are memory mapped as
they lie, so any row is read without decoding its neighbours, a store of any size takes no memory, and the
processes of one machine share the pages. Codec tokens do not compress anyway.

Each row has the SHA-256 of its tokens and of its features. These, all else that a row holds and the store's
settings are hashed in turn, and the first 16 digits are the name: ``shard-0123456789abcdef.arrow``. So the
small columns are verified whenever a shard is opened, and a clip's latents when they are first read; shards
of several writers never collide; and the same clips make the same file.
Up to version 0.1 shards were numbered, with one hash for a whole shard; those are read as before.
"""

from __future__ import annotations

import errno
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256 as one_hash
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vab.config import (
    ModelConfig,
    audio_frames,
    current_names,
    former_fields,
    from_dict,
    video_frames,
)
from vab.errors import VABError, first_line
from vab.utils import Precision
from vab.utils.files import atomic, read_json
from vab.utils.provenance import sha256

PATTERN = "shard-*.arrow"
STREAMS = ("tokens", "features")


class StoreError(VABError, ValueError):
    """A store that cannot be read, or that was made with other settings."""


@dataclass(frozen=True)
class StoreMeta:
    """Settings of a store. Latents made with different values never mix."""

    codec: str
    vision: str
    num_codebooks: int  # K
    codebook_size: int  # V
    codebook_dim: int  # C
    vision_dim: int
    seconds: float  # the window
    fps: float  # video features per second
    fill: str = "zero"  # what follows audio shorter than the window: zero or repeat
    codec_fingerprint: str = ""
    vision_fingerprint: str = ""
    precision: Precision = "float32"  # that the image encoder computed in; a codec computes in float32
    timing: bool = False  # whether each sound's timing curve is stored too, as vab.timing.sound has it

    @classmethod
    def for_model(cls, model: ModelConfig) -> StoreMeta:
        """The settings of latents just as a network takes them; no fingerprints."""
        taken = {each.name for each in fields(model)}
        return cls(**{each.name: getattr(model, each.name) for each in fields(cls) if each.name in taken})

    def written(self) -> dict[str, Any]:
        """The settings as they are written: what version 0.1 did not have is left out where it is so."""
        return self._without_default(asdict(self))

    def document(self) -> dict[str, Any]:
        """The settings for a record: all of them, but for timing curves where there are none."""
        return {name: value for name, value in asdict(self).items() if name != "timing" or value}

    def hashed(self) -> str:
        """The settings as they go into hashes: under the names of version 0.1, so that no hash changes."""
        return json.dumps(self._without_default(former_fields(self)))

    @staticmethod
    def _without_default(values: dict[str, Any]) -> dict[str, Any]:
        return {
            k: v for k, v in values.items() if (k, v) not in (("precision", "float32"), ("timing", False))
        }

    def differences(self, other: StoreMeta, names: Iterable[str] | None = None) -> list[str]:
        """Every setting that ``other`` has otherwise, as "fps is 1.0, now 2.0"; of all, or of these names."""
        mine, others = asdict(self), asdict(other)
        return [f"{n} is {mine[n]!r}, now {others[n]!r}" for n in names or mine if mine[n] != others[n]]

    @property
    def token_shape(self) -> tuple[int, int]:
        """K, T."""
        return self.num_codebooks, audio_frames(self.seconds)

    @property
    def feature_shape(self) -> tuple[int, int]:
        """F, dim."""
        return video_frames(self.seconds, self.fps), self.vision_dim

    @property
    def streams(self) -> tuple[str, ...]:
        """What is stored of a clip: ``tokens``, ``features`` and, with ``timing``, that."""
        return (*STREAMS, "timing") if self.timing else STREAMS

    def shape(self, stream: str) -> tuple[int, int]:
        """Shape of one clip's ``tokens``, ``features`` or ``timing``, which is [T, 2]."""
        if stream == "timing":
            return self.token_shape[1], 2
        return self.token_shape if stream == "tokens" else self.feature_shape


@dataclass(frozen=True)
class Latents:
    """One clip's latents; a stream it does not have is None."""

    id: str
    label: str
    split: str
    tokens: NDArray[np.uint16] | None  # [K, T]
    features: NDArray[np.float16] | None  # [F, dim]
    real_tokens: int | None = None  # number of the T frames that are not padding; None is all
    real_features: int | None = None  # and of the F
    timing: NDArray[np.float16] | None = None  # [T, 2]: vab.timing.sound.stored_curve

    @property
    def real_timing(self) -> int | None:
        """That of the tokens."""
        return self.real_tokens


def read_meta(directory: str | Path, url: str | None = None) -> StoreMeta:
    """Settings of the store in that folder; ``StoreError`` if there is none, or it cannot be read.

    ``url``: that of the store which the folder is a copy of.
    """
    path = Path(directory) / "store.json"
    try:
        values = current_names("StoreMeta", read_json(path))
        # version 0.1 knew no precision but float32, and no timing
        unknown = (set(values) ^ {field.name for field in fields(StoreMeta)}) - {"precision", "timing"}
        meta = None if unknown else from_dict(StoreMeta, values)
    except FileNotFoundError:
        reason = "holds no store (no store.json); make one with `vab extract`"
        raise StoreError(f"{url or directory} {reason}") from None
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); take that of a store made the same way") from None
    if meta is None:
        raise StoreError(f"{path} comes from another version of vab: {', '.join(sorted(unknown))}")
    return meta


KINDS: dict[str, tuple[Any, pa.DataType]] = {
    "tokens": (np.uint16, pa.uint16()),
    "features": (np.float16, pa.float16()),
    "timing": (np.float16, pa.float16()),
}


def _schema(meta: StoreMeta, hashes: bool) -> pa.Schema:
    """The columns of a shard, with those of the rows' hashes or, as up to version 0.1, without."""
    columns = [(name, pa.string()) for name in ("id", "label", "split")]
    columns += [(name, pa.list_(KINDS[name][1], math.prod(meta.shape(name)))) for name in meta.streams]
    columns += [(f"real_{name}", pa.int32()) for name in meta.streams]
    columns += [(f"{name}_sha256", pa.binary(32)) for name in meta.streams if hashes]
    return pa.schema(columns)


class Shard:
    """One shard, memory mapped. Opening it verifies all but the latents; ``check`` verifies these."""

    def __init__(self, path: Path, meta: StoreMeta) -> None:
        """Open a shard; ``StoreError`` if it is damaged, ``OSError`` if it cannot be opened."""
        self.path, self.meta = path, meta
        try:
            self._open()
        except StoreError:
            raise
        except Exception as error:  # damaged bytes can fail anywhere in the reader
            if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
                raise  # no right to read it, too many open files
            raise self._damaged(first_line(error)) from None

    def _open(self) -> None:
        # 1. One record batch with the store's columns. The pages stay mapped, the file need not stay open.
        with pa.memory_map(str(self.path)) as source:
            reader = pa.ipc.open_file(source)
            if reader.num_record_batches != 1:
                raise self._damaged(f"{reader.num_record_batches} record batches, not 1")
            batch = reader.get_batch(0)
        about: dict[bytes, bytes] = batch.schema.metadata or {}
        self.whole = about[b"sha256"].decode() if b"sha256" in about else None  # up to version 0.1
        if not batch.schema.equals(_schema(self.meta, hashes=self.whole is None)):
            raise self._damaged("its columns are not those of this store")
        batch.validate(full=True)

        # 2. The small columns in memory, the latents as views of the mapped pages.
        self.ids: list[str] = batch["id"].to_pylist()
        # One text for all clips that have it: millions of clips have few labels.
        self.labels: list[str] = list(map(sys.intern, batch["label"].to_pylist()))
        self.splits: list[str] = list(map(sys.intern, batch["split"].to_pylist()))
        self.has: dict[str, NDArray[np.bool_]] = {}
        self.values: dict[str, NDArray] = {}  # [n, *shape]
        self.real: dict[str, NDArray[np.int32]] = {}
        self._hashes: dict[str, NDArray[np.uint8]] = {}  # [n, 32]
        self._checked = {name: np.zeros(len(self.ids), bool) for name in self.meta.streams}
        for name in self.meta.streams:
            column = batch[name]
            self.has[name] = column.is_valid().to_numpy(zero_copy_only=False)
            self.values[name] = column.values.to_numpy().reshape(-1, *self.meta.shape(name))
            self.real[name] = batch[f"real_{name}"].to_numpy()
            if self.whole is None:
                flat = np.frombuffer(batch[f"{name}_sha256"].buffers()[1], np.uint8)
                self._hashes[name] = flat[: 32 * len(self.ids)].reshape(-1, 32)

        # 3. The name is the hash of all but the latents, and of their hashes.
        if self.whole is None and self.path.name != self.name_of(self._root()):
            raise self._damaged("its content is not what its name says, or it is of another store")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Size of the latents."""
        return sum(values.nbytes for values in self.values.values())

    @staticmethod
    def name_of(root: str) -> str:
        """The name of the shard whose content has that hash."""
        return f"shard-{root[:16]}.arrow"

    def _root(self) -> str:
        return root_hash(
            self.meta,
            [self.ids, self.labels, self.splits],
            [self.has[name] for name in self.meta.streams],
            [self.real[name] for name in self.meta.streams],
            [self._hashes[name] for name in self.meta.streams],
        )

    def hashes(self, name: str) -> NDArray[np.uint8]:
        """[n, 32]: SHA-256 of each row's ``tokens`` or ``features``."""
        if self.whole is not None and name not in self._hashes:
            self.check()
            self._hashes[name] = row_hashes(self.values[name])
        return self._hashes[name]

    def row(self, row: int) -> Latents:
        """One clip, its latents verified at the first reading; ``StoreError`` if they are damaged."""
        values: dict[str, Any] = {
            name: self.read(name, row) if self.has[name][row] else None for name in self.meta.streams
        }
        values |= {f"real_{name}": int(self.real[name][row]) for name in STREAMS}
        return Latents(self.ids[row], self.labels[row], self.splits[row], **values)

    def same(self, row: int, other: Shard, other_row: int) -> bool:
        """True if a clip here is what it is in the other shard: text, number of real frames and latents."""
        if (self.labels[row], self.splits[row]) != (other.labels[other_row], other.splits[other_row]):
            return False
        return all(
            self.has[name][row] == other.has[name][other_row]
            and self.real[name][row] == other.real[name][other_row]
            and np.array_equal(self.hashes(name)[row], other.hashes(name)[other_row])
            for name in self.meta.streams
        )

    def read(self, name: str, row: int) -> NDArray:
        """A row's ``tokens`` or ``features``, verified at the first reading; ``StoreError`` if damaged."""
        if not self._checked[name][row]:
            self._check(name, row)
        return self.values[name][row]

    def check(self) -> None:
        """Verify all latents that nobody has read yet; ``StoreError`` if they are damaged."""
        for name in self.meta.streams:
            for row in np.flatnonzero(~self._checked[name]):
                if not self._checked[name][row]:
                    self._check(name, int(row))

    def _check(self, name: str, row: int) -> None:
        if self.whole is not None:
            self._check_whole()
            return
        if one_hash(self.values[name][row].data).digest() != self._hashes[name][row].tobytes():
            raise self._damaged(f"the {name} of clip {self.ids[row]} are not what was written")
        self._checked[name][row] = True

    def _check_whole(self) -> None:
        texts = [self.ids, self.labels, self.splits]
        real = [self.real[name].tolist() for name in self.meta.streams]
        content = sha256(json.dumps([texts, real]), *map(_flat, self.values.values()))
        if content != self.whole:
            raise self._damaged("its content is not what was written")

        # Which streams are absent is not in that hash. A flipped bit that says that none is makes the reader
        # skip the list of them, whose bytes in the file are then used by no column.
        if any(self.has[name].all() for name in self.meta.streams) and self._spare():
            raise self._damaged("it does not say which clips have no sound or no picture")
        for name in self.meta.streams:
            self._checked[name][:] = True

    def _spare(self) -> bool:
        """True if the file holds buffers that no column uses."""
        with pa.memory_map(str(self.path)) as source:
            batch = pa.ipc.open_file(source).get_batch(0)
            source.seek(8)  # a magic number
            messages = pa.ipc.MessageReader.open_stream(source)
            messages.read_next_message()  # the schema
            held = messages.read_next_message().body.size
        return held != pa.ipc.read_message(batch.serialize()).body.size

    def _damaged(self, reason: str) -> StoreError:
        return StoreError(f"{self.path} is damaged ({reason}); {advice(self.path.parent)}")


def _flat(values: NDArray) -> Any:
    """A view whose length ``sha256`` takes in numbers, not in bytes."""
    return values.reshape(-1).data


def advice(directory: Path) -> str:
    """Advice for a store with a damaged file, to end an error's line."""
    return f"move it aside with `vab store repair {directory}`, then `vab extract` makes what is missing"


def row_hashes(values: NDArray) -> NDArray[np.uint8]:
    """[n, 32]: SHA-256 of each of n rows."""
    digests = b"".join(one_hash(np.ascontiguousarray(row).data).digest() for row in values)
    return np.frombuffer(digests, np.uint8).reshape(-1, 32)


def root_hash(
    meta: StoreMeta,
    texts: list[list[str]],  # ids, labels, splits
    has: Sequence[NDArray[np.bool_]],
    real: Sequence[NDArray[np.int32]],
    hashes: Sequence[NDArray[np.uint8]],
) -> str:
    """Hash of rows, through the hashes of their latents, and of the settings they were made with."""
    parts = (np.ascontiguousarray(part).tobytes() for part in (*has, *real, *hashes))
    return sha256(meta.hashed(), json.dumps(texts), *parts)


def write_shard(directory: Path, meta: StoreMeta, rows: Sequence[Latents]) -> Path:
    """Write one shard of clips, all of it or nothing; returns its path. ``StoreError`` on wrong shapes."""
    # 1. The columns, and how many frames of each row are not padding.
    texts = [[row.id for row in rows], [row.label for row in rows], [row.split for row in rows]]
    columns = [_column(rows, name, meta.shape(name)) for name in meta.streams]
    has = [mask for _, mask in columns]
    real = []
    for name in meta.streams:
        length = meta.feature_shape[0] if name == "features" else meta.token_shape[1]
        counts = [getattr(row, f"real_{name}") for row in rows]
        real.append(np.array([length if n is None else n for n in counts], np.int32))
    hashes = [row_hashes(values) for values, _ in columns]

    # 2. As Arrow arrays, in the order of ``_schema``.
    arrays: list[pa.Array] = [pa.array(text, pa.string()) for text in texts]
    for values, mask in columns:
        flat = pa.array(values.reshape(-1))
        size = math.prod(values.shape[1:])
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, size, mask=pa.array(~mask)))
    arrays += [pa.array(each) for each in real]
    arrays += [pa.array([digest.tobytes() for digest in each], pa.binary(32)) for each in hashes]
    batch = pa.record_batch(arrays, schema=_schema(meta, hashes=True))

    # 3. The file, whole or not at all; one of the same name is never written over.
    path = directory / Shard.name_of(root_hash(meta, texts, has, real, hashes))
    try:
        with (
            atomic(path, over=False) as temporary,
            temporary.open("wb") as stream,
            pa.ipc.new_file(stream, batch.schema) as writer,
        ):
            writer.write_batch(batch)
    except FileExistsError:
        # Another writer may have made the same shard meanwhile.
        try:
            Shard(path, meta).check()
        except StoreError:
            raise StoreError(f"{path} is there already and is not written over") from None
    return path


def _column(rows: Sequence[Latents], name: str, shape: tuple[int, int]) -> tuple[NDArray, NDArray[np.bool_]]:
    """A stream of rows, [n, *shape] with zeros where a row has none, and bool [n]: which have it."""
    kind = np.dtype(KINDS[name][0])
    values = np.zeros((len(rows), *shape), kind)
    has = np.zeros(len(rows), bool)
    for i, row in enumerate(rows):
        value = getattr(row, name)
        if value is None:
            continue
        if value.shape != shape or value.dtype != kind:
            raise StoreError(f"{name} of {row.id} are {value.dtype} {value.shape}, not {kind} {shape}")
        values[i], has[i] = value, True
    return values, has
