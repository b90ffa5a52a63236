"""The EnCodec that audiocraft exports (AudioGen's) -> a transformers model (section 3.1).

The file is a pickle, which could run any code when it is read. This one reads tensors, plain values and the
classes listed here, for each of which it makes an object of its own.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vab.errors import CodecError, first_line

if TYPE_CHECKING:
    from transformers import EncodecModel

AUDIOCRAFT_FILE = "compression_state_dict.bin"
ENCODEC_SOURCE = "facebook/audiogen-medium"


class _Settings:
    """Stands in for OmegaConf's classes: holds what one of them held, and does nothing."""

    def __init__(self, *values: Any) -> None:
        """Takes what the class took, which is not needed: the state follows."""


def read_audiocraft(path: Path) -> EncodecModel:
    """Read an EnCodec that audiocraft exported into a transformers model, which computes the same.

    The file holds ``best_state`` (tensors) and ``xp.cfg``: YAML, or an OmegaConf object, for which OmegaConf
    itself is not needed. It is read without running any code from it. ``seanet.pad_mode`` comes from the
    file: the wrong one changes the clip's edges. ``CodecError`` says why a file is refused.
    """
    from transformers import EncodecModel

    # 1. Read the file, and refuse others that audiocraft writes under the same name.
    package = _unpickle(path)
    if "pretrained" in package:
        raise CodecError(
            f"{path} is only a pointer to {package['pretrained']!r}, it holds no weights: "
            f"put the {AUDIOCRAFT_FILE} of {ENCODEC_SOURCE} there or pass its path with --codec-path"
        )
    if not {"best_state", "xp.cfg"} <= set(package):
        raise CodecError(f"{path} is not an exported audiocraft codec: it has no best_state and xp.cfg")

    # 2. Build the network that its configuration describes, and fill it with the renamed tensors.
    model = EncodecModel(_config(package["xp.cfg"], path))
    state = {_rename(key): value for key, value in package["best_state"].items()}
    try:
        report = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CodecError(f"{path} does not fit its own xp.cfg: {first_line(error)}") from error

    # 3. Every tensor must have found its place.
    if report.missing_keys or report.unexpected_keys:
        raise CodecError(
            f"{path} does not fit EnCodec: {len(report.missing_keys)} missing {report.missing_keys[:3]}, "
            f"{len(report.unexpected_keys)} unexpected {report.unexpected_keys[:3]}"
        )
    return model


# audiocraft's names of tensors -> transformers'; torch itself maps weight_g and weight_v.
_RENAMES = (
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.(conv|convtr)\.\1\.", ".conv."),
    (r"^quantizer\.vq\.layers\.", "quantizer.layers."),
    (r"\._codebook\.", ".codebook."),
)


def _rename(key: str) -> str:
    """Rename a tensor from audiocraft's to transformers' naming."""
    for pattern, new in _RENAMES:
        key = re.sub(pattern, new, key)
    return key


def _config(settings: Any, path: Path) -> Any:
    """Translate an ``xp.cfg``, text, plain values or OmegaConf's, into transformers' ``EncodecConfig``."""
    import yaml
    from transformers import EncodecConfig

    try:
        root = yaml.safe_load(settings) if isinstance(settings, str) else _plain(settings)

        def value(name: str) -> Any:
            node = root
            for part in name.split("."):
                node = node[part]
            # The exporter leaves references such as ${sample_rate} unresolved.
            reference = re.fullmatch(r"\$\{([\w.]+)\}", node) if isinstance(node, str) else None
            return value(reference[1]) if reference else node

        # transformers counts codebooks by the bandwidth in kbit/s: each takes log2(bins) bits per frame.
        ratios = value("seanet.ratios")
        sample_rate = value("sample_rate")
        bins = value("rvq.bins")
        bits_per_second = math.ceil(math.log2(bins)) * math.ceil(sample_rate / math.prod(ratios))
        return EncodecConfig(
            sampling_rate=sample_rate,
            audio_channels=value("channels"),
            normalize=value("encodec.renormalize"),
            target_bandwidths=[value("rvq.n_q") * bits_per_second / 1000],
            codebook_size=bins,
            hidden_size=value("seanet.dimension"),
            num_filters=value("seanet.n_filters"),
            num_residual_layers=value("seanet.n_residual_layers"),
            upsampling_ratios=ratios,
            norm_type=value("seanet.norm"),
            kernel_size=value("seanet.kernel_size"),
            last_kernel_size=value("seanet.last_kernel_size"),
            residual_kernel_size=value("seanet.residual_kernel_size"),
            dilation_growth_rate=value("seanet.dilation_base"),
            use_causal_conv=value("seanet.causal"),
            pad_mode=value("seanet.pad_mode"),
            use_conv_shortcut=not value("seanet.true_skip"),
            compress=value("seanet.compress"),
            num_lstm_layers=value("seanet.lstm"),
            trim_right_ratio=value("seanet.decoder.trim_right_ratio"),
        )
    except KeyError as error:
        raise CodecError(f"{path}: its xp.cfg does not say {error}, so it is no EnCodec") from error
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise CodecError(f"{path}: its xp.cfg cannot be understood: {first_line(error)}") from error


def _plain(value: Any) -> Any:
    """Settings as dicts, lists and values, whether they are OmegaConf's or plain ones."""
    if isinstance(value, _Settings):
        held = vars(value)
        return _plain(held["_content"] if "_content" in held else held.get("_val"))
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value


_OMEGACONF = {
    "base": "ContainerMetadata Metadata",
    "dictconfig": "DictConfig",
    "listconfig": "ListConfig",
    "nodes": "AnyNode BooleanNode BytesNode FloatNode IntegerNode PathNode StringNode",
}
_NUMPY_SCALARS = [type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float32", "float64")]


def _allowed() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What a file may name beside tensors: plain types, NumPy's numbers, stand-ins for OmegaConf's."""
    scalar: Any = np.float64(0).__reduce__()[0]
    return [
        *(int, float, bool, str, list, dict, tuple, set, defaultdict),
        torch.torch_version.TorchVersion,  # a text
        *_NUMPY_SCALARS,
        (np.dtype, "numpy.dtype"),
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        (_Settings, "typing.Any"),
        *((_Settings, f"omegaconf.{m}.{name}") for m, names in _OMEGACONF.items() for name in names.split()),
    ]


def _unpickle(path: Path) -> Mapping[str, Any]:
    """Read a file of ``torch.save`` that holds only tensors and what is allowed; no code from it runs."""
    try:
        with torch.serialization.safe_globals(_allowed()):
            package = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of another kind can fail anywhere in the reader
        # Torch's text is long and advises to trust the file; what matters is the class that is in the way.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it holds a {found[1]}" if found else first_line(error)
        raise CodecError(
            f"{path} cannot be read as tensors and plain values "
            f"(nothing else is loaded from it, for safety): {why}"
        ) from error
    if not isinstance(package, Mapping):
        raise CodecError(f"{path} is not an exported audiocraft codec: it holds a {type(package).__name__}")
    return package
