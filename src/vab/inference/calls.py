"""How the methods of ``VABPipeline`` are called: with one input or several, by keywords that they know."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from vab.errors import SettingError
from vab.media.file import MediaFile
from vab.media.sources.given import Picture, Single, Source, as_source, batch

# Words of other libraries -> what to say here.
SYNONYMS = {
    "num_inference_steps": "steps=",
    "num_steps": "steps=",
    "guidance_scale": "guidance=",
    "cfg_scale": "guidance=",
    "generator": "seed=, a whole number",
    "duration": "seconds=",
    "audio_length_in_s": "seconds=",
    "frame_rate": "fps=",
    "sampling_rate": "rate=",
    "sample_rate": "rate=",
    "num_candidates": "rerank=",
    "candidates": "rerank=",
    "samples": "generate_many(source, samples)",
    "num_samples": "generate_many(source, samples)",
    "num_waveforms_per_prompt": "generate_many(source, samples)",
    "by": "classify(source, by=...)",
    "callback": "progress=",
}

P = ParamSpec("P")
R = TypeVar("R")


class ForEach(Protocol[P, R]):
    """A method that takes one input, or several and gives a list."""

    @overload  # a str is a sequence of str too
    def __call__(  # type: ignore[overload-overlap]
        self, source: Single | MediaFile | Iterator[Picture], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload  # one film with ``fps``, if each is one picture
    def __call__(  # type: ignore[overload-overlap]
        self, source: Sequence[Picture], *args: P.args, **kwargs: P.kwargs
    ) -> R | list[R]: ...
    @overload
    def __call__(
        self, source: Sequence[Source | MediaFile], *args: P.args, **kwargs: P.kwargs
    ) -> list[R]: ...


class _Method(Protocol[P, R]):
    def __get__(self, instance: object, owner: type) -> ForEach[P, R]: ...


def for_each(method: Callable[Concatenate[Any, Any, P], R]) -> _Method[P, R]:
    """Let a method for one input take a list of them too, each as if it were alone; and name wrong keywords.

    A list of images with ``fps`` is one film, as ``media.sources.given.batch`` says.
    """
    single: Callable[..., R] = method
    known = list(inspect.signature(method).parameters)[2:]

    @wraps(method)
    def call(self: Any, source: Any, **keywords: Any) -> Any:
        refuse_unknown(keywords, known, SYNONYMS)
        items = batch(source, keywords.get("fps"))
        if items is None:
            return single(self, source, **keywords)
        fps = keywords.pop("fps", None)
        return [single(self, item, **keywords) for item in _named(items, fps)]

    return cast(_Method[P, R], call)


def _named(items: Sequence[Any], fps: Any) -> Iterable[Any]:
    """Inputs that messages tell apart."""
    for number, item in enumerate(items, 1):
        name = f"input {number} of {len(items)}"
        try:
            is_open = isinstance(item, MediaFile) and fps is None
            opened = item if is_open else as_source(item, fps, name=name)
        except SettingError as error:
            raise SettingError(f"{name}: {error}") from error
        yield opened


def refuse_unknown(keywords: Iterable[str], known: Collection[str], synonyms: Mapping[str, str]) -> None:
    """``SettingError`` for a keyword that is not ``known``; it says what was meant, as far as it can tell."""
    for name in keywords:
        if name in known:
            continue
        near = get_close_matches(name, known, 1)
        if name in synonyms:
            raise SettingError(f"there is no {name}= here: it is {synonyms[name]}")
        if near:
            raise SettingError(f"there is no {name}= here; did you mean {near[0]}=?")
        raise SettingError(f"there is no {name}= here; there are {', '.join(sorted(known))}")
