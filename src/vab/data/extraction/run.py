"""Extraction of one process's share: decode ahead, encode in batches, write shards; it can be killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from vab.codecs.codec import Codec
from vab.data.extraction.decoding import attempt
from vab.data.extraction.encoding import Decoded, Fill, encode, latents_meta, weights_fingerprint
from vab.data.extraction.failures import settle_failures, write_failures
from vab.data.extraction.stored import StoredFeatures
from vab.data.extraction.threads import Encode, Engine, Steps, on_threads
from vab.data.manifest import read_manifest
from vab.data.mirror import write_rows
from vab.data.shard import Latents, StoreMeta
from vab.data.store import LatentStore
from vab.utils.processes import available_cores
from vab.utils.shares import Share
from vab.vision import RECIPES, VisionEncoder

BATCH_CLIPS, BATCH_CLIPS_CPU = 16, 4  # of a pass of the codec


@dataclass(frozen=True)
class Extraction:
    """Result of one run of ``extract``."""

    done: int  # clips written now
    present: int  # clips that the store had already
    failed: dict[str, str]  # id -> reason; also in the store's failures.csv


def extract(
    manifest: str | Path,
    out: str | Path,
    codec: Codec,
    vision: VisionEncoder | None,
    *,
    seconds: float,
    fps: float,
    fill: Fill = "zero",
    timing: bool = False,
    device: str | torch.device = "cpu",
    share: Share = Share(),  # noqa: B008
    features_from: StoredFeatures | None = None,
    batch_clips: int | None = None,
    batch_frames: int | None = None,
    shard_clips: int = 512,
    readers: int | None = None,
    engine: Engine | None = None,
    advance: Callable[[int, int, int], None] = lambda done, total, failed: None,
) -> Extraction:
    """Bring the clips of a manifest, or a share of them, into the store ``out`` (made, or gone on with).

    Each clip becomes tokens [K, T] of all the codec's codebooks and features [F, dim] at ``fps`` a second,
    both for a window of exactly ``seconds``. Shorter video repeats its last feature, shorter audio is
    followed by silence; with ``fill="repeat"`` both streams start again. With ``timing`` the timing curve of
    each sound is stored too, for a model that is told one.
    An image gets a slow moving crop, seeded by the clip's id. Known ids are skipped. A clip that cannot be
    read is listed in ``failures.csv`` and tried again by the next run.

    Any number of processes, of one machine or several, may write to a store at once; what each clip becomes
    does not depend on how they share the work. ``features_from`` has image features that need not be made
    again; ``vision`` may then be None, and clips that are not there fail. ``batch_clips`` and
    ``batch_frames`` are the sizes of the passes of the two encoders, ``readers`` the number of threads that
    decode. ``engine`` takes the steps elsewhere than in the threads of this process, on a cluster of Ray
    (``vab.data.extraction.ray``). ``advance`` is called with the numbers of clips that are done, of all, and
    of those that failed.

    Raises ``ManifestError``, ``StoreError`` if the store was made with other settings or
    weights, and ``LockedError`` while another process repairs it.
    """
    # 1. The store: a new one, or that of an earlier run with the same settings and weights.
    clips = [clip for clip in read_manifest(manifest) if share.has(clip.id)]
    meta = _meta(codec, vision, features_from, seconds, fps, fill, timing)
    store = LatentStore.create(out, meta, codec.codebook_vectors().cpu().numpy())
    recipe = RECIPES[meta.vision] if vision is None else vision.recipe
    on_cpu = torch.device(device).type == "cpu"
    size = batch_clips or (BATCH_CLIPS_CPU if on_cpu else BATCH_CLIPS)

    with store.writing() as alone:
        # 2. What is to be done; what is there already, and pictures whose features are elsewhere, is not.
        wanted = [clip for clip in clips if clip.id not in store]
        stored = {clip.id for clip in wanted if features_from is not None and features_from.has(clip)}
        failed: dict[str, str] = {}
        if vision is None:
            failed = {
                clip.id: f"{clip.video}: its image features are not stored, and there is no image encoder"
                for clip in wanted
                if clip.video is not None and clip.id not in stored
            }
        to_decode = [
            replace(clip, video=None) if clip.id in stored else clip
            for clip in wanted
            if clip.id not in failed
        ]

        def load() -> Encode:
            """The encoders on their device; what it gives encodes a batch."""
            codec.to(device)
            if vision is not None:
                vision.to(device)
            frames = batch_frames or (None if vision is None else vision.default_batch_size)

            def encode_batch(batch: list[Decoded]) -> list[Latents]:
                rows = encode(batch, codec, vision, meta, device, size, frames)
                return [
                    features_from.add_to(row) if features_from is not None and row.id in stored else row
                    for row in rows
                ]

            return encode_batch

        # 3. Threads of this process take the steps, or processes of a cluster.
        steps = Steps(
            decode=partial(attempt, meta=meta, recipe=recipe),
            load=load,
            write=partial(write_rows, store.directory.absolute(), store.url, meta),
            on_cpu=on_cpu,
            batch_clips=size,
            shard_clips=shard_clips,
        )
        run = engine or partial(on_threads, readers=readers or available_cores())
        seen = len(clips) - len(to_decode)
        advance(seen, len(clips), len(failed))
        for ident, reason in run(to_decode, steps):
            if reason:
                failed[ident] = reason
            seen += 1
            advance(seen, len(clips), len(failed))
            if seen % shard_clips == 0:
                write_failures(store, share, failed)
        write_failures(store, share, failed)
        if alone() and store.url is None:
            settle_failures(store.directory, share, failed, LatentStore.open(out))
    return Extraction(len(wanted) - len(failed), len(clips) - len(wanted), failed)


def _meta(
    codec: Codec,
    vision: VisionEncoder | None,
    features_from: StoredFeatures | None,
    seconds: float,
    fps: float,
    fill: Fill,
    timing: bool,
) -> StoreMeta:
    """Settings of the store, with fingerprints; ``StoreError`` if stored features have other ones."""
    if vision is not None:
        meta = latents_meta(codec, vision, seconds, fps, fill, timing)
        meta = replace(meta, vision_fingerprint=weights_fingerprint(vision))
    else:
        assert features_from is not None, "without an image encoder features must be stored"
        made = features_from.store.meta
        meta = replace(
            latents_meta(codec, made, seconds, fps, fill, timing), vision_fingerprint=made.vision_fingerprint
        )
    if features_from is not None:
        features_from.check_fits(meta)
    return replace(meta, codec_fingerprint=weights_fingerprint(codec))
