"""Names of results: one for each input, as near to the input's own as can be, and no two the same."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from vab.errors import first_line
from vab.media.inputs import Input

MAX_NAME_BYTES = 255


def result_stems(
    inputs: Sequence[Input], samples: int = 1, flat: bool = False, ending: str = ".wav"
) -> list[str]:
    """For each input the path of its results below the folder of all results, without their ``ending``.

    Trees keep their folders, unless ``flat``. Sample n > 1 adds ``_n``. Names that would be the same, also on
    a disk that does not know capitals, are told apart: by as many of the folders above as it takes
    (``a/dog``, ``b/dog``, or ``a_dog``, ``b_dog`` if ``flat``), else by the inputs' endings (``cat_jpg``,
    ``cat_png``), else by numbers (``dog_mp4``, ``dog_mp4 (2)``). A name that would be too long for a disk is
    cut. The same inputs always get the same names.
    """
    last = (f"_{samples}" if samples > 1 else "") + ending
    # 1. What is named first: a path below a folder. Trees go together, so that each stays one.
    folders = [Path(os.path.abspath(file.path.parent)) if flat else file.folder for file in inputs]
    places = [Path(file.path.name) if flat else file.place for file in inputs]
    alone = [flat or file.tree is None for file in inputs]
    groups = [n if alone[n] else str(folder) for n, folder in enumerate(folders)]

    # 2. Folders above, one more at a time, where names clash and the files lie in different folders.
    depths: dict[int | str, int] = defaultdict(int)
    while True:
        stems = []
        for folder, place, group in zip(folders, places, groups, strict=True):
            above = folder.parts[max(1, len(folder.parts) - depths[group]) :]
            stem = ("_" if flat else os.sep).join((*above, *place.parts[:-1], place.stem))
            stems.append(_with(stem, "", last))
        deeper = set()
        for alike in _clashes(stems, samples):
            if (
                len({groups[n] for n in alike}) > 1
                and len({_key(folders[n] / places[n].parent) for n in alike}) > 1
            ):
                deeper |= {groups[n] for n in alike if depths[groups[n]] < len(folders[n].parts) - 1}
        if not deeper:
            break
        for group in deeper:
            depths[group] += 1

    # 3. Endings, until they have been added wherever names clash.
    named: set[int] = set()
    while clashing := {n for alike in _clashes(stems, samples) for n in alike} - named:
        named |= clashing
        for n in clashing:
            stems[n] = _with(stems[n], places[n].suffix.replace(".", "_"), last)

    # 4. Numbers, for what is left.
    clashing = {n for alike in _clashes(stems, samples) for n in alike}
    taken = {name for n, stem in enumerate(stems) if n not in clashing for name in _claims(stem, samples)}
    for n in sorted(clashing):
        plain, number = stems[n], 1
        while not taken.isdisjoint(_claims(stems[n], samples)):
            number += 1
            stems[n] = _with(plain, f" ({number})", last)
        taken |= _claims(stems[n], samples)
    return stems


def _with(stem: str, addition: str, last: str) -> str:
    """``stem`` with an addition, before which it is cut if no disk could hold a name with ``last`` behind."""
    folder, name = os.path.split(stem)
    room = MAX_NAME_BYTES - len(os.fsencode(addition + last))
    data = os.fsencode(name)
    if len(data) > room:
        name = data[:room].decode(errors="ignore")  # half a letter is left out
    return os.path.join(folder, name + addition)


def _key(name: str | Path) -> str:
    """A name as a disk compares it that knows neither capitals nor two spellings of é."""
    return unicodedata.normalize("NFC", str(name).casefold())


def _claims(stem: str, samples: int) -> set[str]:
    """The names that the samples of one input take."""
    key = _key(stem)
    return {key, *(f"{key}_{n}" for n in range(2, samples + 1))}


def _clashes(stems: Sequence[str], samples: int) -> list[list[int]]:
    """The inputs that claim one name, for each name that several claim."""
    owners: dict[str, list[int]] = defaultdict(list)
    for n, stem in enumerate(stems):
        for name in _claims(stem, samples):
            owners[name].append(n)
    return [several for several in owners.values() if len(several) > 1]


class Sources:
    """The inputs of a call, whose place no result may take, by whatever name they are reached."""

    def __init__(self, inputs: Iterable[Input]) -> None:
        self._paths: dict[tuple[int, int], Path] = {}  # by device and number
        for file in inputs:
            with suppress(OSError):
                self._paths[_identity(file.path)] = file.path

    def obstacle(self, results: Iterable[Path], out: Path) -> str | None:
        """Why one of these files below ``out`` must not or cannot be written; None if all can."""
        for path in results:
            try:
                with suppress(FileNotFoundError):
                    if taken := self._paths.get(_identity(path)):
                        return f"its result {path} would overwrite the input {taken}; choose another folder"
                # Without its folder a name is not looked at, and may be too long.
                with suppress(FileNotFoundError):
                    _identity(out / path.name)
            except OSError as error:
                return f"its result {path} cannot be written ({first_line(error)})"
        return None


def _identity(path: Path) -> tuple[int, int]:
    """Device and number of the file that a name leads to."""
    state = os.stat(path)
    return state.st_dev, state.st_ino
