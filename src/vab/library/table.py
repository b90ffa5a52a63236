"""The LanceDB table under a library: a row is one window of one file, with the vectors of its streams.

Rows of a file are only ever written together, by one commit: new files are appended; those that changed
take the place of their old rows in one ``merge_insert`` on (path, number), which also deletes the windows a
file no longer has. So every version of the table holds whole files, each once. A reader sees one version,
and a killed writer leaves none: at most data files that no version names, which LanceDB deletes a week later.

A version that has been replaced stays for ``MIN_VERSION_AGE``; a reader that needs it for longer starts anew
with the newest (:meth:`WindowTable.newest`).
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vab.errors import VABError, first_line
from vab.inference.embeddings import Embedded, Kind

KINDS: tuple[Kind, ...] = ("audio", "video")
REFINE_FACTOR = 5  # times as many candidates of an index are compared with their true vectors
MIN_VERSION_AGE = timedelta(minutes=10)  # replaced versions stay that long for those who read them
MAX_PATHS = 500  # that a condition names
_NAME = "windows"

T = TypeVar("T")


class LibraryError(VABError, ValueError):
    """A library that cannot be used as asked; the message is one line that says why."""


def quoted(text: str) -> str:
    """Quote text for a condition in SQL; ``LibraryError`` if it is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise LibraryError(f"{text!r} is not UTF-8") from None
    return "'" + text.replace("'", "''") + "'"


def composed(text: str) -> str:
    """Text with é as one letter (NFC): folders of a Mac have it as two (NFD)."""
    return unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """What all spellings of a label have in common: upper or lower case, é as one letter or two."""
    return composed(unicodedata.normalize("NFD", text).casefold())


def _spellings(text: str) -> list[str]:
    """Text as it is, and with é as one letter and as two: how a disk, or an older table, may have it."""
    return sorted({text, composed(text), unicodedata.normalize("NFD", text)})


def schema(dim: int) -> pa.Schema:
    """The columns; a stream that a window does not have is null."""
    text, real = pa.string(), pa.float64()
    names = {"path": text, "number": pa.int32(), "start": real, "end": real, "seconds": real, "label": text}
    names |= {"label_key": text, "size": pa.int64(), "mtime_ns": pa.int64()}
    names |= {kind: pa.list_(pa.float32(), dim) for kind in KINDS}
    return pa.schema(list(names.items()))


@dataclass(frozen=True)
class Filters:
    """Restrictions of a search. Durations are those of the whole file, in seconds."""

    under: str | Path | None = None  # a folder, in any spelling of é; all below counts
    label: str | None = None  # these words stand in the label, upper and lower case, é in any spelling
    longer_than: float | None = None
    shorter_than: float | None = None

    def sql(self) -> str:
        """The condition on rows, "" for none. ``LibraryError`` for text that is not UTF-8."""
        terms = []
        # the separator at its end keeps /sounds from matching /sounds2
        if self.under is not None:
            folder = os.path.abspath(self.under).rstrip(os.sep) + os.sep
            terms.append(_any(f"starts_with(path, {quoted(text)})" for text in _spellings(folder)))
        if self.label is not None:
            keys = [quoted(text) for text in _spellings(folded(self.label))]
            # Whole words: dog is in "dog barking", not in "hotdog". What has no words must be the label.
            if any(letter.isalnum() for letter in self.label):
                # Not (A and B) or (C and D), which no index answers.
                terms.append(_any(f"contains_tokens(label_key, {key})" for key in keys))
                terms.append(_any(f"contains(label_key, {key})" for key in keys))
            else:
                terms.append(f"label_key IN ({', '.join(keys)})")
        if self.longer_than is not None:
            terms.append(f"seconds > {float(self.longer_than)!r}")
        if self.shorter_than is not None:
            terms.append(f"seconds < {float(self.shorter_than)!r}")
        return " AND ".join(terms)


def _any(terms: Iterable[str]) -> str:
    """The condition that one of the terms holds."""
    return f"({' OR '.join(terms)})"


@dataclass(frozen=True)
class File:
    """An embedded file, ready to be written."""

    path: str
    size: int
    mtime_ns: int
    embedded: Embedded


def dim_of(embedded: Embedded) -> int:
    """The length of the vectors of a file that has passed ``fault_of``."""
    return next(len(vectors[0]) for vectors in (embedded.audio, embedded.video) if vectors is not None)


def fault_of(embedded: Embedded, dim: int | None) -> str:
    """Reason why a file cannot be written; "" if it can. ``dim``: required length of vectors, if known."""
    # A row of each stream for each window, of one length, and unit vectors where they are numbers.
    num_windows = len(embedded.starts)
    streams = [(kind, getattr(embedded, kind)) for kind in KINDS if getattr(embedded, kind) is not None]
    if not num_windows or not streams:
        return "has neither a picture nor a sound to embed"
    for kind, vectors in streams:
        dim = dim or vectors.shape[-1]
        if vectors.shape != (num_windows, dim):
            return f"its {kind} vectors are {vectors.shape}, not {(num_windows, dim)}"
        lengths = np.linalg.norm(vectors[~_absent(vectors)], axis=1)
        if not len(lengths) or not (np.abs(lengths - 1) < 0.01).all():  # partly NaN is not either
            return f"its {kind} vectors are not all of length one"
    return ""


