"""Reconstruct sounds with a codec (Appendix D.1, Table 15): the best that a model of its tokens can reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vab.codecs.codec import Codec, decode_long, encode_long
from vab.config import samples_to_frames
from vab.errors import SettingError, failure
from vab.inference.batch import Result
from vab.inference.made_with import difference, tag_of
from vab.media.container import MediaError
from vab.media.inputs import AUDIO, VIDEOS, expand
from vab.media.muxing.tags import COMMENT, pack
from vab.media.naming import Sources, result_stems
from vab.media.reader import read_audio
from vab.media.write import write_audio
from vab.utils.progress import FileProgress
from vab.utils.provenance import sha256

CONTEXT_FRAMES = 250  # audio frames on either side of a chunk: even an LSTM has forgotten what lies beyond


def reconstruct_files(
    names: Iterable[str | Path],
    out: Path,
    codec: Codec,
    num_codebooks: int | None = None,
    skip_existing: bool = False,
    show: FileProgress = lambda *_: None,
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[Result]:
    """Write ``out/<stem>.wav`` for all sounds and videos that ``names`` stand for, in the tree they are in.

    Encoded and decoded with the first ``num_codebooks`` (None: all) of the codec, as long as the input.

    One result for each file as it is done; what is wrong with one is its result. ``log`` gets the lines on
    what is left out on purpose. Raises ``SettingError`` for
    codebooks that the codec does not have, or nothing to do, and ``OSError`` if ``out`` is no folder.
    """
    # 1. Check the call.
    if num_codebooks is None:
        num_codebooks = codec.num_codebooks
    if not 1 <= num_codebooks <= codec.num_codebooks:
        raise SettingError(f"{codec.name} has {codec.num_codebooks} codebooks, so not {num_codebooks}")
    inputs = expand(names, leave_out=out, kinds=AUDIO + VIDEOS)
    out.mkdir(parents=True, exist_ok=True)
    for line in inputs.notes:
        log(line)
    for name, line in inputs.faults.items():
        yield Result(name, "failed", error=line)
    # 2. One file after another; no result is written over an input.
    sources = Sources(inputs.files)
    stems = result_stems(inputs.files)
    made = {"codec": codec.name, "codebooks": num_codebooks, "fingerprint": _fingerprint(codec)}
    for n, (file, stem) in enumerate(zip(inputs.files, stems, strict=True)):
        path = file.path
        wav = out / f"{stem}.wav"
        show(n, len(stems), path, "codec", n, len(stems))
        if obstacle := sources.obstacle([wav], out):
            yield Result(str(path), "failed", error=f"{path}: {obstacle}")
            continue
        # What it depends on stands in its tag, by which a later call knows it.
        wanted = made | {"source_bytes": path.stat().st_size if path.is_file() else 0}
        anew: str | None = None
        if skip_existing and wav.is_file():
            anew = difference(tag_of(wav), wanted)
            if anew is None:
                yield Result(str(path), "skipped", (str(wav),))
                continue
        result = _reconstruct(path, wav, codec, num_codebooks, wanted)
        yield replace(result, notes=(anew,)) if anew else result


def _fingerprint(codec: Codec) -> str:
    """Hash of a codec's weights."""
    tensors = codec.state_dict().values() if isinstance(codec, torch.nn.Module) else ()
    return sha256(*(tensor.cpu().numpy().tobytes() for tensor in tensors))


@torch.inference_mode()
def _reconstruct(path: Path, wav: Path, codec: Codec, num_codebooks: int, made: dict[str, Any]) -> Result:
    try:
        # [S] -> tokens [K, T], in chunks of any length of sound
        waveform = read_audio(path, model_level=True)
        if not np.isfinite(waveform).all():
            raise MediaError(f"{path}: holds NaN or infinity")
        frames = samples_to_frames(len(waveform))
        tokens = encode_long(codec, lambda begin, n: waveform[begin : begin + n], 0, frames, CONTEXT_FRAMES)
        # [S] at the codec's rate; the last frame is longer than what is left of the input
        decoded = torch.cat(list(decode_long(codec, tokens[:num_codebooks])))[: len(waveform)]
        write_audio(wav, decoded.cpu().numpy(), codec.sample_rate, tags={COMMENT: pack(made)})
    except Exception as error:  # one bad file out of many must not end the others
        return Result(str(path), "failed", error=failure(path, error))
    return Result(str(path), "done", (str(wav),), len(waveform) / codec.sample_rate)
