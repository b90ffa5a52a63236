"""Search by words: in the names of files, of their folders and in labels, as people type them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

from vab.library.table import folded

_LETTERS_AND_DIGITS = re.compile(r"[^\W\d_]+|\d+")
_HUMPS = re.compile(r"(?<=[a-z])(?=[A-Z])")  # DogBark


def words_of(text: str) -> list[str]:
    """The words of a text: upper and lower case, é in any spelling; a plural counts as its singular."""
    parts = _LETTERS_AND_DIGITS.findall(folded(_HUMPS.sub(" ", text)))
    return [_singular(part) for part in parts]


def rank(wanted: Iterable[str], path: str, label: str) -> int:
    """How well a file fits words of :func:`words_of`; 0 if one of them stands nowhere.

    For each word 4 where the label has it, 3 the file's name, 2 the folder's; 1 where it begins a word of
    these, as people type. Nothing above the folder counts: a library in ``/home/dog`` is not full of dogs.
    """
    file = PurePath(path)
    places = [(4, words_of(label)), (3, words_of(file.stem)), (2, words_of(file.parent.name))]
    total = 0
    for word in wanted:
        worth = max((worth for worth, words in places if word in words), default=0)
        if not worth:
            worth = int(any(each.startswith(word) for _, words in places for each in words))
        if not worth:
            return 0
        total += worth
    return total


def _singular(word: str) -> str:
    """Without the ending of a plural: dogs, horses, boxes, cities."""
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
