"""Write sounds for the clips of a store, to be evaluated: a model's, and the true ones (appendix D).

Video comes as the store's features, so that a sweep over decoding needs neither media nor image encoder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vab.codecs.codec import Codec, has_codebooks, load_codec
from vab.config import DecodeConfig, former_fields
from vab.data.store import LatentStore, spread
from vab.errors import first_line
from vab.evaluate.generation.clips import file_name
from vab.evaluate.metrics.statistics import EvaluationError, list_hash
from vab.inference.parts import check_codec, place
from vab.media.reader import write_wav
from vab.models.hub import codec_source
from vab.sampling.stages import Stage, check_fine, load_fine, load_stage
from vab.training.batches import Batch, ClipBatches, make_generator
from vab.utils import Precision
from vab.utils.device import Device, DType, pick_device, pick_precision, products
from vab.utils.files import atomic, read_json
from vab.utils.progress import FileProgress
from vab.utils.provenance import sha256
from vab.utils.shares import ALL, Share

# Clips that are taken from a store together: where a clip is paired with a video of its label, which one
# depends on the clips beside it.
GROUP = 8
MADE = "made.json"  # in a folder of sounds: the record of how they were made


@dataclass(frozen=True)
class Synthesizer:
    """Features -> sound: the stages of a model directory, and its codec."""

    first: Stage
    fine: Stage | None
    codec: Codec
    weights: str  # hash of all of them
    codec_weights: str  # of these alone
    device: torch.device
    # run the second stage alone, on the clips' own coarse tokens; with no steps, these are the result
    true_coarse: bool = False
    batch: int = GROUP  # clips at once, where the device gains by it
    precision: Precision = "float32"  # of the stages; the codec computes in float32

    @classmethod
    def load(
        cls,
        folder: Path,
        codec_path: str | Path | None = None,
        device: Device = "auto",
        fine: Path | None = None,
        dtype: DType = None,
    ) -> Synthesizer:
        """A model directory, with the second stage of another one if ``fine`` names it.

        ``dtype`` is the precision, as for ``VABPipeline.from_pretrained``. Raises ``ModelError``,
        ``CodecError`` or ``SettingError``.
        """
        # 1. The networks.
        where = pick_device(device)
        chosen = pick_precision(dtype, where)
        first = load_stage(folder)
        second = load_fine(folder) if fine is None else load_stage(fine)
        if second is not None:
            check_fine(second.preset.model, first.preset.model)
        # 2. The codec: the model's own, if it has one beside its weights.
        codec = load_codec(first.preset.model.codec, codec_source(folder, codec_path), where)
        for stage in (first, second):
            if stage is not None:
                check_codec(stage.network, codec)
        # 3. One hash of all weights that decide what is made, as they were loaded.
        network: Any = codec
        decoder = _digest(getattr(network, "model", network))
        parts = [_digest(first.network), decoder]
        if second is not None:
            settings = former_fields(second.preset.decode).items()
            settings_text = ", ".join(f"{name}={value!r}" for name, value in settings)
            parts += [_digest(second.network), f"DecodeConfig({settings_text})"]
        # 4. In evaluation mode on the device.
        for stage in (first, second):
            if stage is not None:
                place(stage.network, where, chosen.dtype)
        return cls(first, second, codec, sha256(*parts), decoder, where, precision=chosen.precision)

    @property
    def at_once(self) -> int:
        """Number of clips that go through the networks together.

        A CPU makes one clip after another, as ``VABPipeline`` does: it gains nothing by more at once, and
        its matrix products would round otherwise.
        """
        return 1 if self.device.type == "cpu" else self.batch

    @torch.no_grad()
    def waveforms(self, tokens: Tensor) -> Tensor:
        """Waveforms [B,S] of tokens [B,K,T]."""
        return torch.cat([self.codec.decode(part) for part in tokens.split(self.at_once)])

    @torch.no_grad()
    def tokens(self, batch: Batch, decode: DecodeConfig, seed: int) -> Tensor:
        """Tokens [B,K,T] of one window for a batch's features; each clip's noise depends on its id."""
        parts = batch.split(-(-len(batch.ids) // self.at_once))
        with products(self.precision):
            return torch.cat([self._tokens(part, decode, seed) for part in parts])

    def _tokens(self, batch: Batch, decode: DecodeConfig, seed: int) -> Tensor:
        """Tokens of all clips of a batch in one go."""
        coarse = self.first.preset.model.num_codebooks
        num_codebooks = (self.fine or self.first).preset.model.num_codebooks
        shape = (len(batch.ids), num_codebooks, self.first.preset.model.audio_length)
        empty = torch.zeros(shape, dtype=torch.int64, device=self.device)
        unknown = torch.zeros_like(empty, dtype=torch.bool)  # no token is given
        features = batch.features.to(self.device)
        # a generator for each clip: its noise does not depend on the batch it is in
        noise = {use: [make_generator(seed, use, name) for name in batch.ids] for use in ("sound", "fine")}
        fine = self.fine
        if self.true_coarse:
            assert fine is not None
            fine = Stage(fine.network, replace(fine.preset, decode=decode)) if decode.num_steps else None
            first = batch.tokens[:, :coarse].to(self.device)
        else:
            first = self.first.fill(empty[:, :coarse], unknown[:, :coarse], features, decode, noise["sound"])
        return first if fine is None else fine.refine(first, empty, unknown, features, noise["fine"])


def _digest(network: nn.Module) -> str:
    """sha256 of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode(errors="surrogateescape"))
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def chosen_rows(clips: ClipBatches, count: int | None) -> NDArray[np.int64]:
    """At most ``count`` clips (None: all) with audio and video, spread evenly.

    ``EvaluationError`` if there is none.
    """
    rows = clips.rows_with_video()
    if not len(rows):
        raise EvaluationError(f"{clips.store.directory} has no clip with sound and picture in that split")
    return rows if count is None else rows[spread(len(rows), count)]


