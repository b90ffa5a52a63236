"""Extraction: media -> latents, once per clip (section 3.1), resumable and safe to kill."""

from __future__ import annotations

import csv
import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vab.codecs.codec import Codec
from vab.codecs.tiny import TinyCodec
from vab.config import SAMPLE_RATE, samples_to_frames, video_frames
from vab.data.manifest import Clip, read_manifest
from vab.data.shard import Latents, StoreMeta
from vab.data.store import LatentStore
from vab.errors import failure
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.image import moving_crop
from vab.media.reader import probe
from vab.utils.files import write_whole
from vab.utils.progress import step_bar
from vab.utils.provenance import sha256
from vab.vision import VisionEncoder

Fill = Literal["zero", "repeat"]


@dataclass(frozen=True)
class Extraction:
    """Result of one run of ``extract``."""

    done: int  # clips written now
    present: int  # clips that the store had already
    failed: dict[str, str]  # id -> reason; also in the store's failures.csv


@dataclass(frozen=True)
class Decoded:
    """One clip's decoded streams."""

    clip: Clip
    waveform: NDArray[np.float32] | None  # [S]
    frames: list[NDArray[np.uint8]]  # each [H, W, 3]; none if the clip has no video
    frame_indices: list[int]  # [F]: index into ``frames`` for each feature position of the window
    real_tokens: int = 0  # number of the window's T audio frames that are not padding
    real_features: int = 0  # and of its F features


def extract(
    manifest: str | Path,
    out: str | Path,
    codec: Codec,
    vision: VisionEncoder,
    *,
    seconds: float,
    fps: float,
    fill: Fill = "zero",
    device: str | torch.device = "cpu",
    batch_clips: int = 16,
    shard_clips: int = 512,
) -> Extraction:
    """Bring every clip of a manifest into the store ``out`` (made, or gone on with: known ids are skipped).

    Each clip becomes tokens [K, T] of all the codec's codebooks and features [F, dim] at ``fps`` a second,
    both for a window of exactly ``seconds``. Shorter video repeats its last feature, shorter audio is
    followed by silence; with ``fill="repeat"`` both streams start again.
    An image gets a slow moving crop, seeded by the clip's id. A clip that cannot be read is listed in
    ``failures.csv`` and tried again by the next run.
    Raises ``ManifestError``, ``StoreError`` if the store was made with other settings or
    weights, and ``LockedError`` while another process writes to it.
    """
    # 1. The store: a new one, or that of an earlier run with the same settings and weights.
    clips = read_manifest(manifest)
    meta = replace(
        latents_meta(codec, vision, seconds, fps, fill),
        codec_fingerprint=weights_fingerprint(codec),
        vision_fingerprint=weights_fingerprint(vision),
    )
    vectors = codec.codebook_vectors()
    store = LatentStore.create(out, meta, vectors.cpu().numpy())
    codec.to(device)
    vision.to(device)

    # 2. Threads decode ahead, clips are encoded in batches and written in shards.
    with store.writing():
        known = set(store.ids)
        wanted = [clip for clip in clips if clip.id not in known]
        failed: dict[str, str] = {}
        pending: list[Decoded] = []
        rows: list[Latents] = []
        with step_bar("extract", len(clips), len(clips) - len(wanted)) as advance:
            for clip, result in read_ahead(wanted, meta, vision.decode_size, batch_clips):
                if isinstance(result, Decoded):
                    pending.append(result)
                else:
                    failed[clip.id] = result
                # Batches end where shards end, so a resumed run makes the same ones.
                if len(pending) == batch_clips or len(rows) + len(pending) == shard_clips:
                    rows += encode(pending, codec, vision, meta, device)
                    pending = []
                if len(rows) == shard_clips:
                    store.add(rows)
                    rows = []
                    _write_failures(store.directory, failed)
                advance(f"({len(failed)} failed)")
            store.add(rows + encode(pending, codec, vision, meta, device))
        _write_failures(store.directory, failed)
    return Extraction(len(wanted) - len(failed), len(clips) - len(wanted), failed)


def latents_meta(
    codec: Codec, vision: VisionEncoder, seconds: float, fps: float, fill: Fill = "zero"
) -> StoreMeta:
    """Settings of a store with latents of these two encoders for windows of ``seconds``; no fingerprints."""
    num_codebooks, codebook_size, dim = codec.codebook_vectors().shape
    return StoreMeta(
        codec=codec.name,
        vision=vision.name,
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
        codebook_dim=dim,
        vision_dim=vision.dim,
        seconds=float(seconds),
        fps=float(fps),
        fill=fill,
    )


def decode(clip: Clip, meta: StoreMeta, side: int) -> Decoded:
    """Decode one clip: a waveform of exactly the window, frames of about ``side`` pixels.

    ``MediaError`` if a file cannot be read, ends before the clip starts, or holds no numbers.
    """
    with ExitStack() as files:
        # Audio and video are mostly streams of one file, which is then opened once for both.
        paths = {path for path in (clip.audio, clip.video) if path}
        opened = {path: files.enter_context(MediaFile(clip.memory or path)) for path in paths}
        waveform, real_tokens = None, 0
        if clip.audio is not None:
            waveform, real_tokens = _decode_audio(clip, opened[clip.audio], meta)
        if clip.video is None:
            return Decoded(clip, waveform, [], [], real_tokens)
        frames, indices, real_features = _decode_video(clip, opened[clip.video], meta, side)
        return Decoded(clip, waveform, frames, indices, real_tokens, real_features)


