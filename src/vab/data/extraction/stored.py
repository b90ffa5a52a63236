"""Image features that another store has already, so that each codec's store need not make them again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vab.data.manifest import Clip
from vab.data.shard import Latents, StoreError, StoreMeta
from vab.data.store import LatentStore

# what image features depend on
SETTINGS = ("vision", "vision_dim", "vision_fingerprint", "seconds", "fps", "fill", "precision")


class StoredFeatures:
    """The image features of a store, by the clips' ids; verified when they are read."""

    def __init__(self, directory: str | Path) -> None:
        """Open the store; ``StoreError`` if there is none or a shard of it is damaged."""
        self.store = LatentStore.open(directory)
        has = self.store.has("features")
        self._rows = {ident: row for row, ident in enumerate(self.store.ids) if has[row]}

    def __reduce__(self) -> tuple[type[StoredFeatures], tuple[Path]]:
        return StoredFeatures, (self.store.directory,)  # opened again where it is sent to

    def check_fits(self, meta: StoreMeta) -> None:
        """``StoreError`` that lists all settings by which features of ``meta`` would be other ones."""
        other = self.store.meta.differences(meta, SETTINGS)
        if other:
            raise StoreError(
                f"{self.store.directory}: its image features are other ones: {'; '.join(other)}; "
                "extract with the same settings, or without --features-from"
            )

    def has(self, clip: Clip) -> bool:
        """True if the clip has a picture whose features are stored."""
        return clip.video is not None and clip.id in self._rows

    def add_to(self, row: Latents) -> Latents:
        """A clip's latents with the stored features. ``StoreError`` if these are damaged."""
        found = self.store[self._rows[row.id]]
        return replace(row, features=found.features, real_features=found.real_features)
