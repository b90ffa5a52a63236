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
from inspect import signature
from pathlib import Path
from typing import Annotated, get_type_hints

from vab.cli.interrupt import remembering
from vab.cli.output import fail, never_fail
from vab.config import FORMER_NAMES
from vab.errors import SettingError, for_people

VERBS = {  # words: module, function, what it does
    "generate": (
        "generate",
        "generate",
        "generate sound for videos and images (.wav, for a video a film)",
    ),
    "embed": ("embed", "embed", "embed sounds, videos and images in one vector space"),
    "classify": ("embed", "classify", "classify sounds, videos and images: labels and probabilities"),
    "data folder": ("data", "folder", "write the manifest of a folder of media"),
    "data synthetic": ("data", "synthetic", "make clips with known sound events, and their manifest"),
    "data vggsound": ("data", "vggsound", "write the manifest of VGGSound from its official lists"),
    "data audioset": ("data", "audioset", "write the manifest of AudioSet from its official lists"),
    "data msrvtt": ("data", "msrvtt", "write the manifest of MSR-VTT's test split, for retrieval"),
    "data esc50": ("data", "esc50", "write the manifest of ESC-50, by fold or for one test fold"),
    "data speech-commands": (
        "data",
        "speech_commands",
        "write the manifest of Speech Commands v0.01, 12 classes",
    ),
    "data vatt": ("data", "vatt", "import VATT's published latents of VGGSound into a store"),
    "extract": ("extract", "extract", "encode the media of a manifest into a store of latents"),
    "store info": ("store", "info", "describe a store of latents and what made it"),
    "store check": ("store", "check", "verify every checksum of a store"),
    "store repair": ("store", "repair", "move damaged shards of a store aside"),
    "store merge": ("store", "merge", "bring the clips of several stores into one"),
    "pretrain": ("train", "pretrain", "train by masked audio token prediction"),
    "finetune contrastive": ("train", "contrastive", "align audio and video in one embedding space"),
    "finetune distill": ("train", "distill", "make a student that generates in few steps"),
    "finetune classify": (
        "train",
        "classify",
        "train a classifier, or a linear probe, on the labels of a store",
    ),
    "learn": ("learn", "learn", "teach a model the labelled sounds and pictures of a folder of yours"),
    "export": ("train", "export", "write the model of a run's checkpoint, also while the run goes on"),
    "codec train": ("codec", "train", "train the small codec"),
    "codec reconstruct": ("reconstruct", "reconstruct", "encode sounds with a codec and decode them again"),
    "evaluate generation": (
        "generation",
        "generation",
        "compare generated with real sounds: FAD, KLD, IS, ...",
    ),
    "evaluate join": ("generation", "join", "join the parts of longer sounds, as appendix E did"),
    "evaluate retrieval": (
        "evaluate",
        "retrieval",
        "measure retrieval: R@k, median rank, precision by class",
    ),
    "evaluate classification": ("evaluate", "classification", "measure classification: accuracy, mAP, d'"),
    "evaluate timing": ("evaluate", "timing", "measure whether sounds happen when the clips' own do"),
    "evaluate folds": ("folds", "folds", "cross-validate a classifier over the folds of a store"),
    "evaluate ablation": (
        "ablation",
        "ablation",
        "run one of the paper's ablations and print its table beside ours",
    ),
    "evaluate listening build": ("listening", "build", "build a listening study from the results of systems"),
    "evaluate listening serve": (
        "listening",
        "serve",
        "serve the page of a study, with a link for each rater",
    ),
    "evaluate listening results": ("listening", "results", "summarize answers: Figure 4, Table 2, agreement"),
    "studio": ("studio", "studio", "serve a page to generate, redo parts of, and compare sounds for a clip"),
    "bench": ("bench", "bench", "time every stage of generating 10 s of sound on this machine"),
    "models": ("info", "models", "list the available models and where they are"),
    "presets": ("info", "presets", "list the named configurations, or show every field of one"),
    "library add": ("library", "add", "add sounds and videos to a searchable library"),
    "library prune": ("library", "prune", "remove files that no longer exist from a library"),
    "library show": ("library", "show", "describe the contents of a library"),
    "search": ("library", "search", "search a library by video, image, sound or label"),
    "doctor": ("info", "doctor", "check the installation and say how to fix what is missing"),
}
ALIASES = {"index": "library"}  # the first word of verbs that were called otherwise up to version 0.1
# Of what torchrun or srun starts one process speaks: verbs that train do one call together, and those that
# would do all of it in each are refused (vab.utils.world.check_alone). Of others each process is a call.
TOGETHER = (
    *("pretrain", "finetune", "evaluate folds"),
    *("embed", "classify", "evaluate retrieval", "evaluate classification", "evaluate ablation"),
)
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``vab``. Exits with 0 if all is done, 1 if some inputs failed, 2 for a bad call, 130 on Ctrl-C.

    Training that SIGTERM or SIGUSR1 asked to stop exits with 128 + the signal's number.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    never_fail()
    try:
        with remembering():
            code = _run(words)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        if not error.args:  # else what was interrupted has said so
            print("vab: interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left: nothing to say, and nobody to hear it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        message = for_people(error)
        if message is None:  # a bug: with its traceback
            raise
        code = fail(message, "--json" in words, together=" ".join(words).startswith(TOGETHER))
    sys.exit(code)


def _run(words: list[str]) -> int:
    words = [*(ALIASES.get(word, word) for word in words[:1]), *words[1:]]

    # 1. A verb: its words are the longest match.
    for length in (3, 2, 1):
        name = " ".join(words[:length])
        if name in VERBS:
            return _verb(name, words[length:])

    # 2. Help and version.
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else 2
    if words[0] == "--version":
        from vab.utils.provenance import code_version

        print(f"vab {code_version()['version']}")
        return 0

    # 3. The beginning of several verbs: list them.
    for length in (2, 1):
        begin = words[:length]
        group = [name for name in VERBS if name.split()[: len(begin)] == begin]
        if group and words[length : length + 1] in (["-h"], ["--help"]):
            print(_help(group))
            return 0
        if group:
            further = dict.fromkeys(name.split()[len(begin)] for name in group)
            raise SettingError(f"vab {' '.join(begin)} needs one of: {', '.join(further)}")

    # 4. No verb at all: suggest the closest one.
    close = difflib.get_close_matches(words[0], VERBS, 1)
    hint = f"did you mean {close[0]}?" if close else "see vab --help"
    raise SettingError(f"there is no verb {words[0]!r}; {hint}")


def _verb(name: str, arguments: list[str]) -> int:
    import tyro

    from vab.cli.options import LOCAL_PATHS

    # A file such as -dash.mp4, which a shell's *.mp4 stands for, is no option.
    arguments = [
        f".{os.sep}{word}" if word.startswith("-") and Path(word).suffix and os.path.isfile(word) else word
        for word in arguments
    ]
    arguments = [current_option(word, arguments) for word in arguments]
    module, function, _ = VERBS[name]
    command: Callable[..., int] = getattr(import_module(f"vab.cli.{module}"), function)
    if any(word.partition("=")[0] == "--config" for word in arguments):
        from vab.cli.train import from_config

        command, arguments = from_config(name, command, arguments)
    _hide_empty_defaults(command)
    return tyro.cli(
        command,
        prog=f"vab {name}",
        args=arguments,
        registry=LOCAL_PATHS,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.CascadeSubcommandArgs),
    )


