"""VATT's published latents of VGGSound (DragonLiu1995/video-to-audio-through-text) -> a store.

Two archives, one ``<id>_<start>.npy`` per clip in each: EnCodec tokens (500, 4) of AudioGen's 16 kHz codec,
and EVA02-CLIP features (about 50, 768) at 5 frames a second. The image encoder is the one for 336 pixels: a
model trained on the store names it, ``--model.vision eva02-clip-l-336``.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vab.config import audio_frames, video_frames
from vab.data.datasets.common import Index, Report, Row, hold_out, media_index
from vab.data.datasets.vggsound import read_list
from vab.data.datasets.videos import Exclusion
from vab.data.shard import Latents, StoreMeta
from vab.data.store import LatentStore
from vab.errors import first_line
from vab.utils.tables import ListError

SECONDS = 10.0
FPS = 5.0
NUM_CODEBOOKS, CODEBOOK_SIZE, VISION_DIM = 4, 2048, 768
FRAMES = audio_frames(SECONDS)
SHARD_CLIPS = 512
VISION_FINGERPRINT = "VATT's archive, eva02_large_patch14_clip_336.merged2b_s6b_b61k"
CODEC_FINGERPRINT = "VATT's archive, EnCodec 16 kHz of facebook/audiogen-medium"


def vatt_store(
    listing: str | Path,
    tokens: str | Path,
    features: str | Path,
    out: str | Path,
    codebook_vectors: NDArray[np.float32],
    dev_share: float = 0.0,
    exclusion: Exclusion | None = None,
) -> Report:
    """Bring VATT's two folders into the store ``out`` (made, or gone on with: known ids are skipped).

    ``listing`` is an official list of VGGSound: the archives say neither label nor split. A clip that lacks
    one of its files is gone. ``codebook_vectors`` [4, 2048, C] are EnCodec's. ``dev_share`` and
    ``exclusion`` as for ``vggsound_clips``. ``ListError``, ``StoreError``.
    """
    vectors = np.asarray(codebook_vectors)
    if vectors.shape[:2] != (NUM_CODEBOOKS, CODEBOOK_SIZE):
        raise ListError(
            f"the codec has {vectors.shape[0]} codebooks of {vectors.shape[1]}, "
            f"VATT's tokens come from {NUM_CODEBOOKS} of {CODEBOOK_SIZE}"
        )

    # 1. The rows of the list, each id once, that have both files.
    rows = read_list(listing)
    unique: dict[str, Row] = {}
    for row in rows:
        unique.setdefault(row.id, row)
    exclusion = exclusion or Exclusion()
    wanted = [row for row in unique.values() if not exclusion.keeps_out(row.id, row.split)]
    folders = [media_index(folder, [".npy"]) for folder in (tokens, features)]
    present = [row for row in wanted if all(_file(row, folder) for folder in folders)]
    present = hold_out(present, dev_share)
    if not present:
        raise ListError(f"{tokens}, {features}: hold none of the {len(rows)} clips of {listing}")

    # 2. Into the store, a shard at a time.
    meta = StoreMeta(
        codec="encodec",
        vision="eva02-clip-l-336",
        num_codebooks=NUM_CODEBOOKS,
        codebook_size=CODEBOOK_SIZE,
        codebook_dim=vectors.shape[2],
        vision_dim=VISION_DIM,
        seconds=SECONDS,
        fps=FPS,
        codec_fingerprint=CODEC_FINGERPRINT,
        vision_fingerprint=VISION_FINGERPRINT,
    )
    store = LatentStore.create(out, meta, vectors)
    unreadable: dict[str, str] = {}
    with store.writing():
        known = set(store.ids)
        new = (row for row in present if row.id not in known)
        while part := list(islice(new, SHARD_CLIPS)):
            store.add([clip for row in part if (clip := _clip(row, folders, unreadable)) is not None])
    return Report(
        listed=len(rows),
        left=len(present) - len(unreadable),
        gone=len(wanted) - len(present),
        duplicates=len(rows) - len(unique),
        excluded=exclusion.excluded,
        kept_tests=exclusion.kept_tests,
        silent=0,
        still_frames=None,
        unreadable=unreadable,
        copies={},
    )


def _file(row: Row, folder: Index) -> Path | None:
    files = next((folder[name] for name in row.names if name in folder), None)
    return None if files is None else Path(files["video"])  # the index calls what is no sound a video


def _clip(row: Row, folders: list[Index], unreadable: dict[str, str]) -> Latents | None:
    # a file that cannot be used costs its own clip alone
    tokens = _file(row, folders[0])
    features = _file(row, folders[1])
    assert tokens is not None and features is not None
    try:
        values, real = read_features(features)
        return Latents(
            id=row.id,
            label=row.label,
            split=row.split,
            tokens=read_tokens(tokens),
            features=values,
            real_features=real,
        )
    except ListError as error:
        unreadable[row.id] = str(error)
        return None


def read_tokens(path: str | Path) -> NDArray[np.uint16]:
    """Tokens uint16 [K, T] of a file that holds integers [T, K] = (500, 4) below 2048."""
    # [T, K] -> [K, T]
    values = _read(path)
    if values.shape != (FRAMES, NUM_CODEBOOKS) or values.dtype.kind not in "iu":
        raise ListError(f"{path}: {values.dtype} {values.shape}, not integers {(FRAMES, NUM_CODEBOOKS)}")
    if values.min() < 0 or values.max() >= CODEBOOK_SIZE:
        raise ListError(f"{path}: tokens {values.min()} to {values.max()}, not 0 to {CODEBOOK_SIZE - 1}")
    return values.T.astype(np.uint16)


def read_features(path: str | Path) -> tuple[NDArray[np.float16], int]:
    """Features float16 [F, 768] and how many of the F are not padding, of a file (about 50, 768).

    F is 50: more are cut off, the last of fewer is repeated.
    """
    values = _read(path)
    if values.ndim != 2 or values.shape[1] != VISION_DIM or not len(values) or values.dtype.kind != "f":
        raise ListError(f"{path}: {values.dtype} {values.shape}, not numbers (frames, {VISION_DIM})")
    # What does not fit into float16 becomes infinite, and is refused below.
    with np.errstate(over="ignore"):
        values = values.astype(np.float16)
    if not np.isfinite(values).all():
        raise ListError(f"{path}: holds values that are no numbers, or too large")
    # [frames, 768] -> [F, 768]: the last one again where there are too few
    num_features = video_frames(SECONDS, FPS)
    real = min(len(values), num_features)
    return values[np.minimum(np.arange(num_features), real - 1)], real


def _read(path: str | Path) -> NDArray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ListError(f"{path}: not a readable npy file ({first_line(error)})") from None
    if not isinstance(values, np.ndarray):
        raise ListError(f"{path}: not a plain npy file")
    return values
