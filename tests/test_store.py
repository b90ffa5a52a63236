from __future__ import annotations

import csv
import resource
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vab.data.manifest import COLUMNS, Clip, ManifestError, read_manifest, write_manifest
from vab.data.store import Latents, LatentStore, StoreError, StoreMeta

META = StoreMeta("tiny", "efficientnet-lite0", 2, 8, 3, vision_dim=4, seconds=0.1, fps=10.0)
VECTORS = np.arange(2 * 8 * 3, dtype=np.float32).reshape(2, 8, 3)
HEADER = ",".join(COLUMNS) + "\n"


def latents(name: str, value: int = 1, tokens: bool = True, features: bool = True) -> Latents:
    return Latents(
        name,
        "label",
        "train",
        np.full(META.token_shape, value, np.uint16) if tokens else None,
        np.full(META.feature_shape, value, np.float16) if features else None,
    )


def equal(a: Latents, b: Latents) -> bool:
    def same(x: np.ndarray | None, y: np.ndarray | None) -> bool:
        if x is None or y is None:
            return x is y
        return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()

    named = (a.id, a.label, a.split) == (b.id, b.label, b.split)
    return named and same(a.tokens, b.tokens) and same(a.features, b.features)


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@st.composite
def any_latents(draw: st.DrawFn) -> Latents:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tokens = rng.integers(0, 2**16, META.token_shape).astype(np.uint16)
    features = rng.normal(size=META.feature_shape).astype(np.float16)
    return Latents(
        draw(text.filter(bool)),
        draw(text),
        draw(text),
        tokens if draw(st.booleans()) else None,
        features if draw(st.booleans()) else None,
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(any_latents(), unique_by=lambda row: row.id, max_size=9), st.integers(1, 4), st.booleans())
def test_what_goes_in_comes_out(rows: list[Latents], size: int, preload: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = LatentStore.create(Path(folder) / "store", META, VECTORS)
        for start in range(0, len(rows), size):
            store.add(rows[start : start + size])
        for found in (store, LatentStore.open(store.directory)):
            if preload:
                found.preload()
            assert len(found) == len(rows)
            assert all(equal(found[n], row) for n, row in enumerate(rows))
            order = list(range(len(rows)))[::-1]
            zeros = np.zeros(META.token_shape, np.uint16)
            wanted = [zeros if rows[n].tokens is None else rows[n].tokens for n in order]
            assert np.array_equal(
                found.gather("tokens", order), np.array(wanted).reshape(-1, *META.token_shape)
            )
        assert np.array_equal(found.codebook_vectors(), VECTORS)
        assert found.fingerprint() == store.fingerprint()


def test_shards_stay_mapped_without_open_files(tmp_path: Path) -> None:
    store = LatentStore.create(tmp_path, META, VECTORS)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limit[1]))
    try:
        for n in range(300):
            store.add([latents(str(n), n)])
        again = LatentStore.open(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert all(equal(again[n], latents(str(n), n)) for n in range(300))


def test_other_settings_are_refused(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, META, VECTORS).add([latents("a")])
    assert len(LatentStore.create(tmp_path, META, VECTORS)) == 1
    with pytest.raises(StoreError, match=r"codec is 'tiny', now 'dac'; fps is 10.0, now 5.0"):
        LatentStore.create(tmp_path, replace(META, codec="dac", fps=5.0), VECTORS)
    with pytest.raises(StoreError, match="codebook vectors"):
        LatentStore.create(tmp_path / "new", META, VECTORS[:1])
    assert not (tmp_path / "new").exists()


def test_bad_rows_are_refused_whole(tmp_path: Path) -> None:
    store = LatentStore.create(tmp_path, META, VECTORS)
    store.add([latents("a")])
    short = replace(latents("c"), tokens=np.zeros((2, 4), np.uint16))
    for rows, message in (
        ([latents("b"), latents("a")], r"already: \['a'\]"),
        ([latents("b"), latents("b")], "already"),
        ([latents("b"), short], r"tokens of c are uint16 \(2, 4\), not uint16 \(2, 5\)"),
        ([replace(latents("b"), features=np.zeros(META.feature_shape))], "float64"),
    ):
        with pytest.raises(StoreError, match=message):
            store.add(rows)
    assert LatentStore.open(tmp_path).ids == store.ids == ["a"]


def test_a_half_written_shard_is_not_seen_and_goes(tmp_path: Path) -> None:
    store = LatentStore.create(tmp_path, META, VECTORS)
    store.add([latents("a")])
    half = tmp_path / ".shard-000001.arrow.tmp"
    half.write_bytes((tmp_path / "shard-000000.arrow").read_bytes()[:200])
    again = LatentStore.open(tmp_path)
    assert again.ids == ["a"]
    with again.writing():
        assert not half.exists()
        with pytest.raises(StoreError, match="another process"), LatentStore.open(tmp_path).writing():
            pass


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no store"):
        LatentStore.open(tmp_path)
    LatentStore.create(tmp_path, META, VECTORS).add([latents("a")])
    shard = tmp_path / "shard-000000.arrow"
    shard.write_bytes(shard.read_bytes()[:300])
    with pytest.raises(StoreError, match=r"shard-000000\.arrow is damaged"):
        LatentStore.open(tmp_path)
    (tmp_path / "store.json").write_text('{"codec": "tiny"}')
    with pytest.raises(StoreError, match="another version"):
        LatentStore.open(tmp_path)


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    def made(name: str, *shards: list[Latents]) -> str:
        store = LatentStore.create(tmp_path / name, META, VECTORS)
        for shard in shards:
            store.add(shard)
        return store.fingerprint()

    a = made("a", [latents("x", 1)], [latents("y", 2)])
    assert a == made("b", [latents("y", 2)], [latents("x", 1)])
    assert a != made("c", [latents("x", 1)], [latents("y", 3)])
    assert a != made("d", [latents("x", 1)], [latents("z", 2)])


def test_manifest_round_trip(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    clips = [
        Clip("x", tmp_path / "s.ogg", None, 0.0, 2.5, "cat", "dev"),
        Clip('a,"b" ä', None, folder / "p.jpg"),
        Clip("x#1", tmp_path / "v.mp4", tmp_path / "v.mp4", 10.0, None, "dog"),
    ]
    write_manifest(folder / "m.csv", clips)
    with (folder / "m.csv").open(newline="") as stream:
        assert [row["audio"] for row in csv.DictReader(stream)] == ["../../s.ogg", "", "../../v.mp4"]
    found = read_manifest(folder / "m.csv")
    assert [
        replace(c, audio=c.audio and c.audio.resolve(), video=c.video and c.video.resolve()) for c in found
    ] == clips


def test_manifest_mistakes_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(
        HEADER
        + "a,a.wav,,0,,cat,train\n"
        + "a,b.wav,,0,,cat,train\n"
        + ",b.wav,,,,,\n"
        + "c,,,0,1,,\n"
        + "d,d.wav,,x,-1,,\n"
        + "e,e.wav,,nan,0,,\n"
        + "f,f.wav\n"
        + "g,g.wav,,,,,,,\n"
    )
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert str(caught.value).splitlines() == [
        f"{path}:",
        "line 3: column id: 'a' stands already in line 2",
        "line 4: column id: is empty",
        "line 5: columns audio, video: both are empty",
        "line 6: column start: 'x' is not a number",
        "line 6: column seconds: '-1' is not a positive time in seconds",
        "line 7: column start: 'nan' is not a time in seconds",
        "line 7: column seconds: '0' is not a positive time in seconds",
        "line 8: fewer fields than the header has",
        "line 9: more fields than the header has",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,audio\n", "line 1: no column video, start, seconds, label, split"),
        (b"", "line 1: no column id"),
        (HEADER.encode(), "no clips"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_manifests_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        read_manifest(path)
    with pytest.raises(ManifestError, match="No such file"):
        read_manifest(tmp_path / "none.csv")
