from __future__ import annotations

import csv
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.stores import META, VECTORS, latents
from vab.cli import main
from vab.data.manifest import COLUMNS, Clip, ManifestError, read_manifest, write_manifest
from vab.data.shard import Latents, StoreError
from vab.data.store import LatentStore
from vab.utils.locks import LockedError
from vab.utils.provenance import sha256

HEADER = ",".join(COLUMNS) + "\n"


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
def test_what_goes_in_comes_out(rows: list[Latents], size: int, verify: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = LatentStore.create(Path(folder) / "store", META, VECTORS)
        for start in range(0, len(rows), size):
            store.add(rows[start : start + size])
        for found in (store, LatentStore.open(store.directory)):
            if verify:
                found.verify()
            assert len(found) == len(rows)
            by_id = sorted(rows, key=lambda row: row.id)
            assert found.ids == [row.id for row in by_id]
            assert all(equal(found[n], row) for n, row in enumerate(by_id))
            order = list(range(len(rows)))[::-1]
            zeros = np.zeros(META.token_shape, np.uint16)
            wanted = [zeros if by_id[n].tokens is None else by_id[n].tokens for n in order]
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
    assert all(equal(row, latents(row.id, int(row.id))) for row in again) and len(again) == 300


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
    halves = [tmp_path / ".shard-000001.arrow.tmp", tmp_path / ".shard-0123456789abcdef.tmp.arrow"]
    for half in halves:
        half.write_bytes((tmp_path / store.shards[0]).read_bytes()[:200])
    again = LatentStore.open(tmp_path)
    assert again.ids == ["a"]
    with again.writing():
        assert not any(half.exists() for half in halves)
        # writers do not mind each other, but nobody may repair it meanwhile
        with LatentStore.open(tmp_path).writing() as alone:
            assert not alone()
        with pytest.raises(LockedError, match="another process writes to this store"):
            again.repair()
    with LatentStore.open(tmp_path).writing():
        pass


def test_a_writer_sees_what_the_one_before_wrote(tmp_path: Path) -> None:
    first, second = (LatentStore.create(tmp_path, META, VECTORS) for _ in range(2))
    with first.writing():
        first.add([latents("a")])
    with second.writing():
        assert second.ids == ["a"]
        second.add([latents("b")])
    assert LatentStore.open(tmp_path).ids == ["a", "b"]


def test_a_folder_that_holds_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no store"):
        LatentStore.open(tmp_path)
    (tmp_path / "store.json").write_text('{"codec": "tiny"}')
    with pytest.raises(StoreError, match="another version"):
        LatentStore.open(tmp_path)
    (tmp_path / "store.json").write_text('{"codec": "ti')
    with pytest.raises(StoreError, match=r"store\.json is damaged"):
        LatentStore.open(tmp_path)


def write_numbered(folder: Path, rows: list[Latents]) -> str:
    """One more shard as version 0.1 wrote them; returns its hash."""
    tokens = np.stack([np.zeros(META.token_shape, np.uint16) if r.tokens is None else r.tokens for r in rows])
    features = [np.zeros(META.feature_shape, np.float16) if r.features is None else r.features for r in rows]
    texts = [[row.id for row in rows], [row.label for row in rows], [row.split for row in rows]]
    real = [
        [META.token_shape[1] if row.real_tokens is None else row.real_tokens for row in rows],
        [META.feature_shape[0] if row.real_features is None else row.real_features for row in rows],
    ]
    arrays = [pa.array(text, pa.string()) for text in texts]
    flat = [tokens.reshape(-1), np.stack(features).reshape(-1)]
    for name, values in zip(("tokens", "features"), flat, strict=True):
        mask = pa.array([getattr(row, name) is None for row in rows])
        arrays.append(
            pa.FixedSizeListArray.from_arrays(pa.array(values), len(values) // len(rows), mask=mask)
        )
    arrays += [pa.array(counts, pa.int32()) for counts in real]
    content = sha256(json.dumps([texts, real]), *(values.data for values in flat))
    names = ["id", "label", "split", "tokens", "features", "real_tokens", "real_features"]
    batch = pa.record_batch(arrays, names=names).replace_schema_metadata({"sha256": content})
    path = folder / f"shard-{len(list(folder.glob('shard-*'))):06d}.arrow"
    with path.open("wb") as stream, pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)
    return content


MIXED = [
    latents("b", 3),
    replace(latents("a", 5), label="dog;cat", real_tokens=2),
    latents("d", 7, tokens=False),
    replace(latents("c", 9, features=False), split="dev", real_features=0),
]


def made(folder: Path, numbered: bool, *shards: list[Latents]) -> Path:
    store = LatentStore.create(folder, META, VECTORS)
    for rows in shards:
        write_numbered(folder, rows) if numbered else store.add(rows)
    return folder


def test_stores_of_version_0_1_open_with_the_same_fingerprint(tmp_path: Path) -> None:
    LatentStore.create(tmp_path, META, VECTORS)
    hashes = [write_numbered(tmp_path, MIXED[:2]), write_numbered(tmp_path, MIXED[2:])]
    store = LatentStore.open(tmp_path)
    assert store.ids == ["a", "b", "c", "d"] and store.shards == ["shard-000000.arrow", "shard-000001.arrow"]
    assert all(equal(row, next(m for m in MIXED if m.id == row.id)) for row in store)
    former, later = {"num_codebooks": "codebooks", "codebook_size": "vocabulary"}, ("precision", "timing")
    made_with = {former.get(name, name): value for name, value in asdict(META).items() if name not in later}
    wanted = sha256(json.dumps(made_with), VECTORS.tobytes(), *sorted(hashes))
    assert store.fingerprint() == wanted
    # once there are new shards too, it is that of the clips alone
    store.add([latents("e")])
    new = made(tmp_path / "new", False, MIXED, [latents("e")])
    assert LatentStore.open(tmp_path).fingerprint() == LatentStore.open(new).fingerprint() != wanted


@pytest.mark.parametrize("numbered", [False, True])
def test_a_damaged_shard_is_named_and_the_rest_opens(
    tmp_path: Path, numbered: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made(tmp_path / "store", numbered, MIXED[:2], MIXED[2:])
    before = LatentStore.open(store).fingerprint()
    shard = store / LatentStore.open(store).shards[1]
    kept = {row.id for row in LatentStore.open(store)} - set(pa_ids(shard))
    whole = shard.read_bytes()
    for attempt in range(2):
        shard.write_bytes(whole[:-700])
        message = rf"{shard.name} is damaged \(.*\); move it aside with `vab store repair {store}`"
        for refused in (LatentStore.open, lambda f: LatentStore.create(f, META, VECTORS)):
            with pytest.raises(StoreError, match=message):
                refused(store)
        rest = LatentStore(store, META)
        assert set(rest.ids) == kept and list(rest.damaged) == [shard.name]
        with pytest.raises(StoreError, match=message):
            rest.fingerprint()
        with pytest.raises(StoreError, match=message), rest.writing():
            pass
        code, document = vab(capsys, "store", "info", store)
        assert (code, document["clips"], document["fingerprint"]) == (1, 2, None)
        code, document = vab(capsys, "store", "check", store)
        assert (code, document["clips"], list(document["damaged"])) == (1, 2, [shard.name])
        code, document = vab(capsys, "store", "repair", store)
        aside = store / "damaged" / (shard.name if not attempt else f"{shard.stem}_2.arrow")
        assert (code, document["clips"], document["moved"]) == (0, 2, {shard.name: str(aside)})
        assert aside.read_bytes() == whole[:-700] and not shard.exists()
        code, document = vab(capsys, "store", "check", store)
        assert (code, document["clips"], document["damaged"]) == (0, 2, {})
        lost = [row for row in MIXED if row.id not in kept]
        again = LatentStore.open(store)
        again.add(lost)
        if not numbered:  # the same clips are the same file
            assert shard.read_bytes() == whole and again.fingerprint() == before
        else:
            (store / again.shards[-1]).unlink()
    assert len(list((store / "damaged").iterdir())) == 2


def pa_ids(shard: Path) -> list[str]:
    with pa.memory_map(str(shard)) as source:
        return pa.ipc.open_file(source).read_all()["id"].to_pylist()


def vab(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict]:
    with pytest.raises(SystemExit) as left:
        main([*map(str, words), "--json"])
    return left.value.code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("numbered", [False, True])
def test_no_flipped_bit_is_read_in_silence(tmp_path: Path, numbered: bool) -> None:
    store = made(tmp_path / "store", numbered, MIXED)
    shard = store / LatentStore.open(store).shards[0]
    whole = shard.read_bytes()
    right = sorted(MIXED, key=lambda row: row.id)

    def read(limit: int) -> None:
        """As training does, from memory or mapped."""
        found = LatentStore.open(store)
        found.verify(limit)
        rows = [found[n] for n in range(len(found))]
        assert all(equal(a, b) for a, b in zip(rows, right, strict=True))
        assert not found.gather("tokens", [3]).any() and not found.gather("features", [2]).any()
        assert found.real("tokens").tolist() == [2, 5, 5, 5]
        assert found.real("features").tolist() == [1, 1, 0, 1]

    def extend() -> None:
        """As extraction does."""
        found = LatentStore.create(store, META, VECTORS)
        with found.writing():
            assert found.ids == [row.id for row in right]

    ways = {"memory": lambda: read(1 << 30), "mapped": lambda: read(0), "extraction": extend}
    rng = np.random.default_rng(0)
    caught = dict.fromkeys([*ways, "check"], 0)
    for place in rng.integers(0, 8 * len(whole), 400).tolist():
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        shard.write_bytes(flipped)
        wrong = LatentStore(store, META).check()
        caught["check"] += bool(wrong)
        for way, attempt in ways.items():
            try:
                attempt()  # reads what was written, or
            except StoreError as error:
                assert f"{shard.name} is damaged" in str(error)
                caught[way] += 1
                assert wrong, "check must see what others see"
            else:
                assert way == "extraction" or not wrong, "what check sees, training must"
    assert caught["memory"] == caught["mapped"] == caught["check"] > 200
    assert caught["extraction"] > 100


def test_a_numbered_shard_must_say_what_is_absent(tmp_path: Path) -> None:
    """One bit that says no clip lacks a stream has Arrow skip the list of those that do."""
    store = made(tmp_path, True, MIXED)
    shard = store / "shard-000000.arrow"
    whole = shard.read_bytes()
    counts = (4).to_bytes(8, "little") + (1).to_bytes(8, "little")  # of 4 rows 1 is null
    places = [n for n in range(len(whole)) if whole.startswith(counts, n)]
    assert len(places) == 2  # tokens and features
    for place in places:
        shard.write_bytes(whole[: place + 8] + b"\0" + whole[place + 9 :])
        with pytest.raises(StoreError, match="does not say which clips have no sound or no picture"):
            LatentStore.open(store)


def test_damaged_vectors_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = made(tmp_path, False, MIXED)
    before = LatentStore.open(store).fingerprint()
    path = store / "codebooks.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"codebooks\.safetensors is damaged \(other numbers"):
        LatentStore.open(store).fingerprint()
    assert vab(capsys, "store", "check", store)[0] == 1
    assert vab(capsys, "store", "repair", store)[0] == 0
    assert vab(capsys, "store", "check", store)[0] == 1  # still to be made again
    assert LatentStore.create(store, META, VECTORS).fingerprint() == before
    assert vab(capsys, "store", "check", store)[0] == 0


def test_shards_of_others_are_refused(tmp_path: Path) -> None:
    store = made(tmp_path / "a", False, [latents("a")])
    other = LatentStore.create(tmp_path / "b", replace(META, codec_fingerprint="other"), VECTORS)
    other.add([latents("b")])
    shutil.copy(other.directory / other.shards[0], store)
    with pytest.raises(StoreError, match="or it is of another store"):
        LatentStore.open(store)
    assert list(LatentStore(store, META).repair()) == other.shards
    twice = made(tmp_path / "c", False, [latents("a"), latents("b")])
    # shards of several writers may lie together
    third = made(tmp_path / "d", False, [latents("c")])
    shutil.copy(third / LatentStore.open(third).shards[0], twice)
    assert LatentStore.open(twice).ids == ["a", "b", "c"]


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from helpers.stores import latents
from vab.data.store import LatentStore
folder, name, number, after = sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] == "after"
store, call, calls = LatentStore.open(folder), getattr(os, name), 0

def dies(*arguments, **options):
    global calls
    calls += 1
    if calls == number and not after:
        os._exit(9)
    call(*arguments, **options)
    if calls == number:
        os._exit(9)

with store.writing():
    setattr(os, name, dies)
    store.add([latents("b", 2)])
"""


@pytest.mark.parametrize(("name", "number"), [("fsync", 1), ("link", 1), ("fsync", 2), ("unlink", 1)])
def test_killed_while_writing(tmp_path: Path, name: str, number: int) -> None:
    script = tmp_path / "run.py"
    script.write_text(KILLED)
    store = made(tmp_path / "store", False, [latents("a")])
    first = LatentStore.open(store).shards
    content = (store / first[0]).read_bytes()
    for when in ("before", "after"):
        words = [sys.executable, script, Path(__file__).parent, store, name, number, when]
        assert subprocess.run([*map(str, words)], timeout=60).returncode == 9
        again = LatentStore.open(store)
        assert again.ids in (["a"], ["a", "b"]) and not again.check()
        with again.writing():
            if again.ids == ["a"]:
                again.add([latents("b", 2)])
        whole = LatentStore.open(store)
        assert whole.ids == ["a", "b"] and equal(whole[1], latents("b", 2))
        assert (store / first[0]).read_bytes() == content
        assert sorted(path.name for path in store.iterdir()) == sorted(
            [".lock", "codebooks.safetensors", "store.json", *whole.shards]
        )
        (store / next(iter(set(whole.shards) - set(first)))).unlink()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    store = LatentStore.create(tmp_path, META, VECTORS)
    other = made(tmp_path / "other", False, [latents("a")])
    taken = tmp_path / LatentStore.open(other).shards[0]
    taken.write_text("somebody's")
    with pytest.raises(StoreError, match="is there already and is not written over"):
        store.add([latents("a")])
    assert taken.read_text() == "somebody's"
    assert not list(tmp_path.glob(".shard*"))


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    def of(name: str, *shards: list[Latents]) -> str:
        return LatentStore.open(made(tmp_path / name, False, *shards)).fingerprint()

    a = of("a", [latents("x", 1)], [latents("y", 2)])
    assert a == of("b", [latents("y", 2)], [latents("x", 1)]) == of("one", [latents("y", 2), latents("x", 1)])
    assert a != of("c", [latents("x", 1)], [latents("y", 3)])
    assert a != of("d", [latents("x", 1)], [latents("z", 2)])
    assert a != of("e", [latents("x", 1)], [replace(latents("y", 2), label="other")])
    assert a != of("f", [latents("x", 1)], [replace(latents("y", 2), real_tokens=1)])


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
