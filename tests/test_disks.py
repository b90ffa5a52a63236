"""Places that cannot be written to: one line in every verb that writes much, and nothing half written."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.cli import vab
from helpers.disk import files_of_at_most
from helpers.tiny import write_model
from vab.data.datasets.synthetic import write_synthetic
from vab.data.extraction.run import extract
from vab.data.manifest import read_manifest, write_manifest
from vab.inference.pipeline import VABPipeline

SIZES = "--model.seconds 2 --model.num-codebooks 2 --model.codebook-size 32 --model.codebook-dim 8"
SIZES += " --model.hidden-dim 32 --model.num-layers 2 --model.num-expert-layers 1 --model.num-heads 2"
SIZES += " --train.batch-size 2 --train.save-every 1 --train.log-every 1 --max-steps 2"
CODEC = "--steps 1 --batch-size 2 --code-seconds 20 --codec.codebook-size 32 --codec.dim 8"
VERBS = {
    "pretrain": f"pretrain vab-tiny --store STORE --run OUT {SIZES} --model.no-timing",
    "contrastive": f"finetune contrastive vab-tiny-contrastive --store STORE --run OUT {SIZES}",
    "codec train": f"codec train MANIFEST --run OUT {CODEC}",
    "reconstruct": "codec reconstruct CLIP -o OUT",
    "extract": "extract MANIFEST -o OUT --preset vab-tiny",
    "library": "library add OUT CLIP --model MODEL",
    "generate": "generate CLIP -o OUT --model MODEL",
    "embed": "embed CLIP -o OUT/e.npz --model MODEL",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    manifest = write_synthetic(folder / "clips", 2, 3.0, 0)
    write_manifest(manifest, [replace(clip, split="train") for clip in read_manifest(manifest)])
    pipe = VABPipeline.from_pretrained(write_model(folder / "model"), device="cpu")
    model = pipe.config.model
    extract(manifest, folder / "store", pipe.codec, pipe.vision, seconds=model.seconds, fps=model.fps)
    clip = next(folder.rglob("*.mp4"))
    return {"MODEL": folder / "model", "STORE": folder / "store", "MANIFEST": manifest, "CLIP": clip}


@pytest.mark.parametrize("place", ["full", "under a file", "a file", "too long"])
@pytest.mark.parametrize("verb", VERBS)
def test_what_cannot_be_written_is_one_line(
    verb: str, place: str, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "file", tmp_path / "out"
    file.touch()
    reason = {"full": "File too large", "under a file": "Not a directory", "a file": "is a file"}
    target = {"under a file": file / "out", "a file": file, "too long": tmp_path / ("n" * 300)}.get(
        place, out
    )
    words = [str((inputs | {"OUT": target}).get(word, word)) for word in VERBS[verb].split()]
    words = [word.replace("OUT/", f"{target}/") for word in words]
    if verb == "embed":
        out.mkdir()
        reason = {"full": "File too large"}
    with files_of_at_most(256) if place == "full" else nullcontext():
        code, _, err = vab(capsys, *words)
    line = err.splitlines()[-1]
    assert code == (1 if place == "full" and verb in ("generate", "reconstruct") else 2), err
    assert str(target) in line and reason.get(place, "") in line, err
    assert not [path for path in tmp_path.rglob("*") if ".tmp" in path.name]
