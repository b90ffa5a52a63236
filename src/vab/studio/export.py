"""What leaves a project: the film with its mix, the mix, the layers one by one, and the marks.

Files are written whole or not at all into the project's ``exports``, and take the place of the last ones of
their kind. Without a loudness, what is exported is what is heard, to the step of 24 bits.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vab.errors import SettingError
from vab.inference.finish import TARGET_MISSED, Finish
from vab.media.file import MediaFile
from vab.media.loudness import MAX_GAIN, MAX_LIMITING, to_loudness
from vab.media.muxing.formats import CONTAINERS, suffix_for
from vab.media.muxing.mux import write_film
from vab.media.muxing.tags import COMMENT, pack
from vab.media.muxing.tracks import EncodedPicture, NewSound
from vab.media.write import write_audio
from vab.studio.mix import (
    BITS,
    CHANNELS,
    RATE,
    Layer,
    heard,
    mix_length,
    samples,
    summed,
    tracks,
)
from vab.studio.uploads import Clip
from vab.utils.files import atomic, leads_elsewhere, read_json, temporary_folder, write_json, write_whole
from vab.utils.progress import StageProgress
from vab.utils.provenance import version

EXPORTS = "exports"  # the folder
FORMATS: dict[str, tuple[str, ...]] = {  # of each kind; the first is the one that is meant by none
    "film": ("auto", *(suffix[1:] for suffix in CONTAINERS)),
    "mix": ("wav", "flac"),
    "stems": ("wav", "flac"),
    "markers": ("edl", "csv"),
}
STILL_FPS = 25  # of the film of a photo
STILL_PIXELS = 1920  # of its longer side, at most
MAX_BASE = 80  # characters of what all names of an export begin with
MAX_LABEL = 40  # characters of a layer's name in that of its file
_KINDS = ".kinds.json"  # which of the files are of which kind
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows' own
_TIMELINE_RATES = [Fraction(n) for n in (24, 25, 30, 48, 50, 60, 100, 120)]
_TIMELINE_RATES += [Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120)]
_RATE_TOLERANCE = 0.0025  # of itself, by which a clip's mean rate may differ from that of its timeline
_USUAL_RATE = Fraction(30)  # of the timeline of a clip whose frames come at no fixed rate
_START = "01:00:00:00"  # of a timeline, where editors begin theirs


@dataclass(frozen=True)
class Exported:
    """The files of an export, and what is worth saying of them."""

    files: list[Path]
    notes: list[str]


def export(
    folder: Path,
    document: Mapping[str, Any],
    what: str,
    format: str | None = None,
    channels: int = 2,
    loudness: float | None = None,
    name: str | None = None,
    progress: StageProgress | None = None,
    past_end: Literal["freeze", "cut"] = "freeze",
) -> Exported:
    """Export the current arrangement of a project: its film, mix, stems or markers.

    ``format``: one of ``FORMATS``; a film of "auto" has the container of the clip, or one that holds its
    picture as it is.
    ``channels``: 1 or 2. ``loudness``: LUFS that film or mix are brought to, with peaks of -1 dBTP at most;
    None leaves their level. ``name``: what the files' names begin with, by default the clip's. ``past_end``:
    what is heard after the clip's end stays, over the last frame, or is cut off.
    ``SettingError`` for values that make no sense, if nothing is heard, and if ``exports`` is a link;
    ``MediaError`` for a file that cannot be read or written.
    """
    if what not in FORMATS:
        raise SettingError(f"An export is one of {', '.join(FORMATS)}, not {what}.")
    format = format or FORMATS[what][0]
    if format not in FORMATS[what]:
        raise SettingError(f"The format is one of {', '.join(FORMATS[what])}, not {format}.")
    if channels not in (1, 2):
        raise SettingError(f"There are 1 or 2 channels, not {channels}.")
    if loudness is not None and what in ("stems", "markers"):
        raise SettingError("A loudness is for the film and the mix: stems add up to what is heard.")
    Finish(loudness=loudness)  # says which values there are
    if past_end not in ("freeze", "cut"):
        raise SettingError(f"What is past the end may freeze or be cut, not {past_end}.")

    clip = Clip.of(folder, document["clip"])
    arrangement = document["history"][document["at"]]["arrangement"]
    base = safe_name(name or Path(clip.name).stem or document["name"], MAX_BASE)
    exports = folder / EXPORTS
    if leads_elsewhere(exports):
        raise SettingError(
            f"The folder {EXPORTS} of this project is a link to another place, where nothing is written: "
            "delete the link, or put a folder in its place."
        )
    exports.mkdir(exist_ok=True)
    with temporary_folder(exports / what) as new:
        if what == "markers":
            files = [new / f"{base}_markers.{format}"]
            write_whole(files[0], _MARKER_LISTS[format](base, clip, arrangement["marks"]).encode())
            notes: list[str] = []
        else:
            _tell(progress, "mixing", 0)
            sounds = _heard(folder, document, arrangement["layers"], clip, channels, past_end)
            beyond = _beyond(clip, sounds, what)
            _tell(progress, "writing", 0)
            if what == "stems":
                files, notes = _write_stems(new, base, sounds, format, progress)
                notes = [*beyond, *notes]
            else:
                waveform, notes = _levelled(sounds.mix(), loudness)
                notes = [*beyond, *notes]
                if what == "mix":
                    files = [new / f"{base}_mix.{format}"]
                    write_audio(files[0], waveform, RATE, BITS, sounds.tags())
                else:
                    written, said = _write_film(new / f"{base}_vab", clip, format, waveform, sounds, progress)
                    files, notes = [written], [*notes, *said]
        _tell(progress, "writing", 1)  # the last moment to cancel
        kind = f"{what} {format}" if what == "markers" else what
        return Exported(_take_over(exports, kind, files), notes)


def exported(folder: Path) -> list[Path]:
    """The files that were exported of a project, by name."""
    if leads_elsewhere(folder / EXPORTS):
        return []
    with suppress(FileNotFoundError):
        return sorted(path for path in (folder / EXPORTS).iterdir() if not path.name.startswith("."))
    return []


def _tell(progress: StageProgress | None, stage: str, done: int, total: int = 1) -> None:
    if progress is not None:
        progress(stage, done, total)


def _take_over(exports: Path, kind: str, files: Sequence[Path]) -> list[Path]:
    """Move new files in place of the last ones of their kind."""
    # 1. From now on the new ones are known to be of this kind, whatever happens next.
    kinds = _kinds(exports)
    names = [path.name for path in files]
    new = {name.casefold() for name in names}  # where a and A are one file, it is the new one
    former = [name for name in kinds.get(kind, []) if name.casefold() not in new]
    others = {other: [n for n in found if n not in names] for other, found in kinds.items()}
    write_json(exports / _KINDS, others | {kind: [*former, *names]})

    # 2. In with the new, out with the old.
    placed = []
    for path in files:
        placed.append(exports / path.name)
        os.replace(path, placed[-1])
    for name in former:
        (exports / name).unlink(missing_ok=True)
    write_json(exports / _KINDS, others | {kind: names})
    return placed


def _kinds(exports: Path) -> dict[str, list[str]]:
    """The names of what was exported, by kind. The project may be a stranger's: names lead nowhere else."""
    kinds: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        kinds = read_json(exports / _KINDS)
    return {
        kind: [name for name in names if isinstance(name, str) and _is_plain(name)]
        for kind, names in kinds.items()
        if isinstance(names, list)
    }


