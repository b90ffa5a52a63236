"""The clips of several stores, made the same way, in one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vab.data.shard import Shard, StoreError
from vab.data.store import LatentStore
from vab.utils.files import atomic, sync_folder


@dataclass(frozen=True)
class Merged:
    """Result of ``merge``."""

    added: int  # clips that are in the store now and were not before
    shards: int  # files that hold them
    present: int  # clips that were there already, or in several of the stores


def merge(
    out: str | Path,
    sources: Sequence[str | Path],
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Merged:
    """Bring every clip of the stores ``sources`` into the store ``out``, which is made if it is not there.

    Killed at any time it leaves a store, and goes on when it is called again. The sources stay as they are.
    ``advance`` is called with the number of shards verified and of all. Raises ``StoreError`` before any clip
    is written if one is damaged, if they were made otherwise, or if a clip has different latents in two.
    """
    # 1. All must have been made the same way, by the same codec. The first to differ is named.
    stores = [LatentStore.open(source) for source in sources]
    if not stores:
        raise StoreError("no stores to merge")
    if (Path(out) / "store.json").exists():
        stores.insert(0, LatentStore.open(out))
    first, *others = stores
    vectors = first.codebook_vectors()
    for store in others:
        different = first.meta.differences(store.meta)
        if not different and not np.array_equal(vectors, store.codebook_vectors()):
            different = ["the codec's vectors are other ones"]
        if different:
            raise StoreError(
                f"{store.directory} was made otherwise than {first.directory}: {'; '.join(different)}; "
                "such latents never mix"
            )
    target = LatentStore.create(out, first.meta, vectors)

    with target.writing():
        # 2. Every checksum, and that no clip has two contents, before any is written.
        paths = [
            store.directory / name
            for store in stores
            if not store.directory.samefile(target.directory)
            for name in store.shards
        ]
        trial = LatentStore(target.directory, target.meta)
        for done, path in enumerate(paths):
            advance(done, len(paths))
            Shard(path, target.meta).check()
            trial.take(path)

        # 3. Shards whose clips are not all there.
        before, rows = len(target), 0
        names = set(target.shards)
        for path in paths:
            shard = Shard(path, target.meta)
            rows += len(shard)
            new = [row for row, ident in enumerate(shard.ids) if ident not in target]
            if not new:
                continue
            if shard.whole is not None:  # several stores have a shard of its number
                target.add([shard.row(row) for row in new])
            else:
                _link(path, target.directory / path.name)
                target.take(target.directory / path.name)
        added = len(target) - before
        return Merged(added, len(set(target.shards) - names), rows - added)


def _link(file: Path, path: Path) -> None:
    """Give a file a second name, or make a copy where the disk cannot; never over another file."""
    try:
        os.link(file, path)
        sync_folder(path.parent)
    except FileExistsError:  # made by another merge meanwhile; it is verified when it is taken
        return
    except OSError:
        with suppress(FileExistsError), atomic(path, over=False) as temporary:
            shutil.copyfile(file, temporary)
