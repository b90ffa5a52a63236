"""The command line: one file per group of verbs, no logic. Nothing here imports torch.

To add a verb, write a function with typed arguments and a docstring, and give it a line in ``VERBS``.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from vab.cli.interrupt import remembering
from vab.cli.output import fail
from vab.config import current_names
from vab.errors import SettingError, for_people

VERBS = {  # words: module, function, what it does
    "generate": ("generate", "generate", "sound for videos and images: wav and, for video, mp4"),
    "embed": ("embed", "embed", "sounds, videos and images -> vectors in one space"),
    "classify": ("embed", "classify", "what sounds, videos and images are: labels with probabilities"),
    "data folder": ("data", "folder", "a folder of media -> manifest"),
    "data synthetic": ("data", "synthetic", "clips with known events -> manifest"),
    "data vggsound": ("data", "vggsound", "VGGSound's official lists -> manifest of the clips there are"),
    "data audioset": ("data", "audioset", "AudioSet's official lists -> manifest of the segments there are"),
    "data msrvtt": ("data", "msrvtt", "MSR-VTT's test split, for retrieval -> manifest"),
    "data esc50": ("data", "esc50", "ESC-50, with its folds or one to test on -> manifest"),
    "data speech-commands": ("data", "speech_commands", "Speech Commands v0.01, 12 classes -> manifest"),
    "data vatt": ("data", "vatt", "VATT's published latents of VGGSound -> store"),
    "extract": ("train", "extract", "media of a manifest -> latents (tokens, features)"),
    "store info": ("store", "info", "what is in a store of latents, and what made it"),
    "store check": ("store", "check", "verify every checksum of a store"),
    "store repair": ("store", "repair", "move what is damaged in a store aside"),
    "pretrain": ("train", "pretrain", "train by masked audio token prediction"),
    "finetune contrastive": ("train", "contrastive", "bring sound and picture into one space"),
    "finetune classify": ("train", "classify", "learn the classes of a store, or only a linear probe"),
    "codec train": ("codec", "train", "train the small codec"),
    "codec reconstruct": ("reconstruct", "reconstruct", "sounds through a codec and back"),
    "evaluate generation": (
        "generation",
        "generation",
        "sounds made and real ones -> FAD, KLD, IS, ...",
    ),
    "evaluate retrieval": ("evaluate", "retrieval", "embeddings -> R@k, median rank, precision by class"),
    "evaluate classification": ("evaluate", "classification", "scores -> accuracy, mAP, d'"),
    "evaluate folds": ("folds", "folds", "a classifier for each fold of a store -> mean accuracy"),
    "evaluate ablation": (
        "ablation",
        "ablation",
        "one of the paper's ablations -> its table, with ours beside",
    ),
    "evaluate listening build": ("listening", "build", "results of systems -> a study that people answer"),
    "evaluate listening serve": ("listening", "serve", "the page of a study, with a link for each rater"),
    "evaluate listening results": ("listening", "results", "answers -> Figure 4, Table 2, agreement"),
    "studio": ("studio", "studio", "a page: takes for a clip, redo parts of them, find real sounds"),
    "bench": ("bench", "bench", "how long 10 s of sound take here, stage by stage"),
    "models": ("info", "models", "the models there are, and where"),
    "presets": ("info", "presets", "the named configurations, and every field of one"),
    "index add": ("library", "add", "sounds and videos -> a library to search"),
    "index prune": ("library", "prune", "take files that are gone out of a library"),
    "index show": ("library", "show_library", "what is in a library"),
    "search": ("library", "search", "find files of a library by picture, sound or label"),
    "doctor": ("info", "doctor", "what is installed, what is missing, what to do"),
}
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``vab``. Exits with 0 if all is done, 1 if some inputs failed, 2 for a bad call, 130 on Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with remembering():
            code = _run(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("vab: interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left: nothing to say, and nobody to hear it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        message = for_people(error)
        if message is None:  # a bug: with its traceback
            raise
        code = fail(message, "--json" in words)
    sys.exit(code)


def _run(words: list[str]) -> int:
    for length in (3, 2, 1):
        name = " ".join(words[:length])
        if name in VERBS:
            return _verb(name, words[length:])
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else 2
    if words[0] == "--version":
        from vab.utils.provenance import code_version

        print(f"vab {code_version()['version']}")
        return 0
    for length in (2, 1):
        begin = words[:length]
        group = [name for name in VERBS if name.split()[: len(begin)] == begin]
        if group and words[length : length + 1] in (["-h"], ["--help"]):
            print(_help(group))
            return 0
        if group:
            further = dict.fromkeys(name.split()[len(begin)] for name in group)
            raise SettingError(f"vab {' '.join(begin)} needs one of: {', '.join(further)}")
    close = difflib.get_close_matches(words[0], VERBS, 1)
    hint = f"did you mean {close[0]}?" if close else "see vab --help"
    raise SettingError(f"there is no verb {words[0]!r}; {hint}")


def _verb(name: str, arguments: list[str]) -> int:
    import tyro

    arguments = [_current_name(word, arguments) for word in arguments]
    module, function, _ = VERBS[name]
    command: Callable[..., int] = getattr(import_module(f"vab.cli.{module}"), function)
    return tyro.cli(
        command,
        prog=f"vab {name}",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.CascadeSubcommandArgs),
    )


def _current_name(word: str, words: Sequence[str]) -> str:
    """An option of a preset's field as it is called now: --model.width was one up to version 0.1."""
    option = re.fullmatch(r"--(model|train|decode|codec)\.([\w-]+)(=.*)?", word)
    if option is None:
        return word
    part, field, value = option.groups()
    kind = {
        "model": "ModelConfig",
        "train": "TrainConfig",
        "decode": "DecodeConfig",
        "codec": "TinyCodecConfig",
    }
    foleygen = {"steps": 0} if words and words[0].startswith("foleygen") else {}  # see current_names
    (*_, current) = current_names(kind[part], {**foleygen, field.replace("-", "_"): None})
    return f"--{part}.{current.replace('_', '-')}{value or ''}"


def _help(names: Sequence[str] = tuple(VERBS)) -> str:
    width = max(map(len, names))
    lines = [f"  {name:{width}}  {VERBS[name][2]}" for name in names]
    return "\n".join(
        [
            "usage: vab VERB ...",
            "",
            "Sound for silent video: From Vision to Audio and Beyond (ICML 2024).",
            "",
            *lines,
            "",
            "vab VERB --help explains each. Every verb takes --json: one document on standard output.",
            "Exit code: 0 all done, 1 some inputs failed, 2 bad call.",
        ]
    )
