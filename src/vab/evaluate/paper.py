"""The numbers of the paper's tables, and of one system after it: percent, as printed. Nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RetrievalBenchmark = Literal["audioset", "vggsound", "msrvtt"]
ClassificationBenchmark = Literal["audioset-2m", "audioset-20k", "vggsound", "esc50", "spc1"]
Inputs = Literal["av", "v", "a"]
Way = Literal["video to audio", "audio to video"]
Recall = tuple[float, float, float]  # R@1, R@5, R@10
Scores = tuple[float | None, float | None, float | None]  # from V+A, V, A; None: not given

WAYS: tuple[Way, Way] = ("video to audio", "audio to video")
RETRIEVAL_TITLES: dict[RetrievalBenchmark, str] = {
    "audioset": "AudioSet eval subset",
    "vggsound": "VGGSound eval subset",
    "msrvtt": "MSR-VTT (zero-shot)",
}
RETRIEVAL_SIZES: dict[RetrievalBenchmark, int] = {"audioset": 1725, "vggsound": 1545}  # of CAV-MAE's lists
CLASSIFICATION_TITLES: dict[ClassificationBenchmark, str] = {
    "audioset-2m": "AudioSet, trained on AS-2M",
    "audioset-20k": "AudioSet, trained on AS-20K",
    "vggsound": "VGGSound",
    "esc50": "ESC-50",
    "spc1": "SPC-1",
}
MULTI_LABEL: tuple[ClassificationBenchmark, ...] = (
    "audioset-2m",
    "audioset-20k",
)  # mAP; the others: accuracy
AUDIO_ONLY: tuple[ClassificationBenchmark, ...] = ("esc50", "spc1")
FINE_TUNED = (
    "VAB is fine-tuned by contrast on the training sets of AudioSet and VGGSound; CAV-MAE Sync calls its own "
    "numbers zero-shot, lists VAB as an upper bound, and had about 1,520 of VGGSound's 1,545 clips."
)


@dataclass(frozen=True)
class GenerationRow:
    """One system on the test set of VGGSound: 15,546 clips of 10 s."""

    source: str
    system: str
    fad: float  # on VGGish
    kld: float | None = None  # on PaSST; None: not given
    seconds: float | None = None  # of a clip, on one A6000


@dataclass(frozen=True)
class OpinionRow:
    """Mean opinion score of one system: 150 clips of VGGSound's test set, three raters each, from 1 to 5."""

    source: str
    system: str
    mean: float
    deviation: float


@dataclass(frozen=True)
class RetrievalRow:
    """One system one way: R@1, R@5, R@10 in percent on each benchmark it was measured on."""

    source: str
    system: str
    way: Way
    recall: dict[RetrievalBenchmark, Recall]


@dataclass(frozen=True)
class ClassificationRow:
    """One system: percent from V+A, V and A on each benchmark; accuracy, or mAP on AudioSet."""

    source: str
    system: str
    scores: dict[ClassificationBenchmark, Scores]


def _retrieval(
    source: str, way: Way, benchmarks: tuple[RetrievalBenchmark, ...], rows: dict[str, tuple[float, ...]]
) -> tuple[RetrievalRow, ...]:
    """Rows as the paper prints them: three numbers for each benchmark."""
    return tuple(
        RetrievalRow(
            source,
            system,
            way,
            {
                name: (numbers[3 * n], numbers[3 * n + 1], numbers[3 * n + 2])
                for n, name in enumerate(benchmarks)
            },
        )
        for system, numbers in rows.items()
    )


def _classification(
    source: str, benchmarks: tuple[ClassificationBenchmark, ...], rows: dict[str, tuple[float | None, ...]]
) -> tuple[ClassificationRow, ...]:
    """Rows as the paper prints them: V+A, V, A for each benchmark."""
    return tuple(
        ClassificationRow(
            source,
            system,
            {
                name: (numbers[3 * n], numbers[3 * n + 1], numbers[3 * n + 2])
                for n, name in enumerate(benchmarks)
            },
        )
        for system, numbers in rows.items()
    )


