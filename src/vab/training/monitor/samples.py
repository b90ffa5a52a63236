"""A few dev clips whose sound a run generates every so often, to be heard, seen and scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vab.codecs.codec import Codec, CodecError, has_codebooks, load_codec
from vab.config import Preset
from vab.data.store import spread
from vab.models.hub import FOLDERS
from vab.models.vab import VAB
from vab.sampling.stages import Stage
from vab.training.batches import ClipBatches, make_generator
from vab.training.monitor.journal import Logger
from vab.utils.mel import log_mel_frames

SEED = 0
OFFSET = 1e-3  # of mel magnitudes under the logarithm: silence
RANGE = 10.0  # nats from silence to white
HEIGHT = 3  # rows of the picture for each of the 64 bands

Sounds = list[NDArray[np.float32]]  # waveforms [S] at the codec's rate
# The true sounds of the clips and those generated, in the same order -> scores by name
Examine = Callable[[Sounds, Sounds], dict[str, float]]


class Samples:
    """The clips: at most ``preset.train.sample_clips`` of the split dev that have a picture, spread evenly.

    A clip's noise depends on its id alone, so the samples of two steps differ by the weights alone.
    """

    def __init__(self, dev: ClipBatches, preset: Preset, codec: Codec, device: torch.device) -> None:
        rows = dev.rows_with_video()
        self.batch = dev.dev_batch(rows[spread(len(rows), preset.train.sample_clips)]).to(device)
        self.preset, self.codec = preset, codec.to(device)
        self.true = self._decode(self.batch.tokens)

    @classmethod
    def open(
        cls,
        dev: ClipBatches,
        preset: Preset,
        codec_path: str | Path | None,
        device: torch.device,
        log: Callable[[str], None],
    ) -> Samples | None:
        """The samples of a run; None, and a line that says why, if there can be none."""
        if preset.train.objective in FOLDERS:
            log("no samples: this objective makes no sound")
        elif not len(dev.rows_with_video()):
            log("no samples: no clip in the split dev has sound and picture")
        else:
            try:
                codec = load_codec(preset.model.codec, codec_path)
                if not has_codebooks(codec, dev.mixture.codebook_vectors()):
                    raise CodecError("the store holds the tokens of another codec; name it: --codec-path")
                return cls(dev, preset, codec, device)
            except CodecError as error:
                log(f"no samples: {error}")
        return None

    @torch.no_grad()
    def __call__(self, model: VAB) -> Sounds:
        """The sounds that the model makes for the pictures of the clips, as its preset decodes.

        A second stage makes its codebooks for the true coarse ones.
        """
        training = model.training
        stage = Stage(model.eval(), self.preset)
        config, batch = self.preset.model, self.batch
        tokens = torch.zeros_like(batch.tokens)
        known = torch.zeros_like(tokens, dtype=torch.bool)
        if given := config.num_conditioning_codebooks:
            noise = [make_generator(SEED, "fine", name) for name in batch.ids]
            tokens = stage.refine(batch.tokens[:, :given], tokens, known, batch.features, noise)
        else:
            noise = [make_generator(SEED, "sound", name) for name in batch.ids]
            tokens = stage.fill(tokens, known, batch.features, self.preset.decode, noise)
        model.train(training)
        return self._decode(tokens)

    def show(self, loggers: Iterable[Logger], step: int, sounds: Sounds, suffix: str = "") -> None:
        """Give the sounds and their mel spectrograms to the loggers, under the ids of their clips."""
        for logger in loggers:
            for name, waveform in zip(self.batch.ids, sounds, strict=True):
                logger.sound(step, name + suffix, waveform, self.codec.sample_rate)
                logger.image(step, name + suffix, mel_picture(waveform))

    @torch.no_grad()
    def _decode(self, tokens: Tensor) -> Sounds:
        return list(self.codec.decode(tokens).float().cpu().numpy())


def mel_picture(waveform: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The log-mel spectrogram of a waveform [S] at 16 kHz: pixels [H,W,3], a column for every 10 ms."""
    frames = log_mel_frames(waveform, OFFSET)  # [W, 64]
    share = ((frames - np.log(OFFSET)) / RANGE).clip(0, 1)
    pixels = np.rint(255 * share).astype(np.uint8).T[::-1]  # low bands at the bottom
    return np.repeat(np.repeat(pixels, HEIGHT, axis=0)[:, :, None], 3, axis=2)