def _decode_audio(clip: Clip, file: MediaFile, meta: StoreMeta) -> tuple[NDArray[np.float32], int]:
    """The window's waveform [S], and the number of its audio frames that are not padding."""
    num_samples = round(meta.seconds * SAMPLE_RATE)
    waveform = file.audio(clip.start, _length(clip, file, meta.seconds), model_level=True)
    if not np.isfinite(waveform).all():
        raise MediaError(f"{file.path}: the sound holds values that are not numbers")
    if meta.fill == "repeat":
        waveform = np.resize(waveform, num_samples)  # starts again until the window is full
    real_tokens = samples_to_frames(min(len(waveform), num_samples))
    return np.pad(waveform[:num_samples], (0, max(0, num_samples - len(waveform)))), real_tokens


def _decode_video(
    clip: Clip, file: MediaFile, meta: StoreMeta, side: int
) -> tuple[list[NDArray[np.uint8]], list[int], int]:
    """The clip's frames, the frame's index for each of the window's F features, and how many are valid."""
    num_features = video_frames(meta.seconds, meta.fps)
    if file.is_image:
        # An image: a slow moving crop of it, one frame for each feature.
        pixels = next(file.frames(meta.fps))
        seed = int(sha256(clip.id)[:8], 16)
        return list(moving_crop(pixels, num_features, seed, side)), list(range(num_features)), num_features
    length = _length(clip, file, meta.seconds)
    frames = list(file.frames(meta.fps, clip.start, length, size=side))

    # A window that is longer than the clip starts it again, or goes on with its last frame.
    times = np.arange(num_features) / meta.fps
    if meta.fill == "repeat":
        times %= length
    indices = np.minimum((times * meta.fps + 1e-6).astype(int), len(frames) - 1)
    real = num_features if meta.fill == "repeat" else min(num_features, video_frames(length, meta.fps))
    return frames, indices.tolist(), real


@torch.no_grad()
def encode(
    batch: list[Decoded], codec: Codec, vision: VisionEncoder, meta: StoreMeta, device: str | torch.device
) -> list[Latents]:
    """Encode decoded clips, in their order."""
    # Audio: only of the clips that have it, [n, S] -> [n, K, T]
    num_frames = meta.token_shape[1]
    waveforms = [item.waveform for item in batch if item.waveform is not None]
    tokens: Iterator[NDArray[np.uint16]] = iter(())
    if waveforms:
        codes = codec.encode(torch.from_numpy(np.stack(waveforms)).to(device))[:, :, :num_frames]
        tokens = iter(codes.cpu().numpy().astype(np.uint16))

    # Video: the frames of all clips as one stream, [sum of their numbers, dim], cut again at ``ends``.
    features = np.zeros((0, vision.dim), np.float16)
    if any(item.frames for item in batch):
        stream = chain.from_iterable(item.frames for item in batch)
        features = vision.encode(stream).cpu().numpy().astype(np.float16)
    ends = np.cumsum([len(item.frames) for item in batch])
    return [
        Latents(
            item.clip.id,
            item.clip.label,
            item.clip.split,
            next(tokens) if item.waveform is not None else None,
            features[end - len(item.frames) : end][item.frame_indices] if item.frames else None,
            item.real_tokens,
            item.real_features,
        )
        for item, end in zip(batch, ends, strict=True)
    ]


def weights_fingerprint(encoder: Codec | VisionEncoder) -> str:
    """Hash of the weights that latents depend on: all of them, or for the small codec those of its codes."""
    if isinstance(encoder, TinyCodec):
        state = encoder.code_weights()
    else:
        # An encoder is a module, or a plain object that holds some.
        modules = [encoder] if isinstance(encoder, nn.Module) else vars(encoder).values()
        state = {
            f"{n}.{name}": tensor
            for n, module in enumerate(modules)
            if isinstance(module, nn.Module)
            for name, tensor in module.state_dict().items()
        }
    content = (
        tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for tensor in state.values()
    )
    return sha256(encoder.name, *(part for pair in zip(state, content, strict=True) for part in pair))


_info = lru_cache(maxsize=64)(probe)  # many clips may be windows of one file


def _length(clip: Clip, file: MediaFile, window: float) -> float:
    """Length of the clip in seconds: that of the window, of its manifest or of its file."""
    # a still image has no length of its own
    info = _info(file.source) if isinstance(file.source, Path) else file.info
    length = min(window, clip.seconds or window)
    if info.kind != "image":
        length = min(length, info.seconds - clip.start)
    if length * SAMPLE_RATE < 1:
        raise MediaError(
            f"{file.path}: the clip starts at {clip.start:g} s, the file ends at {info.seconds:g} s"
        )
    return length


def read_ahead(
    clips: Iterable[Clip], meta: StoreMeta, side: int, depth: int
) -> Iterator[tuple[Clip, Decoded | str]]:
    """Yield each clip with its streams or the reason why not, in order; threads run ``depth`` clips ahead."""

    def attempt(clip: Clip) -> Decoded | str:
        try:
            return decode(clip, meta, side)
        except Exception as error:  # one clip out of a million must not end the run
            return failure(clip.audio or clip.video or clip.id, error)

    waiting: deque[tuple[Clip, Future[Decoded | str]]] = deque()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            # Submit one, hand out the oldest: never more than ``depth`` decoded clips in memory.
            for clip in clips:
                waiting.append((clip, pool.submit(attempt, clip)))
                if len(waiting) > depth:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for last, future in waiting:
                yield last, future.result()
        finally:
            # The reader may stop early; what has not begun need not be decoded.
            for _, future in waiting:
                future.cancel()


def _write_failures(directory: Path, failed: dict[str, str]) -> None:
    # no file where nothing failed: what an earlier run could not read may be mended
    path = directory / "failures.csv"
    if not failed:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "reason"))
    writer.writerows(failed.items())
    write_whole(path, text.getvalue().encode(errors="backslashreplace"))
