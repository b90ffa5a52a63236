"""Latent stores: the latents of many clips on disk, by id, checked when they are read.

A store is a folder: ``store.json`` (what made it), ``codebooks.safetensors`` (the codec's vectors, so that
training needs no codec), ``failures.csv``, and shards (``vab.data.shard``). A shard is written under a
temporary name, synced and given its own name, which no other has: a killed run leaves only whole shards, and
nothing is ever written over. What is damaged is named, and ``repair`` moves it aside.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vab.data.mirror import mirror, uploading, write_rows
from vab.data.shard import (
    KINDS,
    PATTERN,
    STREAMS,
    Latents,
    Shard,
    StoreError,
    StoreMeta,
    advice,
    read_meta,
    root_hash,
    write_shard,
)
from vab.utils.files import atomic, move, sweep
from vab.utils.locks import exclusive, shared
from vab.utils.provenance import sha256
from vab.utils.remote import RemoteFile, locate

MAX_VERIFIED_BYTES = 2 << 30  # of latents that are verified at once
MAX_STATISTICS_CLIPS = 10_000  # of which the features' mean and deviation are taken
CODEBOOKS = "codebooks.safetensors"


class LatentStore:
    """Latents on disk; rows are numbered from 0 in the order of the clips' ids.

    The order, and the fingerprint, do not depend on which shard a clip is in.
    """

    def __init__(self, directory: Path, meta: StoreMeta, url: str | None = None) -> None:
        """Read what can be read; the rest is listed in ``damaged``. To work with a store, ``open`` it."""
        self.directory = directory
        self.url = url  # of the store that ``directory`` is a copy of; None: it is the store
        self.meta = meta
        self.damaged: dict[str, str] = {}  # file name -> what is wrong, in a line
        self._list()

    @classmethod
    def create(cls, directory: str | Path, meta: StoreMeta, codebook_vectors: NDArray) -> LatentStore:
        """Make a store, or open the one that is there if it was made the same way (else ``StoreError``).

        ``codebook_vectors`` [K, V, C] are kept for training. What is written to a store by URL is uploaded.
        """
        directory, url = _place(directory)
        if str(directory).encode(errors="ignore").decode() != str(directory):
            raise StoreError(f"{directory}: is not a name in UTF-8, which Arrow needs; choose another folder")
        if codebook_vectors.shape != (meta.num_codebooks, meta.codebook_size, meta.codebook_dim):
            raise StoreError(f"codebook vectors are {codebook_vectors.shape}, the store says {meta}")

        def check_meta() -> None:
            # every setting counts: latents made otherwise never mix
            other = read_meta(directory, url).differences(meta)
            if other:
                where = url or directory
                raise StoreError(f"{where} was made otherwise: {'; '.join(other)}. Use another folder.")

        if (directory / "store.json").exists():
            check_meta()

        # The settings come last: a folder without them is no store yet. Of several writers the first makes
        # it, the others open it.
        with uploading(directory, url) as upload:
            directory.mkdir(parents=True, exist_ok=True)
            if not (directory / CODEBOOKS).exists():
                vectors = np.ascontiguousarray(codebook_vectors, dtype=np.float32)
                checksum = {"sha256": sha256(vectors.tobytes())}
                write_new(directory / CODEBOOKS, save({"codebooks": vectors}, checksum))
                upload(directory / CODEBOOKS)
            if not (directory / "store.json").exists():
                write_new(directory / "store.json", (json.dumps(meta.written(), indent=1) + "\n").encode())
                check_meta()
                upload(directory / "store.json")
        store = cls(directory, meta, url)
        store.check_whole()
        return store

    @classmethod
    def open(cls, directory: str | Path, whole: bool = True) -> LatentStore:
        """The store of that folder or URL; ``StoreError`` if there is none, or names a damaged shard.

        Of a store by URL a copy is opened (``vab.data.mirror``). ``whole=False`` opens a damaged store too:
        ``damaged`` says what is wrong with it.
        """
        directory, url = _place(directory)
        store = cls(directory, read_meta(directory, url), url)
        if whole:
            store.check_whole()
        return store

    def check_whole(self) -> None:
        """``StoreError`` if a shard is known to be damaged."""
        if self.damaged:
            first, *others = self.damaged.values()
            more = f" (and {len(others)} more: {', '.join(list(self.damaged)[1:6])})" if others else ""
            raise StoreError(first + more)

    def _list(self) -> None:
        """Map the shards that lie in the folder now."""
        self._shards: list[Shard] = []
        self._known: set[str] = set()
        self._repeats: set[tuple[str, int]] = set()  # rows that repeat a clip of a shard before: name, row
        self._places: dict[str, tuple[Shard, int]] | None = None  # of each clip, once some are repeated
        self._conflicts: dict[str, list[str]] = {}  # shard -> clips that are other ones in a shard before
        self.damaged.clear()
        # A damaged shard does not keep the others from being read.
        for path in sorted(self.directory.glob(PATTERN)):
            with self._noting(path):
                self.take(path)
        # The clips' ids of numbered shards are in the hash of all they hold.
        if self.nbytes < MAX_VERIFIED_BYTES:
            for shard in [shard for shard in self._shards if shard.whole is not None]:
                with self._noting(shard.path):
                    shard.check()

    @contextmanager
    def _noting(self, path: Path) -> Iterator[None]:
        """Record a ``StoreError`` of a file in ``damaged``, and go on without its shard."""
        try:
            yield
        except StoreError as error:
            self.damaged[path.name] = str(error)
            rest = [shard.path for shard in self._shards if shard.path != path]
            if len(rest) == len(self._shards):
                return
            # What repeated its clips, or was repeated by them, is counted anew.
            self._shards, self._known, self._repeats, self._places = [], set(), set(), None
            for other in rest:
                with self._noting(other):
                    self.take(other)

    def take(self, path: Path) -> None:
        """Map one more shard; ``StoreError`` if it is damaged, or holds other latents of a known clip."""
        shard = Shard(path, self.meta)
        # Writers that divide the clips differently may make some twice: the shards before count.
        if twice := self._known.intersection(shard.ids):
            if self._places is None:
                self._places = {}
                for each in self._shards:
                    self._place(each)
            # A numbered shard has its rows' hashes only once it is verified.
            for first in {self._places[ident][0] for ident in twice}:
                with self._noting(first.path):
                    first.hashes("tokens")
                if first.path.name in self.damaged:
                    self.take(path)
                    return
            self._compare(shard, twice)
            self._repeats |= {(path.name, row) for row, ident in enumerate(shard.ids) if ident in twice}
        self._shards.append(shard)
        self._known.update(shard.ids)
        if self._places is not None:
            self._place(shard)
        self._forget()

    def _compare(self, shard: Shard, twice: set[str]) -> None:
        """``StoreError`` if clips of a shard have other latents in the shards before."""
        assert self._places is not None
        other = [
            ident
            for row, ident in enumerate(shard.ids)
            if ident in twice and not shard.same(row, *self._places[ident])
        ]
        if other:
            self._conflicts[shard.path.name] = other
            todo = f"`vab store repair {self.directory}` keeps those of the one whose name comes first"
            if shard.path.parent != self.directory:
                todo = "merge only one of the two stores, or move one of the shards out of its store"
            raise StoreError(
                f"{self._places[other[0]][0].path} and {shard.path} hold different latents of the same clips "
                f"({', '.join(other[:3])}{', ...' if len(other) > 3 else ''}); {todo}"
            )

    def _place(self, shard: Shard) -> None:
        assert self._places is not None
        for row, ident in enumerate(shard.ids):
            self._places.setdefault(ident, (shard, row))

    def _forget(self) -> None:
        """Drop the cached columns: the rows have changed."""
        for view in ("order", "ids", "labels", "splits", "_has", "_real"):
            self.__dict__.pop(view, None)

    @contextmanager
    def writing(self) -> Iterator[Callable[[], bool]]:
        """Hold the store as one of any number of writers; what killed ones left half written is removed.

        Gives a function that is True if this writer is the only one now, and then until it ends. The shards
        are listed anew. ``LockedError`` while another process repairs the store, ``StoreError`` if a shard is
        damaged or the store was made otherwise meanwhile.
        """
        with shared(self.directory / ".lock", f"repairs this store, {self.directory}") as alone:
            sweep(self.directory, again=True)
            for stale in self.directory.glob(".shard-*.tmp*"):
                if ".vab-" not in stale.name:  # version 0.1 named them so, and never writes beside others
                    stale.unlink(missing_ok=True)
            self._list()
            # Another process may have changed the folder since it was opened.
            if read_meta(self.directory) != self.meta:
                raise StoreError(f"{self.directory} was made otherwise meanwhile; use another folder")
            for shard in self._shards:
                if shard.whole is not None:
                    shard.check()
            self.check_whole()
            yield alone

    def add(self, rows: Sequence[Latents]) -> None:
        """Write one shard of clips; all of it or nothing. ``StoreError`` on wrong shapes or known ids."""
        if not rows:
            return
        # neither known nor twice among themselves
        ids = [row.id for row in rows]
        known = self._known.intersection(ids)
        if known or len(set(ids)) != len(ids):
            raise StoreError(f"{self.directory} has these clips already: {sorted(known) or ids}")
        self.take(write_rows(self.directory, self.url, self.meta, rows))

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, ident: object) -> bool:
        return ident in self._known

    @property
    def shards(self) -> list[str]:
        """File names of the shards that can be read."""
        return [shard.path.name for shard in self._shards]

    @property
    def nbytes(self) -> int:
        """Size of all latents."""
        return sum(shard.nbytes for shard in self._shards)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """[N, 2]: the shard of each row and its position there."""
        sizes = [len(shard) for shard in self._shards]
        numbers = np.repeat(np.arange(len(sizes)), sizes)
        places = np.stack([numbers, np.arange(len(numbers)) - np.cumsum([0, *sizes])[numbers]], axis=1)
        if self._repeats:
            names = [shard.path.name for shard in self._shards]
            places = places[[(names[n], i) not in self._repeats for n, i in places.tolist()]]
        ids = pa.array((self._shards[n].ids[i] for n, i in places.tolist()), pa.string())
        return places[pc.array_sort_indices(ids).to_numpy()]  # by UTF-8, whose order is that of Python

    @cached_property
    def ids(self) -> list[str]:
        """[N], sorted."""
        return self._texts("ids")

    @cached_property
    def labels(self) -> list[str]:
        """[N]; several are joined by ";"."""
        return self._texts("labels")

    @cached_property
    def splits(self) -> list[str]:
        """[N]"""
        return self._texts("splits")

    @cached_property
    def _has(self) -> dict[str, NDArray[np.bool_]]:
        return {
            name: self._sorted([shard.has[name] for shard in self._shards], bool)
            for name in self.meta.streams
        }

    @cached_property
    def _real(self) -> dict[str, NDArray[np.int32]]:
        return {
            name: self._sorted([shard.real[name] for shard in self._shards], np.int32)
            for name in self.meta.streams
        }

    def _texts(self, column: str) -> list[str]:
        """``ids``, ``labels`` or ``splits`` of the shards in the order of the store's rows."""
        columns: list[list[str]] = [getattr(shard, column) for shard in self._shards]
        return [columns[n][i] for n, i in self.order.tolist()]

    def _sorted(self, parts: list[NDArray], kind: type) -> NDArray:
        """Values of each shard's rows in the order of the store's rows."""
        # where each shard begins in the parts joined: [shards + 1]
        begins = np.cumsum([0, *map(len, parts)])
        positions = begins[self.order[:, 0]] + self.order[:, 1]
        return np.concatenate(parts)[positions] if parts else np.zeros(0, kind)

    def __getitem__(self, row: int) -> Latents:
        values: dict[str, Any] = {
            name: self.gather(name, [row])[0] if self._has[name][row] else None for name in self.meta.streams
        }
        values |= {f"real_{name}": int(self._real[name][row]) for name in STREAMS}
        return Latents(self.ids[row], self.labels[row], self.splits[row], **values)

    def has(self, name: str) -> NDArray[np.bool_]:
        """bool [N]: True for rows that have ``tokens`` or ``features``."""
        return self._has[name]

    def real(self, name: str) -> NDArray[np.int32]:
        """int32 [N]: number of frames of each row's ``tokens`` or ``features`` that are not padding."""
        return self._real[name]

    def num_valid(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """int32 [n]: ``real`` of those rows, 0 where a row has none."""
        return np.where(self._has[name][rows], self._real[name][rows], 0)

    def gather(
        self,
        name: str,
        rows: Sequence[int] | NDArray[np.int64],
        frames: NDArray[np.int64] | None = None,
        out: NDArray | None = None,
        at: NDArray[np.int64] | None = None,
    ) -> NDArray:
        """``tokens`` [n, K, T], ``features`` [n, F, dim] or ``timing`` [n, T, 2] of those rows.

        Zeros where a row has none. With ``frames`` [n, m], of each row's features those alone: [n, m, dim].
        They go to the places ``at`` [n] of ``out``, if it is given.
        Each is verified when it is first read: ``StoreError`` names a shard that is damaged.
        """
        # [n, K, T] or [n, F, dim], row by row: each is verified by its shard
        first, last = self.meta.shape(name)
        if out is None or at is None:
            out = np.empty((len(rows), first if frames is None else frames.shape[1], last), KINDS[name][0])
            at = np.arange(len(rows))
        places = self.order[np.asarray(rows, np.int64)].tolist()
        for i, (place, (shard, position)) in enumerate(zip(at.tolist(), places, strict=True)):
            values = self._shards[shard].read(name, position)
            out[place] = values if frames is None else values[frames[i]]
        return out

    def verify(self, limit: int = MAX_VERIFIED_BYTES) -> None:
        """Verify all latents if they take less than ``limit`` bytes, else each clip when it is first read.

        They stay mapped: all processes of a machine share the pages. ``StoreError`` names a damaged shard.
        """
        if self.nbytes < limit:
            for shard in self._shards:
                shard.check()

    def codebook_vectors(self) -> NDArray[np.float32]:
        """[K, V, C] of the codec that made the tokens; ``StoreError`` if their file is damaged."""
        path = self.directory / CODEBOOKS
        try:
            with safe_open(path, "np") as stream:
                vectors = stream.get_tensor("codebooks")
                checksum = (stream.metadata() or {}).get("sha256")
        except (SafetensorError, FileNotFoundError, ValueError) as error:
            raise StoreError(f"{path} is damaged ({error}); {advice(self.directory)}") from None
        if checksum not in (None, sha256(vectors.tobytes())):  # up to version 0.1 there was none
            raise StoreError(f"{path} is damaged (other numbers than were written); {advice(self.directory)}")
        return vectors

    def feature_statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation [dim] of the features for training.

        Over at most ``MAX_STATISTICS_CLIPS`` clips, spread evenly. Without any features: zeros and ones.
        """
        rows = np.flatnonzero(self.has("features") & (np.array(self.splits) == "train"))
        if not len(rows):
            dim = self.meta.vision_dim
            return np.zeros(dim, np.float32), np.ones(dim, np.float32)
        rows = rows[spread(len(rows), MAX_STATISTICS_CLIPS)]
        values = self.gather("features", rows).reshape(-1, self.meta.vision_dim).astype(np.float32)
        return values.mean(0), values.std(0).clip(min=1e-3)

    def fingerprint(self) -> str:
        """Hash of settings, vectors and clips (id and content); which shards hold them does not count.

        ``StoreError`` if a shard is damaged. A store of numbered shards alone has the fingerprint that it
        had when there were no others, so that runs on it go on.
        """
        self.check_whole()
        vectors = self.codebook_vectors().tobytes()

        # A store of version 0.1: its hash is that of its shards' hashes.
        numbered = [shard.whole for shard in self._shards if shard.whole is not None]
        if len(numbered) == len(self._shards) and not self._repeats:
            return sha256(self.meta.hashed(), vectors, *sorted(numbered))
        # Labels and splits as they are on disk: those of the store may have been changed in memory.
        texts = [self._texts(column) for column in ("ids", "labels", "splits")]
        has = [self._has[name] for name in self.meta.streams]
        real = [self._real[name] for name in self.meta.streams]
        hashes = [
            self._sorted([shard.hashes(name) for shard in self._shards], np.uint8)
            for name in self.meta.streams
        ]
        return sha256(root_hash(self.meta, texts, has, real, hashes), vectors)

    def check(self, advance: Callable[[int, int], None] = lambda done, total: None) -> dict[str, str]:
        """Verify every checksum; returns damaged file -> reason, a line each.

        ``advance`` is called with the number of shards verified and of all.
        """
        shards = list(self._shards)
        for done, shard in enumerate(shards):
            advance(done, len(shards))
            with self._noting(shard.path):
                shard.check()
        with self._noting(self.directory / CODEBOOKS):
            self.codebook_vectors()
        return self.damaged

    def repair(self, advance: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Path]:
        """Move damaged files to the folder ``damaged``, deleting nothing: file name -> where it is now.

        Of clips with different latents in two shards those of the shard whose name comes first are kept, and
        the other clips of the second one. The rest is a store that opens. ``LockedError`` if another process
        writes.
        """
        moved: dict[str, Path] = {}
        folder = self.directory / "damaged"
        with exclusive(self.directory / ".lock", f"writes to this store, {self.directory}"):
            for stale in self.directory.glob(".*.tmp*"):
                stale.unlink()
            self._list()
            while True:
                bad, conflicts = self.check(advance), dict(self._conflicts)
                # What is damaged goes first: then a clip may have other latents no more.
                torn = [name for name in bad if name not in conflicts and (self.directory / name).exists()]
                for name in torn or conflicts:
                    path = self.directory / name
                    if name in conflicts:
                        with suppress(StoreError):  # damaged as well: it is moved aside whole
                            self._keep_rest(Shard(path, self.meta), set(conflicts[name]))
                    folder.mkdir(exist_ok=True)
                    moved[name] = _move_aside(path, folder)
                self._list()
                if not conflicts:
                    return moved

    def _keep_rest(self, shard: Shard, without: Container[str]) -> None:
        """Write the clips of a shard once more without some; ``StoreError`` if one is damaged."""
        rest = [shard.row(row) for row, ident in enumerate(shard.ids) if ident not in without]
        if rest:
            write_shard(self.directory, self.meta, rest)


def _place(directory: str | Path) -> tuple[Path, str | None]:
    """The folder of a store, and its URL if that is a copy of it."""
    place = locate(directory)
    return (mirror(str(place)), str(place)) if isinstance(place, RemoteFile) else (place, None)


def write_new(path: Path, content: bytes) -> None:
    """Write a file that is not there yet, whole; one that another process has made meanwhile stays."""
    with suppress(FileExistsError), atomic(path, over=False) as temporary:
        temporary.write_bytes(content)


def spread(n: int, count: int) -> NDArray[np.int64]:
    """At most ``count`` of the indices 0 .. n - 1, evenly spread, in order."""
    return np.linspace(0, n, min(n, count), endpoint=False).astype(np.int64)


def _move_aside(file: Path, folder: Path) -> Path:
    """Move a file to a folder, under its name or, where that is taken, with a number."""
    number = 1
    while True:
        path = folder / (file.name if number == 1 else f"{file.stem}_{number}{file.suffix}")
        try:
            move(file, path)
        except FileExistsError:
            number += 1
        else:
            return path
