"""Embeddings of media files: their types, and reading and writing them as npz or parquet."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vab.errors import VABError, first_line
from vab.utils.files import write_whole

Kind = Literal["audio", "video"]

COLUMNS = ("id", "label", "audio", "video")


class EmbeddingsError(VABError, ValueError):
    """A file of embeddings that cannot be used; the message says why."""


@dataclass(frozen=True)
class Embedded:
    """Unit vectors of one file, for each stream it has and each of its W windows.

    A row of NaN: the stream ends before that window. At least one row is not.
    """

    starts: NDArray[np.float64]  # [W] seconds
    ends: NDArray[np.float64]  # [W] seconds
    audio: NDArray[np.float32] | None = None  # [W, D]
    video: NDArray[np.float32] | None = None  # [W, D]

    def mean(self, kind: Kind) -> NDArray[np.float32] | None:
        """The mean over the windows, normalised again: float32 [D]; None without that stream."""
        vectors = self.audio if kind == "audio" else self.video
        return None if vectors is None else unit(np.nanmean(vectors, axis=0))


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of N files or clips. A row of NaN: that stream is absent."""

    ids: list[str]
    audio: NDArray[np.float32]  # [N, D]
    video: NDArray[np.float32]  # [N, D]
    labels: list[str]  # "" where nothing is known; several are joined by ";"
    windows: list[Embedded] | None = None  # of each file, if they are wanted
    precision: str = "float32"  # that they were computed in

    def __len__(self) -> int:
        return len(self.ids)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalise vectors [..., D] to length one; zeros stay zeros."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(length, 1e-12)).astype(np.float32)


def collect(ids: Sequence[str], files: Sequence[Embedded], labels: Sequence[str], dim: int) -> Embeddings:
    """Stack the means of embedded files [N, D], and keep their windows."""
    absent = np.full(dim, np.nan, np.float32)

    def rows(kind: Kind) -> NDArray[np.float32]:
        means = [file.mean(kind) for file in files]
        vectors = [absent if mean is None else mean for mean in means]
        return np.stack(vectors) if vectors else np.zeros((0, dim), np.float32)

    return Embeddings(list(ids), rows("audio"), rows("video"), list(labels), list(files))


def write_embeddings(path: str | Path, embeddings: Embeddings) -> None:
    """Write ``.npz`` or ``.parquet`` (by the name's ending), complete or not at all.

    Both hold ``id``, ``label``, ``audio`` and ``video`` (NaN rows where a stream is absent). Windows, if any,
    stand in parquet as lists ``window_start``, ``window_end``, ``window_audio``, ``window_video`` per row;
    in npz side by side, with ``window_row`` saying whose each is. ``precision`` is an array of npz, and in
    the metadata of a parquet file. Pickled objects are never written.
    """
    # 1. Columns of windows, one entry a file; a stream a file lacks is NaN in each of its windows.
    path = Path(path)
    dim = embeddings.audio.shape[1]
    windows = embeddings.windows or []
    columns: dict[str, list] = {"window_start": [], "window_end": [], "window_audio": [], "window_video": []}
    for file in windows:
        empty = np.full((len(file.starts), dim), np.nan, np.float32)
        columns["window_start"].append(file.starts)
        columns["window_end"].append(file.ends)
        columns["window_audio"].append(empty if file.audio is None else file.audio)
        columns["window_video"].append(empty if file.video is None else file.video)

    # 2. Serialise in memory, so that the file can be written whole.
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {
            "id": np.array(embeddings.ids, dtype=str),
            "label": np.array(embeddings.labels, dtype=str),
            "audio": embeddings.audio,
            "video": embeddings.video,
            "precision": np.array(embeddings.precision),
        }
        if windows:
            arrays["window_row"] = np.repeat(np.arange(len(windows)), [len(w.starts) for w in windows])
            arrays |= {name: np.concatenate(parts) for name, parts in columns.items()}
        np.savez(buffer, **arrays)
    elif path.suffix == ".parquet":
        table = {
            "id": [_utf8(text) for text in embeddings.ids],
            "label": [_utf8(text) for text in embeddings.labels],
            "audio": list(embeddings.audio),
            "video": list(embeddings.video),
        }
        if windows:
            table |= {name: [part.tolist() for part in parts] for name, parts in columns.items()}
        about = {"precision": embeddings.precision}
        pq.write_table(pa.table(table).replace_schema_metadata(about), buffer)
    else:
        raise EmbeddingsError(f"{path}: embeddings are written as .npz or .parquet")
    write_whole(path, buffer.getvalue())


def _utf8(text: str) -> str:
    r"""Text as parquet takes it: bytes of a file's name that are not UTF-8 become ``\xe9``."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def read_embeddings(path: str | Path) -> Embeddings:
    """Read npz or parquet, of :func:`write_embeddings` or another tool: ``id``, ``audio``, ``video`` [N, D].

    ``label`` may be missing; windows are not read. Raises ``EmbeddingsError`` with the file and the reason.
    """
    # 1. Read the columns that are there.
    path = Path(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                columns = {name: file[name] for name in COLUMNS if name in file}
        elif path.suffix == ".parquet":
            table = pq.read_table(path)
            names = [name for name in COLUMNS if name in table.column_names]
            columns = {name: np.array(table[name].to_pylist()) for name in names}
        else:
            raise EmbeddingsError(f"{path}: embeddings are read from .npz or .parquet")
    except OSError as error:
        raise EmbeddingsError(f"{path}: {first_line(error)}") from None
    except VABError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise EmbeddingsError(f"{path}: {first_line(error)}") from None

    # 2. Check that they fit each other.
    missing = [name for name in ("id", "audio", "video") if name not in columns]
    if missing:
        raise EmbeddingsError(f"{path}: has no {', '.join(missing)}; needed: id, audio [N, D], video [N, D]")
    ids = columns["id"]
    labels = columns.get("label", np.full(len(ids), ""))
    for name in ("audio", "video"):
        if columns[name].ndim != 2 or not np.issubdtype(columns[name].dtype, np.floating):
            raise EmbeddingsError(f"{path}: {name} is not a table of numbers [N, D]")
    if not len(ids) == len(labels) == len(columns["audio"]) == len(columns["video"]):
        raise EmbeddingsError(f"{path}: id, label, audio and video are not equally long")
    if columns["audio"].shape[1] != columns["video"].shape[1]:
        raise EmbeddingsError(f"{path}: audio and video vectors are not equally long")
    audio = columns["audio"].astype(np.float32)
    video = columns["video"].astype(np.float32)
    return Embeddings([str(i) for i in ids], audio, video, [str(label) for label in labels])