@torch.no_grad()
def reconstruct_true(
    store: LatentStore,
    rows: NDArray[np.int64],
    maker: Synthesizer,
    run: Path,
    progress: FileProgress = lambda *_: None,
    share: Share = ALL,
) -> Path:
    """Decode the clips' own tokens with the synthesizer's codec: the best that a model can reach.

    Each is ``<id>.wav`` in the folder that is returned, one in ``run/true`` for each codec and choice. The
    batches of other shares than ``share`` are left to others.
    """
    # 1. The store's tokens mean something to their own codec alone.
    device = maker.codec.codebook_vectors().device
    if not has_codebooks(maker.codec, store.codebook_vectors()):
        raise EvaluationError(
            f"{store.directory} holds the tokens of another codec; name its own: --codec-path"
        )
    # 2. Decode the clips whose files are missing.
    ids = [store.ids[row] for row in rows]
    record = {"store": store.fingerprint(), "clips": list_hash(ids), "codec": maker.codec_weights}
    folder = run / "true" / "-".join(value[:8] for value in record.values())
    for paths, part in _missing(folder, record, ids, rows, progress, maker.batch, share):
        tokens = torch.from_numpy(store.gather("tokens", part).astype(np.int64)).to(device)
        _write_sounds(paths, maker.waveforms(tokens))
    return folder


@torch.no_grad()
def synthesize(
    maker: Synthesizer,
    clips: ClipBatches,
    rows: NDArray[np.int64],
    decode: DecodeConfig,
    seed: int,
    folder: Path,
    progress: FileProgress = lambda *_: None,
    share: Share = ALL,
) -> frozenset[str]:
    """Write a sound for each clip's video, ``folder/<id>.wav``; those that are there are not made again.

    The batches of other shares than ``share`` are left to others. Returns the names of the sounds of all
    shares. ``EvaluationError`` if the folder holds sounds that were made otherwise.
    """
    ids = [clips.store.ids[row] for row in rows]
    record = {
        "weights": maker.weights,
        "decode": former_fields(decode),
        "seed": seed,
        "store": clips.store.fingerprint(),
        "clips": list_hash(ids),
    }
    if maker.precision != "float32":  # which was the only one
        record["precision"] = maker.precision
    for paths, part in _missing(folder, record, ids, rows, progress, maker.batch, share):
        groups = [clips.dev_batch(part[n : n + GROUP]) for n in range(0, len(part), GROUP)]
        tokens = maker.tokens(Batch.join(groups), decode, seed)
        _write_sounds(paths, maker.waveforms(tokens))
    return frozenset(map(file_name, ids))


def _missing(
    folder: Path,
    record: dict[str, Any],
    ids: list[str],
    rows: NDArray[np.int64],
    progress: FileProgress,
    batch: int,
    share: Share,
) -> Iterator[tuple[list[Path], NDArray[np.int64]]]:
    """Yield the files of batches of which not all are there, and their rows.

    ``record`` says how the sounds are made; a folder with another record is refused.
    """
    # 1. A name for each clip.
    names = [file_name(name) for name in ids]
    if len(set(names)) < len(names):
        raise EvaluationError("two clips would have the same file: their ids differ only in odd characters")
    _claim(folder, record)
    # 2. Batches are whole groups, and of the same clips each time, whoever makes them: so a resumed run, and
    #    one of several processes, goes on to the same sounds.
    size = -(-batch // GROUP) * GROUP
    for start in range(share.index * size, len(rows), share.count * size):
        paths = [folder / f"{name}.wav" for name in names[start : start + size]]
        progress(start, len(rows), paths[0], folder.name, start, len(rows))
        if not all(path.is_file() for path in paths):
            yield paths, rows[start : start + size]


def _claim(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of how the sounds of a folder are made; ``EvaluationError`` if it has another one."""
    about = folder / MADE
    # As it reads back from JSON: tuples become lists.
    record = json.loads(json.dumps(record))
    if not about.exists():
        # The first of several processes writes it, the others find it there.
        with suppress(FileExistsError), atomic(about, over=False) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
    old = _read_record(about)
    if old != record:
        other = sorted(key for key in old.keys() | record.keys() if old.get(key) != record.get(key))
        raise EvaluationError(f"{folder} holds sounds of other {', '.join(other)}; use another --run")


def _write_sounds(paths: list[Path], waveforms: Tensor) -> None:
    """Write waveforms [B,S], a file each."""
    for path, waveform in zip(paths, waveforms, strict=True):
        write_wav(path, waveform.float().cpu().numpy())


def _read_record(about: Path) -> dict[str, Any]:
    """The record of how the sounds of a folder were made."""
    try:
        return read_json(about)
    except ValueError as error:
        raise EvaluationError(f"{about}: damaged ({first_line(error)}); use another --run") from None