def _hide_empty_defaults(command: Callable[..., int]) -> None:
    """Annotate a verb so that its help has no "(default: None)", "(default: False)" or "(default: )".

    What happens without such an option is said by its text in the docstring.
    """
    import tyro

    hints = get_type_hints(command, include_extras=True)
    for name, parameter in signature(command).parameters.items():
        if any(parameter.default is empty for empty in (None, False, ())):
            # A second `arg` adds to what the first one set (metavar, aliases).
            hints[name] = Annotated[hints[name], tyro.conf.arg(help_behavior_hint="")]
    command.__annotations__ = hints


def current_option(word: str, words: Sequence[str]) -> str:
    """Translate an option named after a field of version 0.1, such as --model.width, to its current name."""
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
    name = field.replace("-", "_")
    off = "no_" if name.startswith("no_") else ""  # a flag that is turned off
    current = off + FORMER_NAMES[kind[part]].get(name.removeprefix(off), name.removeprefix(off))
    if words[0].startswith("foleygen") and (part, name) == ("decode", "temperature"):
        current = "sampling_temperature"  # FoleyGen has no masks
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
            "Run vab VERB --help for its options. With --json a verb prints one JSON document.",
            "Exit code: 0 success, 1 some inputs failed, 2 bad call, 128 + N signal N (Ctrl-C: 130).",
        ]
    )
