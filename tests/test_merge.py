"""Several writers of one store, clips made twice, and stores brought into one."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.cli import vab
from helpers.stores import META, VECTORS, latents
from vab.data.merge import merge
from vab.data.shard import Latents, StoreError, write_shard
from vab.data.store import LatentStore

A, B, C, D = (latents(name, n) for n, name in enumerate("abcd"))


def store(folder: Path, *shards: list[Latents]) -> Path:
    """A store with shards as several writers would leave them, who do not see each other's."""
    LatentStore.create(folder, META, VECTORS)
    for rows in shards:
        write_shard(folder, META, rows)
    return folder


def fingerprint(folder: Path) -> str:
    return LatentStore.open(folder).fingerprint()


def test_a_clip_that_two_writers_made_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once, twice = store(tmp_path / "once", [A, B, C, D]), store(tmp_path / "twice", [A, B, C], [B, D], [D, A])
    found = LatentStore.open(twice)
    assert found.ids == ["a", "b", "c", "d"] and len(found) == 4 and len(found.shards) == 3
    assert found.gather("tokens", [0, 1, 2, 3])[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert found.fingerprint() == fingerprint(once) and not found.check() and not found.repair()
    code, out, _ = vab(capsys, "store", "info", twice, "--json")
    assert code == 0 and json.loads(out)["clips"] == 4


def test_a_writer_may_write_what_another_has_written_meanwhile(tmp_path: Path) -> None:
    folder = store(tmp_path)
    first, second = LatentStore.open(folder), LatentStore.open(folder)
    with first.writing() as first_alone, second.writing():
        first.add([A, B])
        second.add([A, B])  # the same shard
        second.add([C])
        first.add([C, D])  # a clip of another one
        assert not first_alone()
    with first.writing() as alone:
        assert alone() and first.ids == ["a", "b", "c", "d"]
    assert fingerprint(folder) == fingerprint(store(tmp_path / "one", [A, B, C, D]))


@pytest.mark.parametrize(
    "other",
    [
        latents("b", 7),
        replace(B, label="other"),
        replace(B, split="dev"),
        replace(B, real_tokens=1),
        replace(B, features=None),
    ],
    ids=["latents", "label", "split", "length", "absent"],
)
def test_two_contents_of_one_clip_are_named_and_repaired(tmp_path: Path, other: Latents) -> None:
    folder = store(tmp_path / "s", [A, B, C], [other, D])
    first, second = sorted(path.name for path in folder.glob("shard-*"))
    message = (
        f"{folder}/{first} and {folder}/{second} hold different latents of the same clips .b.; "
        f"`vab store repair {folder}` keeps those of the one whose name comes first"
    )
    with pytest.raises(StoreError, match=message):
        LatentStore.open(folder)
    kept = LatentStore(folder, META)[LatentStore(folder, META).ids.index("b")]
    assert list(LatentStore(folder, META).repair()) == [second]
    found = LatentStore.open(folder)
    assert found.ids == ["a", "b", "c", "d"] and not found.check()
    assert np.array_equal(found[1].tokens, kept.tokens) and found[1].label == kept.label
    assert (folder / "damaged" / second).exists() and not (folder / second).exists()
    assert not LatentStore.open(folder).repair()


def test_a_clip_beside_a_torn_shard_is_not_lost(tmp_path: Path) -> None:
    """The shard that comes first is damaged: the other content is the one to keep."""
    folder = store(tmp_path, [A, B, C], [latents("b", 7), D])
    first, second = sorted(folder.glob("shard-*"))
    good = {row.id: row for row in (A, B, C, latents("b", 7), D)}
    content = bytearray(first.read_bytes())
    place = content.index(LatentStore(folder, META)[0].features.tobytes() * 1)  # of the clip "a" or "b"
    content[place] ^= 1
    first.write_bytes(content)
    assert LatentStore(folder, META).repair() == {first.name: folder / "damaged" / first.name}
    found = LatentStore.open(folder)
    assert found.shards == [second.name] and "b" in found.ids and len(good) == 4


def test_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = store(tmp_path / "1", [A, B], [C]), store(tmp_path / "2", [C, B], [D])
    whole = fingerprint(store(tmp_path / "whole", [A, B, C, D]))
    for how in ("linked", "copied"):
        if how == "copied":

            def no_links(*_: object) -> None:
                raise OSError(18, os.strerror(18))

            monkeypatch.setattr("vab.data.merge.os.link", no_links)
        out = tmp_path / how
        code, printed, _ = vab(capsys, "store", "merge", out, one, two, "--json")
        told = json.loads(printed)
        assert (code, told["added"], told["shards"], told["present"]) == (0, 4, 3, 2)
        assert fingerprint(out) == whole and not LatentStore.open(out).check()
        links = {path.stat().st_nlink for path in out.glob("shard-*")}
        assert links == ({2} if how == "linked" else {1})
        # again, also with itself among the sources
        assert merge(out, [two, out, one]).added == 0 and fingerprint(out) == whole
        monkeypatch.undo()


def test_merge_refuses_before_it_writes(tmp_path: Path) -> None:
    one, two = store(tmp_path / "1", [A]), store(tmp_path / "2", [latents("a", 5), B])
    with pytest.raises(StoreError, match=rf"{one}.*and {two}.*hold different latents.*\(a\); merge only one"):
        merge(tmp_path / "out", [one, two])
    assert not list((tmp_path / "out").glob("shard-*"))
    LatentStore.create(tmp_path / "3", replace(META, fps=5.0, precision="bfloat16"), VECTORS)
    message = r"fps is 10.0, now 5.0; precision is 'float32', now 'bfloat16'"
    with pytest.raises(StoreError, match=message):
        merge(tmp_path / "out", [one, tmp_path / "3"])
    LatentStore.create(tmp_path / "4", META, VECTORS + 1)
    with pytest.raises(StoreError, match="the codec's vectors are other ones"):
        merge(tmp_path / "out", [one, tmp_path / "4"])
    shard = next(two.glob("shard-*"))
    content = bytearray(shard.read_bytes())
    content[content.index(B.tokens.tobytes())] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match=f"{shard} is damaged"):
        merge(tmp_path / "new", [two])
    assert not list((tmp_path / "new").glob("shard-*"))


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_killed_merge_leaves_a_store_and_goes_on(
    tmp_path: Path, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [store(tmp_path / row.id, [row]) for row in (A, B, C)]
    link, links = os.link, 0

    class Killed(BaseException):
        pass

    def dies(*names: str) -> None:
        nonlocal links
        links += 1
        if links == killed_at:
            raise Killed
        link(*names)

    LatentStore.create(tmp_path / "out", META, VECTORS)
    monkeypatch.setattr("vab.data.merge.os.link", dies)
    with pytest.raises(Killed):
        merge(tmp_path / "out", stores)
    monkeypatch.undo()
    assert len(LatentStore.open(tmp_path / "out")) == killed_at - 1
    assert merge(tmp_path / "out", stores).added == 4 - killed_at
    assert LatentStore.open(tmp_path / "out").ids == ["a", "b", "c"]


def test_numbered_shards_are_merged_under_names_of_their_own(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden" / "version_0.1.0" / "store"
    numbered = [path.name for path in golden.glob("shard-0000*")]
    assert numbered
    shutil.copytree(golden, tmp_path / "old")
    added = merge(tmp_path / "out", [tmp_path / "old", golden]).added
    found, old = LatentStore.open(tmp_path / "out"), LatentStore.open(golden)
    assert added == len(old) and found.ids == old.ids and not set(numbered) & set(found.shards)
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(found, old, strict=True))


def test_precision_is_a_setting_that_float32_does_not_write(tmp_path: Path) -> None:
    folder = store(tmp_path / "float32", [A])
    assert "precision" not in json.loads((folder / "store.json").read_text())
    assert "precision" not in META.hashed() and LatentStore.open(folder).meta.precision == "float32"
    other = replace(META, precision="bfloat16")
    LatentStore.create(tmp_path / "other", other, VECTORS).add([A])
    assert LatentStore.open(tmp_path / "other").meta.precision == "bfloat16"
    assert fingerprint(tmp_path / "other") != fingerprint(folder)
    with pytest.raises(StoreError, match="precision is 'float32', now 'bfloat16'"):
        LatentStore.create(folder, other, VECTORS)