def rows_of(files: Sequence[File], dim: int) -> pa.Table:
    """The rows of files, one for each window."""
    columns: dict[str, list[Any]] = {field.name: [] for field in schema(dim) if field.name not in KINDS}
    for file in files:
        # 1. What differs from window to window, then what all windows of a file share.
        starts, ends = file.embedded.starts.tolist(), file.embedded.ends.tolist()
        label = composed(Path(file.path).parent.name)
        columns["number"] += range(len(starts))
        columns["start"] += starts
        columns["end"] += ends
        same = {"path": file.path, "seconds": max(ends), "label": label, "label_key": folded(label)}
        same |= {"size": file.size, "mtime_ns": file.mtime_ns}
        for name, value in same.items():
            columns[name] += [value] * len(starts)
    # 2. The vectors of all files below one another.
    arrays: dict[str, Any] = dict(columns)
    for kind in KINDS:
        # [all windows, D], NaN where a stream is absent, which becomes null
        streams = [(getattr(file.embedded, kind), len(file.embedded.starts)) for file in files]
        vectors = np.concatenate([np.full((n, dim), np.nan) if v is None else v for v, n in streams])
        absent = _absent(vectors)
        flat = np.where(absent[:, None], 0, vectors).astype(np.float32)
        arrays[kind] = pa.FixedSizeListArray.from_arrays(flat.reshape(-1), dim, mask=pa.array(absent))
    return pa.table(arrays, schema=schema(dim))


