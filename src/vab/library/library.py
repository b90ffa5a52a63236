"""A searchable library of sounds and videos: embeddings of the windows of many files, in a folder on disk.

The folder holds ``library.json`` (the model, the quality of the indexes) and a LanceDB table; see
:mod:`vab.library.table` for why no reader ever sees, and no kill ever leaves, part of a file.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vab.inference.embeddings import Kind
from vab.library.indexing import Added, Embed, Known, embed_each
from vab.library.table import (
    KINDS,
    MAX_PATHS,
    File,
    Filters,
    LibraryError,
    WindowTable,
    among,
    composed,
    dim_of,
    rows_of,
)
from vab.library.words import rank, words_of
from vab.utils import Precision
from vab.utils.files import read_json, write_json
from vab.utils.locks import exclusive
from vab.utils.progress import FileProgress

__all__ = ["Added", "Filters", "Hit", "Index", "Library", "LibraryError", "Meta"]

FORMAT = 1  # of library.json and of the table
MAX_EXACT_VECTORS = 100_000  # searched exactly; from there on an index answers
# A commit is made when either is reached. It writes a list of all data files; a kill loses what waits for it.
MAX_COMMIT_FILES = 500
MAX_COMMIT_SECONDS = 10.0  # of embedding
# Data files, about one for each commit; beyond, they are put together.
MAX_PIECES_WHILE_ADDING = 500
MAX_PIECES = 20
MIN_RECALL = 0.98  # of the exact answer, which an index must find: it looks into more parts until it does


@dataclass(frozen=True)
class Index:
    """The approximate index of one stream, and how well it did when it was last brought up to date."""

    vectors: int  # when its parts were chosen
    parts: int
    probes: int  # parts looked into for each query
    recall: float  # share of the ten nearest windows that it finds, over sampled queries


@dataclass(frozen=True)
class Meta:
    """The model of a library and its indexes. Vectors of different models never mix."""

    model: str  # fingerprint of everything that affects the vectors
    dim: int
    source: str = ""  # how that model was named; "" is the bundled one
    indexes: dict[str, Index] = field(default_factory=dict)  # by stream
    precision: Precision = "float32"  # that the vectors were computed in; neither do these mix


@dataclass(frozen=True)
class Hit:
    """A search hit: a window, or a whole file where no vectors were compared."""

    path: str
    start: float  # seconds
    end: float
    stream: Literal["audio", "video", "both"]  # that was compared; else the streams the file has
    score: float | None  # cosine similarity; None where nothing was compared
    label: str


class Library:
    """The library in one folder. Any number of processes may search while one adds."""

    def __init__(self, directory: Path, exact_below: int) -> None:
        self.directory = directory
        self.exact_below = exact_below
        self.table = WindowTable(directory)
        self.meta = self._read_meta()

    @classmethod
    def create(cls, directory: str | Path, exact_below: int = MAX_EXACT_VECTORS) -> Library:
        """Open the library in a folder, or create one.

        ``LibraryError`` if the folder holds other things, ``OSError`` if it cannot be made.
        """
        path = _local(directory)
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "library.json").exists() and any(not f.name.startswith(".") for f in path.iterdir()):
            raise LibraryError(f"{directory} holds other things and no library; name an empty or new folder")
        return cls(path, exact_below)

    @classmethod
    def open(cls, directory: str | Path, exact_below: int = MAX_EXACT_VECTORS) -> Library:
        """Open the library in a folder; ``LibraryError`` if there is none."""
        path = _local(directory)
        if not (path / "library.json").is_file():
            raise LibraryError(
                f"{directory} holds no library; make one with `vab library add {directory} ...`"
            )
        return cls(path, exact_below)

    def check(self, model: str) -> None:
        """``LibraryError`` if the vectors here are from a model with another fingerprint."""
        if self.meta is not None and self.table and self.meta.model != model:
            raise LibraryError(
                f"{self.directory} was made with another model, {self.meta.source or 'the bundled one'} "
                f"({self.meta.model[:12]}; this one is {model[:12]}); use that one, or another folder"
            )

    def add(
        self,
        files: Iterable[str | Path],
        embed: Embed,
        model: str,
        source: str = "",
        show: FileProgress = lambda *_: None,
        precision: Precision = "float32",
    ) -> Iterator[Added]:
        """Embed new and changed files (by path, size, time) and write them; yields one result for each file.

        ``embed`` may take files ahead of its answers. ``model``: fingerprint of what it does; ``source``: its
        name for people; ``precision``: what it computes in. A file that cannot be embedded fails, and keeps
        the rows it had. At the end, indexes are built or brought up to date.
        ``LockedError`` if another process writes, ``LibraryError`` if the vectors here are of another model
        or in another precision.
        """
        # Each file once, whatever it is called.
        paths = list({os.path.abspath(path): Path(path) for path in files}.values())
        with self._writing():
            self.check(model)
            if self.meta is not None and self.table and self.meta.precision != precision:
                raise LibraryError(
                    f"{self.directory} was made in {self.meta.precision}, not in {precision}; "
                    "add to it in its own precision, or use another folder"
                )
            known = self._known([os.path.abspath(path) for path in paths])
            tidied = False
            waiting: list[File] = []
            since = 0.0
            try:
                for result in embed_each(paths, known, embed, self.meta.dim if self.meta else None, show):
                    if isinstance(result, Added):
                        yield result
                        continue
                    # The first vectors decide the library's model and their length.
                    if self.meta is None:
                        self.meta = Meta(model, dim_of(result.embedded), source, precision=precision)
                    if not waiting:
                        since = time.monotonic()
                    waiting.append(result)
                    if len(waiting) >= MAX_COMMIT_FILES or time.monotonic() - since > MAX_COMMIT_SECONDS:
                        # Emptied before the results are given out: if the caller stops there, these are
                        # not written a second time below.
                        batch = waiting
                        waiting = []
                        yield from self._commit(batch, known)
                        tidied |= self._tidied(MAX_PIECES_WHILE_ADDING)
                batch = waiting
                waiting = []
                yield from self._commit(batch, known)
            except (KeyboardInterrupt, GeneratorExit):  # keep what has been embedded
                self._commit(waiting, known)
                raise
            if paths:
                show(len(paths) - 1, len(paths), paths[-1], "index", 0, 1)
            self._refresh(tidied)

    def prune(self, dry_run: bool = False) -> list[str]:
        """Remove the files that are no longer on disk; returns their paths. Errors as for :meth:`add`."""
        with self._writing():
            paths = (path for batch in self.table.states() for path in batch["path"].to_pylist())
            gone = sorted(path for path in paths if not _exists(path))
            if gone and not dry_run:
                self.table.remove(gone)
                self._refresh()
        return gone

    def counts(self) -> dict[str, Any]:
        """Numbers of files, windows and vectors of each stream, total seconds, and files by label."""
        return self.table.newest(self._counted)

    def _counted(self) -> dict[str, Any]:
        files, seconds, labels = 0, 0.0, Counter[str]()
        # The first window of a file stands for it.
        for batch in self.table.batches({"label": "label", "seconds": "seconds"}, "number = 0"):
            files += len(batch)
            seconds += float(batch["seconds"].to_numpy().sum())
            for label in batch["label"].value_counts().to_pylist():
                labels[composed(label["values"])] += label["counts"]
        return {
            "files": files,
            "windows": self.table.count(),
            **{kind: self.table.count(f"{kind} IS NOT NULL") for kind in KINDS},
            "seconds": seconds,
            "labels": dict(sorted(labels.items())),
        }

    def search(
        self,
        vector: NDArray[np.float32] | None = None,
        kind: Kind | None = None,
        k: int = 10,
        filters: Filters | None = None,
        windows: bool = False,
        exact: bool = False,
    ) -> list[Hit]:
        """The ``k`` files nearest to ``vector`` [D], each with its best window; or the ``k`` best windows.

        ``kind``: the stream compared, audio if left out. Exact below ``exact_below`` candidates, and always
        with ``exact``. Without a vector: what passes ``filters``, by path; ``kind`` is then what a file must
        have. ``LibraryError`` for a vector of another length, not of numbers, or of zeros.
        """
        where = (filters or Filters()).sql()

        def read() -> list[Hit]:
            self.meta = self._read_meta()  # another process may have written since
            if vector is None:
                return self._listed(kind, k, where, windows)
            return self._ranked(vector, kind or "audio", k, where, windows, exact)

        return self.table.newest(read)

    def words(
        self, text: str, kind: Kind | None = None, k: int = 10, filters: Filters | None = None
    ) -> list[Hit]:
        """The ``k`` files whose label, name or folder has all of these words, the best first, else by path.

        ``kind``: what a file must have. How words are compared: :mod:`vab.library.words`. ``LibraryError``
        for a text without a word.
        """
        wanted = words_of(text)
        if not wanted:
            raise LibraryError(f"there is no word in {text!r}")
        has = f"{kind} IS NOT NULL" if kind else "number = 0"
        where = " AND ".join(filter(None, [has, (filters or Filters()).sql()]))

        def read() -> list[Hit]:
            self.meta = self._read_meta()
            if not self.table:
                return []
            # 1. Names and labels of all files.
            ranks: dict[str, int] = {}
            for batch in self.table.batches({"path": "path", "label": "label"}, where):
                for path, label in zip(batch["path"].to_pylist(), batch["label"].to_pylist(), strict=True):
                    if worth := rank(wanted, path, label):
                        ranks[path] = worth
            # 2. The rows of the best of them.
            best = sorted(ranks, key=lambda path: (-ranks[path], path))[:k]
            hits: dict[str, Hit] = {}
            for first in range(0, len(best), MAX_PATHS):
                part = best[first : first + MAX_PATHS]
                hits |= {hit.path: hit for hit in self._listed(kind, len(part), among(part), False)}
            return [hits[path] for path in best if path in hits]

        return self.table.newest(read)

    def _ranked(
        self, vector: NDArray[np.float32], kind: Kind, k: int, where: str, windows: bool, exact: bool
    ) -> list[Hit]:
        """Search by vector: the nearest windows, or the best window of each of the nearest files."""
        vector = np.asarray(vector, np.float32)
        if self.meta is None or k < 1:
            return []
        if vector.shape != (self.meta.dim,) or not np.isfinite(vector).all() or not vector.any():
            raise LibraryError(f"a query is {self.meta.dim} finite numbers, not all 0; got {vector.shape}")
        # A filter may leave so few rows that an exact search is cheap.
        index = None if exact else self.meta.indexes.get(kind)
        if index is not None and where and self.table.count(where) < self.exact_below:
            index = None
        # Several windows of one file may come first: ask for more until there are k files.
        wanted = k if windows else 4 * k
        while True:
            rows = self.table.nearest(vector, kind, wanted, where, index.probes if index else None)
            best: dict[Any, Hit] = {}
            for row in sorted(rows, key=lambda row: (row["_distance"], row["path"], row["start"])):
                key = (row["path"], row["number"]) if windows else row["path"]
                score = 1 - row["_distance"]
                label = composed(row["label"])
                best.setdefault(key, Hit(row["path"], row["start"], row["end"], kind, score, label))
            if len(best) >= k or len(rows) < wanted:
                return list(best.values())[:k]
            wanted *= 4

    def _listed(self, kind: Kind | None, k: int, where: str, windows: bool) -> list[Hit]:
        """Search without a vector: list what passes the filter, by path."""
        columns = {name: name for name in ("path", "start", "end", "seconds", "label")}
        columns |= {f"has_{kind}": f"{kind} IS NOT NULL" for kind in KINDS}
        where = " AND ".join(filter(None, [where, f"{kind} IS NOT NULL" if kind else ""]))
        # 1. The files, by their paths alone; then the rows of these.
        paths = self.table.first_paths(k, where)
        chosen = [among(paths[first : first + MAX_PATHS]) for first in range(0, len(paths), MAX_PATHS)]
        conditions = [" AND ".join(filter(None, [where, condition])) for condition in chosen]
        # 2. Rows are windows: those of a file are one hit, unless windows are asked for.
        groups: dict[Any, list[dict[str, Any]]] = {}
        for row in (row for condition in conditions for row in self.table.select(columns, condition)):
            groups.setdefault((row["path"], row["start"] if windows else 0.0), []).append(row)
        hits = []
        for (path, start), rows in sorted(groups.items())[:k]:
            audio = any(row["has_audio"] for row in rows)
            video = any(row["has_video"] for row in rows)
            # Nothing was compared: the stream is what the file has.
            stream: Literal["audio", "video", "both"] = "audio" if audio else "video"
            end = rows[0]["end" if windows else "seconds"]
            stream = kind or ("both" if audio and video else stream)
            hits.append(Hit(path, start, end, stream, None, composed(rows[0]["label"])))
        return hits

    def _commit(self, files: Sequence[File], known: Known) -> list[Added]:
        """Write all rows of these files in one commit; returns their results."""
        if not files:
            return []
        assert self.meta is not None
        # What the table is comes before the table: without it nobody could open the library.
        if not self.table:
            self._write_meta(self.meta)
            self.table.create(self.meta.dim)
        # One commit for new and changed files together: readers see all of it or nothing.
        replaced = [file.path for file in files if file.path in known]
        self.table.put(rows_of(files, self.meta.dim), replaced)
        known.update({file.path: (file.size, file.mtime_ns) for file in files})
        return [
            Added(file.path, "replaced" if file.path in replaced else "added", len(file.embedded.starts))
            for file in files
        ]

    def _known(self, paths: Sequence[str]) -> Known:
        """The states of those of these files that are here."""
        named = [path for path in paths if path == path.encode(errors="ignore").decode()]  # no other ever is
        rows = (row for batch in self.table.states(named) for row in batch.to_pylist())
        return {row["path"]: (row["size"], row["mtime_ns"]) for row in rows}

    def _tidied(self, max_pieces: int) -> bool:
        """Put small data files together if there are many; True if that was done."""
        if not self.table or self.table.pieces() <= max_pieces:
            return False
        self.table.optimize()
        return True

    def _refresh(self, tidied: bool = False) -> None:
        """Tidy up if there is much to tidy; build the indexes that are due, and measure what changed.

        ``tidied``: whether the indexes have been brought up to date since they were last measured.
        """
        if not self.table or self.meta is None:
            return
        # 1. Merge when there are many small files, or many rows that the indexes do not hold yet.
        late = max(self.table.not_indexed(kind) or 0 for kind in KINDS)
        if late > self.exact_below // 10:
            self.table.optimize()
            tidied = True
        tidied |= self._tidied(MAX_PIECES)
        # 2. What filters are answered by.
        if self.table.count() >= self.exact_below:
            self.table.build_filters()
        # 3. An index for each stream that has grown enough; anew when it has doubled since.
        indexes = dict(self.meta.indexes)
        for kind in KINDS:
            vectors = self.table.count(f"{kind} IS NOT NULL")
            index = indexes.pop(kind, None)
            if vectors < self.exact_below:
                continue
            if index is None or vectors > 2 * index.vectors:
                index = Index(vectors, round(math.sqrt(vectors)), 0, 0.0)
                self.table.build_index(kind, index.parts)
            indexes[kind] = self._measured(kind, index) if tidied or not index.probes else index
        if indexes != self.meta.indexes:
            self._write_meta(replace(self.meta, indexes=indexes))

    def _measured(self, kind: Kind, index: Index) -> Index:
        """Set the smallest number of probes with ``MIN_RECALL`` of the ten nearest rows, and its recall.

        Queries are vectors of both streams, as those of the other stream lie elsewhere in the space.
        """
        queries = np.concatenate(
            [vectors[:20] for vectors in self.table.sample(200).values() if len(vectors)]
        )

        def nearest(probes: int | None) -> list[set[tuple[str, int]]]:
            answers = [self.table.nearest(query, kind, 10, probes=probes) for query in queries]
            return [{(row["path"], row["number"]) for row in rows} for rows in answers]

        # Twice as many parts each time, until enough of the exact answer is found.
        exact = nearest(None)
        probes = 0
        recall = 0.0
        while recall < MIN_RECALL and probes < index.parts:
            probes = min(max(8, 2 * probes), index.parts)
            pairs = zip(exact, nearest(probes), strict=True)
            recall = float(np.mean([len(true & some) / len(true) for true, some in pairs]))
        return replace(index, probes=probes, recall=recall)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the library for one writer; ``LockedError`` if another process does."""
        with exclusive(self.directory / ".lock", f"writes to the library {self.directory}"):
            for unfinished in self.directory.glob(".*.tmp*"):
                unfinished.unlink()
            self.table.latest()
            self.meta = self._read_meta() if self.table else None  # no table: nothing was ever written
            yield

    def _read_meta(self) -> Meta | None:
        path = self.directory / "library.json"
        try:
            values = read_json(path)
            if values.pop("format") != FORMAT:
                raise LibraryError(f"{path} comes from another version of vab; make the library anew")
            indexes = {kind: Index(**index) for kind, index in values.pop("indexes").items()}
            return Meta(**values, indexes=indexes)
        except FileNotFoundError:
            return None
        except LibraryError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise LibraryError(f"{path} is damaged ({type(error).__name__}: {error})") from None

    def _write_meta(self, meta: Meta) -> None:
        values = {"format": FORMAT, **asdict(meta)}
        if meta.precision == "float32":  # the only one that version 0.1 knew
            del values["precision"]
        write_json(self.directory / "library.json", values)
        self.meta = meta


def _local(directory: str | Path) -> Path:
    """The absolute path of a folder on this machine; ``LibraryError`` for a URL such as ``s3://...``."""
    # A path has lost one of the two slashes, or both at its end. One letter is a disk of Windows.
    url = re.match(r"([a-z][a-z0-9+.-]+):(?:/+|$)(.*)", os.fspath(directory), re.IGNORECASE | re.DOTALL)
    if url:
        raise LibraryError(
            f"{url[1]}://{url[2]} is a URL; a library is a folder on this machine, so name one"
        )
    return Path(os.path.abspath(directory))


def _exists(path: str) -> bool:
    """True if a file exists; one that may not be looked at (permissions) counts as existing."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
