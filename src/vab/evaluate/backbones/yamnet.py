"""YAMNet, AudioSet's small tagger, from a TFLite file whose input is one log-mel patch [96, 64].

The file has 4 MB and the Apache-2.0 licence, so it serves where nothing larger can be had.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vab.errors import first_line
from vab.evaluate.metrics.statistics import EvaluationError
from vab.utils.mel import RATE, log_mel_frames, patches

LENGTH, STEP = 96, 48  # frames of a patch and between patches: 0.96 s, 0.48 s
MIN_SECONDS = 0.975 + 0.48  # shorter waveforms are repeated
CLASSES = 521
MIN_SCORE = 1e-6  # so that its logit is finite


class Yamnet:
    """AudioSet's classes of a waveform."""

    def __init__(self, path: str | Path) -> None:
        """Raises ``EvaluationError`` without ai-edge-litert (``vab[eval]``), or for another kind of file."""
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            reason = f"YAMNet runs on ai-edge-litert ({error})"
            raise EvaluationError(f"{reason}: pip install 'vab[eval]'") from None
        try:
            self.interpreter: Any = Interpreter(model_path=str(path), num_threads=1)
            self.interpreter.allocate_tensors()
            self.input = self.interpreter.get_input_details()[0]
            self.output = self.interpreter.get_output_details()[0]
        except (ValueError, RuntimeError) as error:
            raise EvaluationError(f"{path}: no TFLite model ({first_line(error)})") from None
        if np.prod(self.input["shape"]) != LENGTH * 64 or np.prod(self.output["shape"]) != CLASSES:
            raise EvaluationError(f"{path}: takes no log-mel patch [96, 64], or gives no 521 scores")

    def scores(self, waveform: NDArray[np.floating]) -> NDArray[np.float32]:
        """Waveform [S] at 16 kHz -> scores [patches, 521] in 0..1, one for every 0.48 s."""
        # [S] -> [T, 64] -> one patch after another: the file takes one at a time
        frames = log_mel_frames(repeated(waveform, MIN_SECONDS), 0.001)
        scores = []
        for patch in patches(frames, LENGTH, STEP):
            self.interpreter.set_tensor(self.input["index"], patch.reshape(self.input["shape"]))
            self.interpreter.invoke()
            # a copy: the interpreter writes the next result into the same memory
            scores.append(self.interpreter.get_tensor(self.output["index"]).reshape(-1).copy())
        return np.stack(scores)


def repeated(waveform: NDArray[np.floating], seconds: float) -> NDArray[np.floating]:
    """The waveform [S] at 16 kHz, repeated until it lasts ``seconds``."""
    samples = int(np.ceil(seconds * RATE))
    return waveform if len(waveform) >= samples else np.resize(waveform, samples)


class YamnetBackbone:
    """Waveform [S] at 16 kHz -> mean over time of the log scores [521], logits of the mean score [521]."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.network = Yamnet(weights)

    def __call__(self, waveform: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        scores = self.network.scores(waveform).clip(MIN_SCORE, 1 - MIN_SCORE)
        # the mean score of a class over time, as a logit
        mean = scores.mean(0)
        logits = np.log(mean) - np.log1p(-mean)
        return torch.from_numpy(np.log(scores).mean(0)), torch.from_numpy(logits)