def _is_plain(name: str) -> bool:
    """True for the name of a file in the folder itself, on every system."""
    return not name.startswith(".") and not set("/\\:\0") & set(name) and bool(name)


# ---- names


def safe_name(text: str, longest: int) -> str:
    """A text as part of the name of a file that every system takes: ``longest`` characters at most."""
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    text = "".join(c if c.isprintable() and c not in '<>:"/\\|?*' else "_" for c in text)
    text = text[:longest].strip(" .") or "clip"
    while len(text.encode()) > 2 * longest:  # a disk counts bytes
        text = text[:-1].strip(" .")
    return f"_{text}" if _RESERVED.fullmatch(text) else text


# ---- sounds


@dataclass(frozen=True)
class _Heard:
    """The layers that are heard, as they are exported: [C,S] at 48 kHz, all of one length."""

    folder: Path  # of the project
    layers: list[Layer]
    numbers: list[int]  # of each in the arrangement, from 1
    length: int  # S
    channels: int  # C
    made_with: list[Mapping[str, Any]]  # of each; empty if no model made it

    def mix(self) -> NDArray[np.float32]:
        """All of them."""
        return self._in_channels(summed(tracks(self.folder, self.layers), self.length))

    def stem(self, number: int) -> NDArray[np.float32]:
        """One alone, counted from 0."""
        return self._in_channels(summed(tracks(self.folder, self.layers[number : number + 1]), self.length))

    def tags(self, number: int | None = None) -> dict[str, str]:
        """The tags of a file of all of them, or of one; none if nothing in it is made by a model.

        One line, as `vab generate` writes it, that names model, seed and settings of each take.
        """
        takes = [made for made in self.made_with[number : None if number is None else number + 1] if made]
        takes = [made for n, made in enumerate(takes) if made not in takes[:n]]
        if not takes:
            return {}
        num_layers = len(self.layers) if number is None else 1
        said = {"generated": True, "version": version(), "studio": "export", "layers": num_layers}
        return {COMMENT: pack({**said, "takes": takes})}

    def _in_channels(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        return sound if self.channels == CHANNELS else sound.mean(0, keepdims=True)


def _heard(
    folder: Path,
    document: Mapping[str, Any],
    layers: Sequence[Layer],
    clip: Clip,
    channels: int,
    past_end: str,
) -> _Heard:
    """What is heard of the layers of a project; ``SettingError`` if that is nothing."""
    found = heard(layers)
    if not found:
        raise SettingError("Nothing is heard: there is no layer, or all are muted.")
    numbers = [next(n for n, one in enumerate(layers, 1) if one is layer) for layer in found]
    length = samples(clip.seconds) if past_end == "cut" else mix_length(found, clip.seconds)
    made_with = [document["sounds"][layer["sound"]].get("made_with") or {} for layer in found]
    return _Heard(folder, found, numbers, length, channels, made_with)


def _beyond(clip: Clip, sounds: _Heard, what: str) -> list[str]:
    """A note on what is heard after the end of a clip: an editor counts on the clip's own length."""
    end = samples(clip.seconds)
    seconds = (mix_length(sounds.layers, clip.seconds) - end) / RATE
    if seconds < 0.5 / STILL_FPS:
        return []
    if sounds.length == end:
        return [f"{seconds:.2f} s of sound after the clip's end are cut off."]
    if what == "film":
        return [f"The film is {seconds:.2f} s longer than the clip: its last frame stands still there."]
    return [f"It is {seconds:.2f} s longer than the clip."]


def _levelled(sound: NDArray[np.float32], loudness: float | None) -> tuple[NDArray[np.float32], list[str]]:
    """The mix [C,S] at a loudness, if there is one to be reached, and what is worth saying of its level."""
    if loudness is None:
        return sound, _cut_off(sound, "The mix")
    levelled = to_loudness(sound, RATE, loudness)
    reached = levelled.level.loudness
    if reached is None:
        return levelled.waveform, ["The mix is silent, or too short to measure: its loudness is as it was."]
    if abs(reached - loudness) <= TARGET_MISSED:
        return levelled.waveform, []
    limit = (
        f"it gets at most {MAX_GAIN:g} dB of gain, and its peaks are lowered by at most {MAX_LIMITING:g} dB"
    )
    return levelled.waveform, [f"The mix reaches {reached:.1f} LUFS, not {loudness:g}: {limit}."]


def _cut_off(sound: NDArray[np.float32], what: str) -> list[str]:
    """A note on samples that are louder than a file can hold."""
    peak = float(np.abs(sound).max(initial=0.0))
    if peak <= 1.0:
        return []
    above = f"{what} peaks {20 * np.log10(peak):.1f} dB above full scale, where a file cuts it off"
    return [f"{above}: lower its layers, or choose a loudness."]


def _write_stems(
    folder: Path, base: str, sounds: _Heard, format: str, progress: StageProgress | None
) -> tuple[list[Path], list[str]]:
    """Each heard layer as a file of the length of the mix, numbered as in the arrangement."""
    files, notes = [], []
    for n, (number, layer) in enumerate(zip(sounds.numbers, sounds.layers, strict=True)):
        _tell(progress, "writing", n, len(sounds.layers))
        label = safe_name(str(layer.get("name") or "layer"), MAX_LABEL)
        files.append(folder / f"{base}_{number:02d} {label}.{format}")
        waveform = sounds.stem(n)
        write_audio(files[-1], waveform, RATE, BITS, sounds.tags(n))
        notes += _cut_off(waveform, label)
    return files, notes


class _Picture(MediaFile):
    """The file of a clip, which tells how far its frames are encoded, where they cannot be copied."""

    def __init__(self, path: Path, seconds: float, progress: StageProgress | None) -> None:
        super().__init__(path)
        self._until = seconds
        self._progress = progress

    def pictures(self, size: int | None = None, apart: float = 0.0) -> Iterator[tuple[float, np.ndarray]]:
        """As :meth:`MediaFile.pictures`; of a photo as many as an editor expects of a film."""
        timed: Iterator[tuple[float, np.ndarray]]
        if self.is_image:
            width, height = self.nominal_size
            short = max(1, STILL_PIXELS * min(width, height) // max(width, height))
            pixels = next(self.frames(1.0, size=short))
            timed = ((n / STILL_FPS, pixels) for n in range(max(1, round(self._until * STILL_FPS))))
        else:
            timed = super().pictures(size, apart)
        for time, pixels in timed:
            _tell(self._progress, "writing", min(99, int(100 * time / self._until)), 100)
            yield time, pixels


def _write_film(
    path: Path,
    clip: Clip,
    format: str,
    waveform: NDArray[np.float32],
    sounds: _Heard,
    progress: StageProgress | None,
) -> tuple[Path, list[str]]:
    """The film of the clip with a sound [C,S]; ``path`` gets the ending of its container."""
    seconds = sounds.length / RATE
    # PCM is cut to 24 bits as it is encoded: it is the mix as a file of its own only if it is rounded before.
    waveform = np.rint(waveform * np.float32(2 ** (BITS - 1))) / np.float32(2 ** (BITS - 1))
    with _Picture(clip.source, seconds, progress) as file:
        path = path.with_name(path.name + _suffix(clip, file.codec, format))
        container = CONTAINERS[path.suffix]
        if file.is_image:
            rate = Fraction(STILL_FPS)
            picture = EncodedPicture(file.pictures(), None, 1 / rate, rate, seconds, STILL_PIXELS)
            sound = NewSound(waveform.clip(-1, 1), RATE)
            with atomic(path) as temporary:
                write_film(temporary, container, picture, sound, tags=sounds.tags())
            notes = [f"The photo became a film of {picture.size[0]} x {picture.size[1]} pixels."]
        else:
            said = file.mux(waveform, RATE, path, tags=sounds.tags(), seconds=seconds)
            notes = [f"{note[:1].upper()}{note[1:]}." for note in said]
    kind = {"aac": "AAC", "libopus": "Opus", "pcm_s24le": "PCM of 24 bits"}[container.sound]
    voices = "stereo" if sounds.channels == CHANNELS else "mono"
    return path, [*notes, f"Its sound is {kind} at 48 kHz, {voices}."]


def _suffix(clip: Clip, codec: str, format: str) -> str:
    """The ending of a film: that of the clip, if players open its picture there, else one for the picture."""
    own = CONTAINERS.get(clip.source.suffix)
    opened = any(codec in container.copies for container in CONTAINERS.values())
    if format == "auto" and opened and own is not None and (not own.copies or codec in own.copies):
        return clip.source.suffix
    return suffix_for(codec, format)


# ---- marks


def timeline_rate(clip: Clip) -> Fraction:
    """Frames a second of the timeline that an editor makes for a clip: the standard rate next to its own.

    Of a photo and of a clip whose frames come at no fixed rate they are assumed.
    """
    if clip.kind == "image":
        return Fraction(STILL_FPS)
    nearest = min(_TIMELINE_RATES, key=lambda rate: abs(rate - Fraction(clip.fps)))
    return nearest if abs(nearest - Fraction(clip.fps)) <= _RATE_TOLERANCE * nearest else _USUAL_RATE


def timecode(frame: int, rate: Fraction, drop: bool = False) -> str:
    """The time code of a frame, counted from 00:00:00:00; ``drop``: by drop-frame, of 29.97 and 59.94."""
    whole = round(rate)
    if drop:
        # Of each minute but every tenth two numbers (of 59.94: four) are left out.
        skip = round(rate * 2 / 30)
        tens, rest = divmod(frame, 600 * whole - 9 * skip)
        frame += 9 * skip * tens + skip * max(0, (rest - skip) // (60 * whole - skip))
    seconds, frames = divmod(frame, whole)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours % 24:02d}:{minutes:02d}:{seconds:02d}{';' if drop else ':'}{frames:02d}"


def frame_number(code: str, rate: Fraction, drop: bool = False) -> int:
    """The frame that has a time code: the inverse of :func:`timecode`."""
    hours, minutes, seconds, frames = map(int, re.split("[:;.]", code))
    whole = round(rate)
    number = ((hours * 60 + minutes) * 60 + seconds) * whole + frames
    if drop:
        passed = hours * 60 + minutes
        number -= round(rate * 2 / 30) * (passed - passed // 10)
    return number


def _marked(clip: Clip, marks: Sequence[Mapping[str, Any]]) -> tuple[Fraction, bool, dict[int, list[Any]]]:
    """The timeline's rate, whether its code is drop-frame, and the marks at each of its frames, in order."""
    rate = timeline_rate(clip)
    start = clip.timecode or _START
    drop = start[8] != ":" and rate.denominator > 1 and round(rate) % 30 == 0
    first = frame_number(start, rate, drop)
    found: dict[int, list[Any]] = {}
    for mark in sorted(marks, key=lambda mark: mark["time"]):
        # The frame that is on screen, as the page counts; 1.033 s of 30 a second, typed, are frame 31.
        found.setdefault(first + math.floor(mark["time"] * rate + 0.1), []).append(mark)
    return rate, drop, found


def _label(marks: Sequence[Mapping[str, Any]]) -> str:
    """The labels of marks in one line."""
    return " / ".join(" ".join(str(mark.get("label") or "mark").split()) for mark in marks)


def _edl(title: str, clip: Clip, marks: Sequence[Mapping[str, Any]]) -> str:
    """The marks as an edit decision list (CMX 3600) of one event each, a frame long.

    DaVinci Resolve reads the line ``|C: |M: |D:`` as a marker of its timeline, Avid and others ``* LOC:``.
    Marks at one frame become one, of which Resolve would show the first only.
    """
    rate, drop, found = _marked(clip, marks)
    lines = [f"TITLE: {title}", f"FCM: {'' if drop else 'NON-'}DROP FRAME"]
    for n, (frame, several) in enumerate(found.items(), 1):
        begin, end = timecode(frame, rate, drop), timecode(frame + 1, rate, drop)
        label = _label(several).replace("|", "/")
        lines += ["", f"{n:03d}  AX       V     C        {begin} {end} {begin} {end}"]
        lines += [f" |C:ResolveColorBlue |M:{label} |D:1", f"* LOC: {begin} BLUE    {label}"]
    return "\r\n".join([*lines, ""])


def _csv(_title: str, clip: Clip, marks: Sequence[Mapping[str, Any]]) -> str:
    """The marks as a table: label, seconds from the start of the clip, time code."""
    rate, drop, found = _marked(clip, marks)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["label", "seconds", "timecode"])
    for frame, several in found.items():
        for mark in several:
            table.writerow([_label([mark]), f"{mark['time']:.3f}", timecode(frame, rate, drop)])
    return text.getvalue()


_MARKER_LISTS = {"edl": _edl, "csv": _csv}