RETRIEVAL: tuple[RetrievalRow, ...] = (
    *_retrieval(
        "Table 3",
        "video to audio",
        ("audioset", "vggsound", "msrvtt"),
        {
            "LanguageBind": (6.4, 20.2, 28.3, 10.3, 30.1, 39.7, 1.9, 6.2, 8.8),
            "ImageBind": (22.1, 43.2, 52.6, 21.6, 43.4, 52.9, 7.0, 18.5, 25.2),
            "CAV-MAE": (18.8, 39.5, 50.1, 14.8, 34.2, 44.0, 13.3, 29.0, 40.5),
            "VAB-DAC": (35.5, 61.8, 72.4, 30.8, 59.6, 70.8, 13.8, 30.6, 40.1),
            "VAB-Encodec": (39.5, 65.4, 74.6, 33.5, 63.3, 74.3, 14.2, 31.1, 42.0),
        },
    ),
    *_retrieval(
        "Table 3",
        "audio to video",
        ("audioset", "vggsound", "msrvtt"),
        {
            "LanguageBind": (4.4, 15.0, 22.5, 6.5, 22.7, 33.5, 1.2, 4.4, 6.9),
            "ImageBind": (20.8, 42.6, 51.6, 20.7, 43.2, 53.4, 6.0, 16.9, 23.7),
            "CAV-MAE": (15.1, 34.0, 43.0, 12.8, 30.4, 40.3, 7.6, 19.8, 30.2),
            "VAB-DAC": (37.0, 61.8, 70.8, 33.1, 62.7, 73.8, 12.0, 27.3, 36.2),
            "VAB-Encodec": (37.5, 64.0, 73.7, 34.9, 62.7, 73.1, 9.6, 23.3, 32.9),
        },
    ),
    # published after the paper: the numbers of its page
    *_retrieval(
        "CAV-MAE Sync, its page (CVPR 2025)",
        "video to audio",
        ("audioset", "vggsound"),
        {"CAV-MAE Sync": (35.2, 58.3, 67.6, 27.9, 51.7, 61.8)},
    ),
    *_retrieval(
        "CAV-MAE Sync, its page (CVPR 2025)",
        "audio to video",
        ("audioset", "vggsound"),
        {"CAV-MAE Sync": (27.9, 52.4, 62.2, 23.2, 46.2, 58.1)},
    ),
    *_retrieval(
        "Table 10",
        "video to audio",
        ("vggsound",),
        {
            "Contrastive (29), then Masked Prediction (9)": (27.7, 56.4, 67.5),
            "Masked Prediction (9), then Contrastive (15)": (28.2, 56.7, 68.5),
        },
    ),
    *_retrieval(
        "Table 10",
        "audio to video",
        ("vggsound",),
        {
            "Contrastive (29), then Masked Prediction (9)": (32.5, 60.8, 72.3),
            "Masked Prediction (9), then Contrastive (15)": (30.5, 57.6, 71.2),
        },
    ),
    *_retrieval(
        "Table 14",
        "video to audio",
        ("vggsound",),
        {"VAB-DAC-Test (MAE)": (18.4, 40.1, 52.3), "VAB-DAC-Test": (28.2, 56.7, 68.5)},
    ),
    *_retrieval(
        "Table 14",
        "audio to video",
        ("vggsound",),
        {"VAB-DAC-Test (MAE)": (20.6, 46.6, 57.6), "VAB-DAC-Test": (30.5, 57.6, 71.2)},
    ),
)

