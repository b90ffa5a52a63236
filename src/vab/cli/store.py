"""vab store info, vab store check, vab store repair, vab store merge."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vab.cli.output import log, print_result
from vab.utils import count_of
from vab.utils.progress import count_bar

if TYPE_CHECKING:
    from vab.data.store import LatentStore

Store = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]  # or its URL
Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]


def info(store: Store, json: bool = False) -> int:
    """Describe a store of latents and what made it.

    The small columns of each shard are verified on opening; vab store check verifies the latents.

    Args:
        store: the folder of the store, or its URL.
        json: print one JSON document to standard output.
    """
    latents = _open(store)
    fingerprint = None if latents.damaged else latents.fingerprint()
    splits = {split: latents.splits.count(split) for split in sorted(set(latents.splits))}
    labels = {label for text in set(latents.labels) for label in text.split(";") if label}
    made = asdict(latents.meta)
    document = {
        "store": str(store),
        "clips": len(latents),
        "tokens": int(latents.has("tokens").sum()),
        "features": int(latents.has("features").sum()),
        "splits": splits,
        "labels": len(labels),
        "shards": latents.shards,
        "bytes": latents.nbytes,
        "fingerprint": fingerprint,
        "made": made,
        "damaged": latents.damaged,
    }
    counts = ", ".join(f"{count} {split}" for split, count in splits.items())
    settings = ", ".join(f"{name} {value}" for name, value in made.items() if value != "")
    lines = [
        f"{store}: {count_of(len(latents), 'clip')} ({counts or 'none'}), {count_of(len(labels), 'label')}",
        f"with sound {document['tokens']}, with picture {document['features']}",
        f"{count_of(len(latents.shards), 'shard')}, {latents.nbytes / 1e6:.1f} MB of latents",
        f"fingerprint {fingerprint or 'none while a shard is damaged'}",
        f"made with {settings}",
    ]
    _log_damage(latents)
    print_result(document, "\n".join(lines), json)
    return 1 if latents.damaged else 0


def check(store: Store, json: bool = False) -> int:
    """Verify every checksum of a store. Exit code 1 if something is damaged.

    Args:
        store: the folder of the store, or its URL.
        json: print one JSON document to standard output.
    """
    with count_bar("check") as advance:
        latents = _open(store)
        damaged = latents.check(lambda done, total: advance(done, total, ""))
    _log_damage(latents)
    text = f"{store}: {_contents(latents)} good, {len(damaged)} damaged"
    document = {"store": str(store), "clips": len(latents), "shards": latents.shards, "damaged": damaged}
    print_result(document, text, json)
    return 1 if damaged else 0


def repair(store: Folder, json: bool = False) -> int:
    """Move damaged shards of a store to its folder damaged; vab extract then makes their clips again.

    Every checksum is verified first. Nothing is deleted, and intact shards are not touched. Of a clip with
    different latents in two shards those of the shard whose name comes first are kept, and the other clips
    of the second shard are written again without it.

    Args:
        store: the folder of the store.
        json: print one JSON document to standard output.
    """
    with count_bar("check") as advance:
        latents = _open(str(store))
        moved = latents.repair(lambda done, total: advance(done, total, ""))
    for name, path in moved.items():
        log(f"{name} was damaged and is now {path}")
    text = f"{store}: {len(moved)} moved aside, {_contents(latents)} good"
    if moved:
        text += "; make what is missing with the `vab extract` that made the store"
    document = {
        "store": str(store),
        "clips": len(latents),
        "shards": latents.shards,
        "moved": {name: str(path) for name, path in moved.items()},
    }
    print_result(document, text, json)
    return 0


def merge(
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    stores: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="STORE...", help_behavior_hint="(required)"),
    ],
    json: bool = False,
) -> int:
    """Bring the clips of several stores, made the same way, into one. Killed, it is run again to go on.

    Every checksum is verified first. Shards are linked where the disk can, else copied; the stores stay as
    they are. Clips that OUT has already are left out. (A store made by several vab extract at once into one
    folder needs no merging.)

    Args:
        out: the folder of the store that gets them; made if it is not there.
        stores: the folders of the stores.
        json: print one JSON document to standard output.
    """
    from vab.data.merge import merge as run

    with count_bar("merge") as advance:
        merged = run(out, stores, lambda done, total: advance(done, total, ""))
    added = f"{count_of(merged.added, 'clip')} in {count_of(merged.shards, 'shard')} added"
    text = f"{out}: {added}, {merged.present} were there"
    print_result({"store": str(out), **asdict(merged)}, text, json)
    return 0


def _open(store: str) -> LatentStore:
    """Open a store, also a damaged one: what cannot be read is in ``damaged``."""
    from vab.data.store import LatentStore

    return LatentStore.open(store, whole=False)


def _log_damage(latents: LatentStore) -> None:
    for reason in latents.damaged.values():
        log(reason)


def _contents(store: LatentStore) -> str:
    return f"{count_of(len(store.shards), 'shard')} with {count_of(len(store), 'clip')}"
