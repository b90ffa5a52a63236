"""Videos of a study: check that browsers play them, copy them without tags, and copy them with beeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vab.config import SAMPLE_RATE
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.muxing.mux import copy

VIDEO_CODECS = {  # profiles that all browsers play, and MP4 holds: not AV1 (Apple), 10 bits, 4:2:2 or 4:4:4
    "h264": ("Constrained Baseline", "Baseline", "Main", "High"),
    "vp9": ("Profile 0",),
}
PIXEL_FORMATS = ("yuv420p", "yuvj420p")
AUDIO_CODECS = ("aac", "mp3", "opus", "flac")
BEEP_AMPLITUDE = 0.1
BEEP_HZ = 1000.0


def check_video(path: Path) -> None:
    """``MediaError`` unless ``path`` is a video with sound, both of which all browsers play."""
    with MediaFile(path) as file:
        # 1. A video with sound ...
        info = file.info
        if info.kind != "video":
            raise MediaError(f"{path}: has no picture; a study shows video with its sound")
        if not info.has_audio:
            raise MediaError(f"{path}: has no sound to judge")
        # 2. ... in codecs that all browsers play ...
        with file.handle.lend() as opened:
            context: Any = opened.video.codec_context
            codec, profile = context.codec.canonical_name, context.profile
            if profile not in VIDEO_CODECS.get(codec, ()) or context.pix_fmt not in PIXEL_FORMATS:
                encoding = ", ".join(filter(None, (codec, profile, context.pix_fmt)))
                raise MediaError(
                    f"{path}: its picture is {encoding}, which not all browsers play; "
                    "encode it as 8-bit 4:2:0 H.264 (ffmpeg -c:v libx264 -pix_fmt yuv420p)"
                )
            codec = opened.audio.codec_context.codec.canonical_name
            if codec not in AUDIO_CODECS:
                raise MediaError(
                    f"{path}: its sound is {codec}, which browsers do not play; "
                    f"encode it as {AUDIO_CODECS[0]}"
                )
        # 3. ... and whose sound can be decoded.
        waveform = file.audio()
    if not len(waveform) or not np.isfinite(waveform).all():
        raise MediaError(f"{path}: its sound is empty or holds NaN or infinity")


def copy_video(path: Path, out: Path) -> None:
    """Copy video and audio of ``path`` into a new MP4 without tags, which may name the system.

    They are copied packet by packet, as ``MediaFile.mux`` does it: what the clip hides stays out. Only cuts
    that a copy cannot express are encoded.
    """
    with MediaFile(path) as file:
        copy(file, out)


def copy_with_beeps(path: Path, out: Path) -> None:
    """Copy the video of ``path`` with a short beep twice a second: sound that is worse than any system's."""
    with MediaFile(path) as file:
        time = np.arange(round(file.times.seconds * SAMPLE_RATE)) / SAMPLE_RATE
        beeps = BEEP_AMPLITUDE * np.sin(2 * np.pi * BEEP_HZ * time) * (time % 0.5 < 0.2)
        copy(file, out, (beeps.astype(np.float32), SAMPLE_RATE))