CLASSIFICATION: tuple[ClassificationRow, ...] = (
    *_classification(
        "Table 4",
        ("vggsound", "audioset-2m", "audioset-20k"),
        {
            "G-Blend": (None, None, None, 41.8, 18.8, 32.4, 37.8, 22.1, 29.1),
            "Perceiver": (None, None, None, 44.2, 25.8, 38.4, None, None, None),
            "Attn AV": (None, None, None, 44.2, 25.7, 38.4, None, None, None),
            "CAV-MAE": (65.5, 47.0, 59.5, 51.2, 26.2, 46.6, 42.0, 19.8, 37.7),
            "MBT": (64.1, 51.2, 52.3, 49.6, 31.3, 41.5, 43.9, 27.7, 31.3),
            "MAViL": (67.1, 50.9, 60.8, 53.3, 30.3, 48.7, 44.9, 24.8, 41.8),
            "VAB-DAC": (63.9, 55.4, 48.2, 47.0, 33.3, 36.2, 38.9, 28.3, 28.8),
            "VAB-Encodec": (65.2, 55.1, 51.3, 47.7, 33.5, 38.6, 38.7, 29.0, 29.0),
        },
    ),
    *_classification(
        "Table 5",
        ("esc50", "spc1"),
        {
            "AST": (None, None, 88.7, None, None, 95.5),
            "SS-AST": (None, None, 88.8, None, None, 96.0),
            "Aud-MAE": (None, None, 94.1, None, None, 96.9),
            "MAViL": (None, None, 94.4, None, None, 97.4),
            "VAB-DAC": (None, None, 89.2, None, None, 95.1),
            "VAB-Encodec": (None, None, 91.4, None, None, 96.1),
        },
    ),
    *_classification(
        "Table 6",
        ("vggsound", "audioset-20k"),
        {
            "VAB-Encodec Linear Probe": (57.6, 53.4, 48.7, 33.3, 26.9, 28.9),
            "CAV-MAE Linear Probe": (54.2, None, None, 29.8, None, None),
            "VAB-Encodec Fine-tuning": (65.2, 55.1, 51.3, 38.7, 29.0, 29.0),
        },
    ),
    *_classification(
        "Table 9",
        ("vggsound",),
        {
            "VAB-DAC-Test From Scratch": (54.7, 52.8, 38.6),
            "VAB-DAC-Test w.o. experts": (42.5, 48.9, 41.0),
            "VAB-DAC-Test": (62.4, 53.2, 44.5),
        },
    ),
    *_classification(
        "Table 11",
        ("vggsound", "audioset-2m", "audioset-20k"),
        {
            "VAB-DAC-Test w.o. contrastive ft": (56.2, 53.5, 41.0, 41.6, 30.4, 30.1, 24.4, 25.9, 15.9),
            "VAB-DAC-Test w. contrastive ft": (62.4, 53.2, 44.5, 42.6, 30.2, 31.1, 37.7, 27.7, 22.2),
            "VAB-DAC w.o. contrastive ft": (60.4, 55.2, 42.1, 42.4, 31.3, 31.6, 34.6, 28.2, 16.2),
            "VAB-DAC w. contrastive ft": (63.9, 55.4, 48.2, 47.0, 33.3, 36.2, 38.9, 28.3, 28.8),
            "VAB-Encodec w.o. contrastive ft": (62.9, 54.6, 47.4, 46.7, 33.0, 35.7, 36.0, 27.5, 24.0),
            "VAB-Encodec w. contrastive ft": (65.2, 55.1, 51.3, 47.7, 33.5, 38.6, 38.7, 29.0, 29.0),
        },
    ),
    *_classification(
        "Table 13",
        ("vggsound", "audioset-20k", "audioset-2m"),
        {
            "VAB-DAC-Test (MAE)": (55.9, 39.1, 46.2, 31.2, 15.9, 22.4, 39.0, 21.4, 31.2),
            "VAB-DAC-Test": (62.4, 53.2, 44.5, 37.7, 27.7, 22.2, 42.6, 30.2, 31.1),
        },
    ),
)

GENERATION = (
    GenerationRow("Table 1", "SpecVQGAN", 6.63, 3.78, 7.2),
    GenerationRow("Table 1", "IM2WAV", 6.32, 2.54, 289.5),
    GenerationRow("Table 1", "Diff-Foley", 6.40, 3.15, 4.4),
    GenerationRow("Table 1", "FoleyGen", 2.59, 2.89, 6.9),
    GenerationRow("Table 1", "VAB-DAC", 3.24, 2.84, 1.3),
    GenerationRow("Table 1", "VAB-Encodec", 2.69, 2.58, 0.4),
    GenerationRow("Table 15", "real sound through Encodec", 1.86),
    GenerationRow("Table 15", "real sound through DAC", 0.89),
    GenerationRow("Table 15", "real sound through DAC, fine codebooks in 24 steps", 1.32),
    GenerationRow("Table 15", "real sound through DAC, fine codebooks in 36 steps", 1.28),
)

OPINIONS = (
    OpinionRow("Table 2", "SpecVQGAN", 2.48, 1.35),
    OpinionRow("Table 2", "IM2WAV", 2.67, 1.34),
    OpinionRow("Table 2", "Diff-Foley", 2.62, 1.35),
    OpinionRow("Table 2", "FoleyGen", 2.76, 1.35),
    OpinionRow("Table 2", "VAB-Encodec", 2.86, 1.40),
)
