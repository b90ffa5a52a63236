"""Extraction on a Ray cluster ends in the latents of every other way, whatever is killed meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.extraction import run, small_codec
from vab.cli import main
from vab.codecs.codec import Codec
from vab.data.datasets.synthetic import write_synthetic
from vab.data.extraction.ray import RayError, on_ray
from vab.data.store import LatentStore
from vab.vision import VisionEncoder, load_vision

pytestmark = pytest.mark.slow  # a cluster takes a while to start


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two CPUs."""
    ray = pytest.importorskip("ray", reason="no Ray: pip install 'vab[ray]'")
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init("local", num_cpus=2, object_store_memory=100_000_000, **quiet)
    yield on_ray
    ray.shutdown()


@pytest.fixture(scope="module")
def encoders() -> tuple[Codec, VisionEncoder]:
    return small_codec(), load_vision("efficientnet-lite0")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 clips, of which one is not there."""
    path = write_synthetic(tmp_path_factory.mktemp("balls"), clips=5, seconds=2.0)
    header, *rows = path.read_text().splitlines()
    rows = [f"{n}{row}" for n in range(3) for row in rows]
    path.write_text("\n".join([header, *rows[:-1], "gone,none.mp4,,0,,,train"]) + "\n")
    return path


@pytest.fixture(scope="module")
def expected(
    manifest: Path, encoders: tuple[Codec, VisionEncoder], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The store that one process makes."""
    out = tmp_path_factory.mktemp("stores") / "store"
    assert list(run(manifest, out, *encoders).failed) == ["gone"]
    return out


def workers(name: str) -> list[int]:
    """Processes of this one's cluster that do work of that name."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if (entry / "cmdline").read_text().startswith(f"ray::{name}"):
                found.append(int(entry.name))
        except (ValueError, OSError):
            continue

    def is_ours(process: int) -> bool:
        while process > 1:
            if process == os.getpid():
                return True
            process = parents.get(process, 0)
        return False

    return [process for process in found if is_ours(process)]


def same(out: Path, expected: Path) -> bool:
    one, other = LatentStore.open(out), LatentStore.open(expected)
    failures = [(path / "failures.csv").read_text() for path in (out, expected)]
    return one.fingerprint() == other.fingerprint() and failures[0] == failures[1]


def test_workers_that_are_killed(
    cluster: Any, manifest: Path, encoders: tuple[Codec, VisionEncoder], expected: Path, tmp_path: Path
) -> None:
    killed, ended = [], threading.Event()

    def kill() -> None:
        # one process of each kind, while there is work for it
        for name in ("Map(_decode", "MapWorker(MapBatches(_Encode"):
            while not (found := workers(name)) and not ended.wait(0.02):
                pass
            for process in found[:1]:
                os.kill(process, signal.SIGKILL)
                killed.append(name)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        result = run(manifest, tmp_path / "store", *encoders, engine=cluster)
    finally:
        ended.set()
        killer.join()
    assert len(killed) == 2
    assert (result.done, list(result.failed)) == (14, ["gone"])
    assert same(tmp_path / "store", expected)


def test_a_run_that_another_engine_goes_on_with(
    cluster: Any, manifest: Path, encoders: tuple[Codec, VisionEncoder], expected: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    shutil.copytree(expected, out)
    for path in sorted(out.glob("shard-*"))[::2]:  # what a killed run had not come to
        path.unlink()
    there = len(LatentStore.open(out))
    result = run(manifest, out, *encoders, engine=cluster)
    assert (result.present, result.done) == (there, 14 - there)
    assert same(out, expected)


def test_what_is_wrong_is_one_line(
    cluster: Any, manifest: Path, encoders: tuple[Codec, VisionEncoder], tmp_path: Path
) -> None:
    with pytest.raises(RayError, match="the Ray cluster has no GPU"):
        run(manifest, tmp_path / "store", *encoders, engine=cluster, device="cuda")


def test_a_cluster_that_is_not_there_is_one_line(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(
            [
                "extract",
                str(manifest),
                "-o",
                str(tmp_path / "s"),
                "--engine",
                "ray",
                "--address",
                "127.0.0.1:9",
            ]
        )
    said = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert said == ["vab: the Ray cluster at 127.0.0.1:9 does not answer (Connection refused)"]
