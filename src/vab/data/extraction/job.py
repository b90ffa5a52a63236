"""Extraction by several processes of one machine: each loads the encoders on its device, and takes a part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from vab.codecs.codec import load_codec
from vab.config import VisionName
from vab.data.extraction.encoding import Fill
from vab.data.extraction.run import Extraction, extract
from vab.data.extraction.stored import StoredFeatures
from vab.data.extraction.threads import Engine
from vab.data.manifest import read_manifest
from vab.utils import Precision
from vab.utils.processes import Worker, available_cores, run_processes
from vab.utils.shares import Share
from vab.vision import RECIPES, VisionEncoder, VisionError, load_vision


@dataclass(frozen=True)
class Job:
    """All that a process must know to extract its share of a manifest; see ``extract``."""

    manifest: str | Path
    out: str | Path
    codec: Literal["encodec", "dac", "tiny"]
    vision: VisionName
    seconds: float
    fps: float
    fill: Fill = "zero"
    timing: bool = False  # store the timing curve of each sound too
    precision: Precision = "float32"  # of the image encoder
    codec_path: str | None = None
    vision_path: str | None = None
    share: Share = Share()  # noqa: RUF009
    features_from: str | Path | None = None
    batch_clips: int | None = None
    batch_frames: int | None = None
    shard_clips: int = 512
    readers: int | None = None  # of each process
    engine: Engine | None = None  # None: threads of each process


def extract_on(
    job: Job,
    devices: Sequence[torch.device],
    advance: Callable[[int, int, int], None] = lambda done, total, failed: None,
) -> Extraction:
    """Do a job by a process for each device, which share its share; ``advance`` as for ``extract``.

    Raises what ``extract`` does, and ``ProcessError`` if a process dies.
    """
    count = len(devices)
    readers = job.readers or max(1, available_cores() // count)
    parts = [replace(job, share=job.share.part(rank, count), readers=readers) for rank in range(count)]
    numbers = dict.fromkeys(range(count), (0, 0, 0))

    def hear(rank: int, told: tuple[int, int, int]) -> None:
        numbers[rank] = told
        done, total, failed = map(sum, zip(*numbers.values(), strict=True))
        advance(done, total, failed)

    results = run_processes(extract_part, parts, devices, hear)
    failed = {ident: reason for result in results for ident, reason in result.failed.items()}
    return Extraction(sum(r.done for r in results), sum(r.present for r in results), failed)


def extract_part(worker: Worker, job: Job) -> Extraction:
    """Extract the share of one process."""
    features_from = None if job.features_from is None else StoredFeatures(job.features_from)
    if features_from is not None:
        # before anything large is loaded
        features_from.check_fits(
            replace(
                features_from.store.meta,
                vision=job.vision,
                vision_dim=RECIPES[job.vision].dim,
                precision=job.precision,
                seconds=float(job.seconds),
                fps=float(job.fps),
                fill=job.fill,
            )
        )
    return extract(
        job.manifest,
        job.out,
        load_codec(job.codec, job.codec_path),
        _vision(job, features_from),
        seconds=job.seconds,
        fps=job.fps,
        fill=job.fill,
        timing=job.timing,
        device=worker.device,
        share=job.share,
        features_from=features_from,
        batch_clips=job.batch_clips,
        batch_frames=job.batch_frames,
        shard_clips=job.shard_clips,
        readers=job.readers,
        engine=job.engine,
        advance=lambda *numbers: worker.tell(numbers),
    )


def _vision(job: Job, features_from: StoredFeatures | None) -> VisionEncoder | None:
    """The image encoder; None if all features are stored, or its weights are not there."""
    if features_from is not None and job.vision_path is None:
        clips = (clip for clip in read_manifest(job.manifest) if job.share.has(clip.id))
        if all(clip.video is None or features_from.has(clip) for clip in clips):
            return None
        try:
            return load_vision(job.vision, None, job.precision)
        except VisionError:  # what is not stored then fails, clip by clip
            return None
    return load_vision(job.vision, job.vision_path, job.precision)