def _absent(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Mask [W] of the windows that do not have the stream."""
    return np.asarray(np.isnan(vectors).all(axis=1))


class WindowTable:
    """The table in the folder of a library. Errors of LanceDB are raised as ``LibraryError``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        os.environ.setdefault("LANCEDB_LOG", "error")  # its warnings are not for who searches
        try:
            import lancedb
        except ImportError:
            raise LibraryError(
                "a library needs LanceDB; install it with: pip install 'vab[search]'"
            ) from None
        quoted(str(directory))
        self._connection = self._do(lambda: lancedb.connect(str(directory)))
        self._table: Any = None
        self.latest()

    def _do(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (RuntimeError, OSError, ValueError) as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> LibraryError:
        return LibraryError(f"{self.directory}: {first_line(error)}")

    def latest(self) -> None:
        """Switch to the newest version."""
        if self._table is not None:
            self._do(self._table.checkout_latest)
        elif _NAME in self._do(lambda: self._connection.list_tables().tables):
            try:
                self._table = self._connection.open_table(_NAME)
            except ValueError:  # a folder without a version: whoever was to create it was killed
                return
            except (RuntimeError, OSError) as error:
                raise self._error(error) from error

    def newest(self, read: Callable[[], T]) -> T:
        """What ``read`` gives at the newest version; done anew if a writer sweeps that away meanwhile."""
        while True:
            self.latest()
            version = self._version()
            try:
                return read()
            except LibraryError:
                self.latest()
                if self._version() == version:
                    raise

    def _version(self) -> int:
        return int(self._do(lambda: self._table.version)) if self else 0

    def __bool__(self) -> bool:
        return self._table is not None

    def create(self, dim: int) -> None:
        """Create an empty table for vectors of ``dim`` numbers."""
        self._table = self._do(lambda: self._connection.create_table(_NAME, schema=schema(dim)))

    def count(self, where: str = "") -> int:
        """Number of rows that pass a condition."""
        if not self:
            return 0
        number: int = self._do(lambda: self._table.count_rows(where or None))
        return number

    def batches(self, columns: Mapping[str, str], where: str = "") -> Iterator[pa.RecordBatch]:
        """Rows that pass, a few thousand at a time, with columns ``name: expression``."""
        if not self:
            return
        query = self._table.search().select(dict(columns))
        reader = self._do((query.where(where) if where else query).to_batches)
        while (batch := self._do(lambda: next(reader, None))) is not None:
            yield batch

    def select(self, columns: Mapping[str, str], where: str = "") -> list[dict[str, Any]]:
        """All rows that pass."""
        return [row for batch in self.batches(columns, where) for row in batch.to_pylist()]

    def states(self, paths: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """``path``, ``size``, ``mtime_ns`` of all files, or of those of ``paths`` that are here."""
        columns = {name: name for name in ("path", "size", "mtime_ns")}
        # The first window of a file stands for it. Few are asked for by name; many are picked from all.
        few = paths is not None and len(paths) <= MAX_PATHS
        terms = ["number = 0", among(paths)] if few and paths else ["number = 0"]
        chosen = None if paths is None else pa.array(paths, pa.string())
        for batch in self.batches(columns, " AND ".join(terms)):
            yield batch if chosen is None else batch.filter(pc.is_in(batch["path"], value_set=chosen))

    def first_paths(self, limit: int, where: str = "") -> list[str]:
        """The first ``limit`` paths, in order, of the files with rows that pass."""
        first: list[str] = []
        for batch in self.batches({"path": "path"}, where):
            paths = batch["path"]
            if len(first) == limit:  # most of a large table comes after those already found
                paths = paths.filter(pc.less(paths, first[-1]))
            if len(paths):
                first = sorted({*first, *paths.unique().to_pylist()})[:limit]
        return first

    def nearest(
        self, vector: NDArray[np.float32], kind: Kind, limit: int, where: str = "", probes: int | None = None
    ) -> list[dict[str, Any]]:
        """The rows nearest to ``vector`` [D], with ``_distance``: 1 - cosine. Rows without that stream never.

        ``probes``: parts of the index to look into (more for as long as rows are lacking); None is exact.
        """
        if not self:
            return []
        # filtered first: else a filter could leave fewer than ``limit`` of the nearest
        query = self._table.search(vector, vector_column_name=kind).distance_type("cosine").limit(limit)
        query = query.select(["path", "number", "start", "end", "label", "_distance"])
        if where:
            query = query.where(where, prefilter=True)
        # None: every row is compared; else only so many parts of the index
        if probes is None:
            query = query.bypass_vector_index()
        else:
            query = query.minimum_nprobes(probes).maximum_nprobes(0).refine_factor(REFINE_FACTOR)
        rows: list[dict[str, Any]] = self._do(query.to_arrow).to_pylist()
        return rows

    def put(self, rows: pa.Table, replaced: Sequence[str] = ()) -> None:
        """Write whole files in one commit; ``replaced``: those of their paths that have rows here."""
        if not replaced:
            self._do(lambda: self._table.add(rows))
            return
        # Windows that a changed file no longer has are deleted in the same commit.
        merge = self._table.merge_insert(["path", "number"]).when_matched_update_all()
        merge = merge.when_not_matched_insert_all().when_not_matched_by_source_delete(among(replaced))
        self._do(lambda: merge.execute(rows, on_bad_vectors="null"))  # its check takes null for bad

    def remove(self, paths: Sequence[str]) -> None:
        """Delete all rows of these files."""
        for first in range(0, len(paths), MAX_PATHS):
            chosen = among(paths[first : first + MAX_PATHS])
            self._do(lambda where=chosen: self._table.delete(where))  # type: ignore[misc]

    def take(self, rows: int, columns: Sequence[str]) -> pa.Table:
        """Columns of ``rows`` rows drawn with a fixed seed, or of all rows if there are no more."""
        offsets = np.random.default_rng(0).choice(self.count(), min(rows, self.count()), replace=False)
        return self._do(self._table.take_offsets(sorted(offsets.tolist())).select(list(columns)).to_arrow)

    def sample(self, rows: int) -> dict[Kind, NDArray[np.float32]]:
        """The vectors [n, D] of each stream in ``rows`` rows drawn with a fixed seed."""
        table = self.take(rows, KINDS)
        return {kind: np.array(table[kind].drop_null().to_pylist(), np.float32) for kind in KINDS}

    def build_index(self, kind: Kind, parts: int) -> None:
        """Build an index of one stream: ``parts`` partitions, one byte for each number (IVF_SQ)."""
        from lancedb.index import IvfSq

        config = IvfSq(distance_type="cosine", num_partitions=parts)
        self._do(lambda: self._table.create_index(kind, config=config, replace=True))

    def not_indexed(self, kind: Kind) -> int | None:
        """Number of rows not in the index yet, which are compared one by one; None without an index."""
        stats = self._do(lambda: self._table.index_stats(f"{kind}_idx"))
        return None if stats is None else int(stats.num_unindexed_rows)

    def build_filters(self) -> None:
        """Build the indexes that :class:`Filters` are answered by, where they are missing."""
        from lancedb.index import FTS, BTree

        # Words as `contains_tokens` splits them: only such an index answers it.
        words = FTS(
            stem=False,
            remove_stop_words=False,
            lower_case=False,
            ascii_folding=False,
            max_token_length=None,
        )
        there = {column for index in self._do(self._table.list_indices) for column in index.columns}
        for column, config in {"label_key": words, "path": BTree(), "seconds": BTree()}.items():
            if column not in there:
                self._do(lambda c=column, i=config: self._table.create_index(c, config=i))  # type: ignore[misc]

    def pieces(self) -> int:
        """Number of data files; about one for each commit since they were last put together."""
        return int(self._do(self._table.stats)["fragment_stats"]["num_fragments"])

    def optimize(self) -> None:
        """Merge small data files, update the indexes and delete versions replaced long ago."""
        self._do(lambda: self._table.optimize(cleanup_older_than=MIN_VERSION_AGE))


def among(paths: Sequence[str]) -> str:
    """The condition that a row is of one of these files, ``MAX_PATHS`` at most."""
    return f"path IN ({', '.join(map(quoted, paths))})"
