"""The report of `vab generate` as one self-contained HTML file: frames, audio, settings, timings."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from itertools import zip_longest
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vab.config import SAMPLE_RATE
from vab.inference.batch import BatchSettings, Result, summary
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.loudness import measure
from vab.media.reader import read_audio
from vab.media.write import FORMATS
from vab.utils.files import atomic
from vab.utils.mel import magnitudes, mel_filters
from vab.utils.provenance import code_version

PAGE = Path(__file__).parents[1] / "assets" / "report.html"
STRIP_FRAMES = 10  # frames of a clip in a row
STRIP_HEIGHT = 108  # pixels
COLUMNS = 800  # of the mel spectrogram and the waveform
WINDOW_SAMPLES = 640
FFT_SAMPLES = 1024
NUM_MEL_BANDS = 96
DYNAMIC_RANGE_DB = 80.0  # below the loudest
RERANKED = "candidates; kept is the one nearest to the picture in the model's own embedding, not the best one"
COLOURS = ((0, 0, 4), (60, 15, 110), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))


def write_report(path: Path, results: Sequence[Result], settings: BatchSettings) -> None:
    """Write ``path`` whole or not at all. ``OSError`` if it cannot be written.

    In place of an input or an output that cannot be read any more stands the error. Bytes of a file name
    that are not UTF-8 become question marks.
    """
    page = Template(PAGE.read_text(encoding="utf-8"))
    moment = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    document = summary(results, settings)
    chosen = document["settings"]
    if (chosen["rerank"] or 1) > 1:
        chosen = chosen | {"rerank": f"{chosen['rerank']} {RERANKED}"}
    counts = [f"{document[status]} {status}" for status in ("done", "skipped", "failed") if document[status]]
    # Cut the page where the inputs go, so that they can be written one by one.
    head, foot = page.substitute(
        made=f"{moment}, vab {escape(code_version()['version'])}",
        counts=", ".join(counts),
        settings=_table(chosen),
        inputs="\0",
    ).split("\0")
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", errors="replace") as file:
        file.write(head)
        for result in results:  # one at a time: many sounds need not fit into memory together
            file.writelines(_input(result))
        file.write(foot)


def _input(result: Result) -> Iterator[str]:
    """The section of one input file, with an article for each of its outputs."""
    name = escape(Path(result.input).name)
    yield f'<section><h2>{name}</h2><p class="path">{escape(result.input)}, {result.status}</p>'
    if result.error:
        yield f'<p class="error">{escape(result.error)}</p>'
    yield from (f'<p class="note">{escape(note)}</p>' for note in result.notes)
    sounds = [path for path in map(Path, result.outputs) if path.suffix.lower() in FORMATS]
    # Frames of the input once, for all of its outputs.
    try:
        strip = _strip(Path(result.input)) if sounds else []
    except (MediaError, OSError) as error:
        strip = []
        yield f'<p class="error">{escape(str(error))}</p>'
    for path, level in zip_longest(sounds, result.levels[: len(sounds)]):
        yield from _player(path, strip, level or {})
    # Details of the timings, folded away.
    if result.timings:
        total = sum(result.timings.values())
        rows = {stage: f"{seconds:.2f} s" for stage, seconds in result.timings.items()}
        yield f"<details><summary>{total:.1f} s to make</summary>{_table(rows)}</details>"
    yield "</section>\n"


def _player(path: Path, strip: Sequence[str], model: Mapping[str, float | None]) -> Iterator[str]:
    """The player of one output; frames, waveform and mel spectrogram share its time axis."""
    yield f'<article><h3>{escape(path.name)}</h3><div class="axis">'
    try:
        waveform = read_audio(path)
        data = path.read_bytes()
    except (MediaError, OSError) as error:
        yield f'</div><p class="error">{escape(str(error))}</p></article>'
        return
    # All stretched to the same width, so that they share the axis and its cursor.
    if strip:
        yield f'<div class="strip">{"".join(strip)}</div>'
    yield f'<svg class="wave" viewBox="0 -1 {COLUMNS} 2" preserveAspectRatio="none" role="img" '
    yield f'aria-label="waveform"><path d="{waveform_path(waveform)}"/></svg>'
    yield f'<img class="mel" alt="mel picture, low tones at the bottom" src="{_png(mel_image(waveform))}">'
    yield '<i class="now" hidden></i></div>'
    yield f'<audio controls preload="metadata" src="{_uri(f"audio/{path.suffix[1:]}", data)}"></audio>'
    level = measure(waveform, SAMPLE_RATE)
    yield f"<p>{len(waveform) / SAMPLE_RATE:.2f} s, {_level(level.loudness, level.true_peak)}"
    if model:
        yield f"; the model's own sound {_level(model['loudness'], model['true_peak'])}"
        yield f", gain {model['gain_db']:+.1f} dB"
    yield "</p></article>"


def _level(loudness: float | None, true_peak: float | None) -> str:
    told = "silent" if true_peak is None else "too short or too quiet to have a loudness"
    return f"{told if loudness is None else f'{loudness:.1f} LUFS'}" + (
        "" if true_peak is None else f", true peak {true_peak:+.1f} dBTP"
    )


def _strip(path: Path) -> list[str]:
    """Evenly spaced frames of a file as <img> elements."""
    images = []
    with MediaFile(path) as file:
        seconds = file.seconds  # 0 for an image
        frames = file.frames(STRIP_FRAMES / seconds, size=STRIP_HEIGHT) if seconds else file.frames(1.0)
        for frame in frames:
            image = Image.fromarray(frame)
            image.thumbnail((2 * STRIP_HEIGHT, STRIP_HEIGHT))
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=80)
            # As data in the page itself: the file must need no other.
            images.append(f'<img alt="" src="{_uri("image/jpeg", stream.getvalue())}">')
    return images[:STRIP_FRAMES]


def waveform_path(waveform: NDArray[np.floating]) -> str:
    """The envelope of [S] as an SVG path: highest and lowest sample of each of up to ``COLUMNS`` parts."""
    parts = np.array_split(waveform, min(COLUMNS, len(waveform)))
    xs = np.linspace(0, COLUMNS, len(parts))
    tops = [f"{x:.0f} {-part.max():.3f}" for x, part in zip(xs, parts, strict=True)]
    bottoms = [f"{x:.0f} {-part.min() + 0.01:.3f}" for x, part in zip(xs, parts, strict=True)]
    # Along the tops to the right, back along the bottoms, closed.
    return f"M{'L'.join([*tops, *bottoms[::-1]])}Z"


def mel_image(waveform: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Mel spectrogram of [S] at 16 kHz as RGB [bands, columns, 3], low tones at the bottom."""
    # 1. Mel magnitudes [columns, bands].
    step = max(160, len(waveform) // COLUMNS)
    padded = np.pad(waveform, (WINDOW_SAMPLES // 2, WINDOW_SAMPLES // 2))
    filters = mel_filters(NUM_MEL_BANDS, FFT_SAMPLES, SAMPLE_RATE, 50.0, 8000.0)
    bands = magnitudes(padded, WINDOW_SAMPLES, step, FFT_SAMPLES) @ filters

    # 2. Decibels below the loudest as 0..1, upside down: [bands, columns].
    decibels = 20 * np.log10(np.maximum(bands, 1e-9))
    brightness = np.clip((decibels - decibels.max()) / DYNAMIC_RANGE_DB + 1, 0, 1).T[::-1]

    # 3. Between the colours of the map.
    stops = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(brightness, stops, [colour[n] for colour in COLOURS]) for n in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _png(pixels: NDArray[np.uint8]) -> str:
    """A data URI of an image [H, W, 3]."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    return _uri("image/png", stream.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _table(rows: Mapping[str, Any]) -> str:
    """An HTML definition list; values other than text are written as JSON."""
    cells = (
        f"<dt>{escape(name.replace('_', ' '))}</dt>"
        f"<dd>{escape(value if isinstance(value, str) else json.dumps(value))}</dd>"
        for name, value in rows.items()
        if value is not None and value != []
    )
    return f"<dl>{''.join(cells)}</dl>"
