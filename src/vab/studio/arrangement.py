"""Arrangements: layers of sounds on a timeline, marks, a curve and settings; every change gives a new one.

An arrangement is a JSON object (docs/studio.md has its fields) that is never altered: a change copies it. So
the steps of a history may share what they have in common.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from vab.studio.queue import UserError

MAX_LAYERS = 64
MAX_NEW_TAKES = 4  # of one request
MAX_MARKS = 500
MAX_POINTS = 5000  # of a curve, events and breakpoints each
MAX_SECONDS = 1e6  # of a time in a request
MAX_OFFSET = 3600.0  # seconds by which a layer may lie before or after the start
GAINS = (-100.0, 24.0)  # dB of a layer
LEVELS = (-45.0, 0.0)  # dB of a curve
MAX_TEXT = 200  # characters of a name or a label
TIMINGS = ("none", "motion", "curve")
SETTINGS = ("count", "seed", "steps", "guidance", "temperature", "timing")

Arrangement = Mapping[str, Any]
Values = Mapping[str, Any]

EDITS = {  # what a change of a layer's fields is called
    "mute": "muted",
    "solo": "solo",
    "start": "trimmed",  # which moves the start on the timeline, too
    "stop": "trimmed",
    "offset": "moved",
    "fade_in": "faded",
    "fade_out": "faded",
    "gain_db": "volume",
    "name": "renamed",
    "sound": "exchanged",
}


def empty(settings: Values) -> dict[str, Any]:
    """An arrangement without layers."""
    return {"layers": [], "marks": [], "curve": None, "settings": dict(settings)}


def new_layer(sound: str, about: Values, **fields: Any) -> dict[str, Any]:
    """A layer with all of a sound, from the start of the clip on; ``about``: the sound in the document."""
    layer = {
        "id": new_id(),
        "name": about["title"][:MAX_TEXT],
        "sound": sound,
        "offset": 0.0,
        "start": 0.0,
        "stop": about["seconds"],
        "fade_in": 0.0,
        "fade_out": 0.0,
        "gain_db": 0.0,
        "mute": False,
        "solo": False,
    }
    return layer | fields


def new_id() -> str:
    """Eight hex digits, for a layer or a mark."""
    return secrets.token_hex(4)


def layer_of(arrangement: Arrangement, name: object) -> dict[str, Any]:
    """Look up a layer by its id; ``UserError`` if there is none."""
    for layer in arrangement["layers"]:
        if layer["id"] == name:
            found: dict[str, Any] = layer
            return found
    raise UserError("This layer is not here any more.")


def with_layers(arrangement: Arrangement, layers: Sequence[Values]) -> dict[str, Any]:
    """With other layers; ``UserError`` if there are too many."""
    if len(layers) > MAX_LAYERS:
        raise UserError(f"There is room for {MAX_LAYERS} layers; remove some first.")
    return {**arrangement, "layers": list(layers)}


def plus(arrangement: Arrangement, layer: Values) -> dict[str, Any]:
    """With one more layer; if another one has its name, with a number behind that."""
    names = {other["name"] for other in arrangement["layers"]}
    name, number = layer["name"], 1
    while name in names:
        number += 1
        name = f"{layer['name'][: MAX_TEXT - 5]} ({number})"
    return with_layers(arrangement, [*arrangement["layers"], {**layer, "name": name}])


def beside(arrangement: Arrangement, sound: str, about: Values) -> dict[str, Any]:
    """With a layer of a new sound, which is heard beside the others; ``about``: the sound in the document."""
    return plus(arrangement, new_layer(sound, about))


def as_seen(now: Arrangement, values: Values) -> Arrangement:
    """``now``; ``UserError`` if what a request replaces, ``was``, is not that: another tab changed it."""
    was = values.get("was")
    for name, seen in was.items() if isinstance(was, dict) else ():
        if name in ("marks", "curve") and seen != now[name]:
            raise UserError(f"The {name} changed elsewhere meanwhile; this is how it is now.")
    return now


def with_take(
    arrangement: Arrangement, sounds: Mapping[str, Values], sound: str, about: Values, is_first: bool
) -> dict[str, Any]:
    """With a layer of a new take. Takes are alternatives: of all, the first of those made last is heard.

    ``sounds``: those that the other layers refer to.
    """
    layers = arrangement["layers"]
    if is_first:
        layers = [
            {**layer, "mute": True, "solo": False} if sounds[layer["sound"]]["kind"] == "take" else layer
            for layer in layers
        ]
    return plus({**arrangement, "layers": layers}, new_layer(sound, about, mute=not is_first))


def edited_name(name: str, before: str, after: str) -> str:
    """The name of a layer whose sound was edited: what is new, ``after``, in place of the last edit.

    ``before``, ``after``: the titles of its sounds; the former may be no edit.
    """
    ending = f", {after}"
    return f"{name.removesuffix(f', {before}')[: MAX_TEXT - len(ending)]}{ending}"


def with_layer(arrangement: Arrangement, layer: Values) -> dict[str, Any]:
    """With ``layer`` in the place of the one that has its id."""
    layers = [layer if other["id"] == layer["id"] else other for other in arrangement["layers"]]
    return {**arrangement, "layers": layers}


def changed(layer: Values, values: Values, sounds: Mapping[str, Values]) -> dict[str, Any]:
    """A layer with the fields of a request that it has; ``UserError`` for values that make no sense.

    Its part stays within its sound, and its fades within its part.
    """
    new = dict(layer)
    if "sound" in values:
        if not isinstance(values["sound"], str) or values["sound"] not in sounds:
            raise UserError("This sound is not here any more.")
        new["sound"] = values["sound"]
    if "name" in values:
        new["name"] = text(values, "name") or layer["name"]
    for name in ("mute", "solo"):
        if name in values:
            if not isinstance(values[name], bool):
                raise UserError(f"{name.capitalize()} must be true or false.")
            new[name] = values[name]
    limits = {"offset": (-MAX_OFFSET, MAX_OFFSET), "gain_db": GAINS}
    for name in ("offset", "start", "stop", "fade_in", "fade_out", "gain_db"):
        if name in values:
            new[name] = number(values, name, *limits.get(name, (0, MAX_SECONDS)))
    seconds = sounds[new["sound"]]["seconds"]
    new["stop"] = min(new["stop"], seconds)
    if not new["start"] < new["stop"]:
        raise UserError("Nothing would be left of this layer; remove it instead.")
    length = new["stop"] - new["start"]
    new["fade_in"], new["fade_out"] = min(new["fade_in"], length), min(new["fade_out"], length)
    return new


def ordered(arrangement: Arrangement, names: object) -> dict[str, Any]:
    """With its layers in the order of their ids."""
    by_id = {layer["id"]: layer for layer in arrangement["layers"]}
    if not isinstance(names, list) or sorted(map(str, names)) != sorted(by_id):
        raise UserError("The order must name every layer once.")
    return {**arrangement, "layers": [by_id[name] for name in names]}


def checked_marks(given: object) -> list[dict[str, Any]]:
    """The marks of a request, in order of time; those without an id get one."""
    if not isinstance(given, list) or len(given) > MAX_MARKS:
        raise UserError(f"Marks are a list of {MAX_MARKS} at most.")
    marks = []
    for mark in given:
        if not isinstance(mark, dict):
            raise UserError("A mark has a time and a label.")
        name = mark.get("id")
        name = name if isinstance(name, str) and 0 < len(name) <= MAX_TEXT else new_id()
        label = text(mark, "label") if "label" in mark else ""
        marks.append({"id": name, "time": number(mark, "time", 0, MAX_SECONDS), "label": label})
    if len({mark["id"] for mark in marks}) < len(marks):
        raise UserError("Each mark needs an id of its own.")
    return sorted(marks, key=lambda mark: float(mark["time"]))


def checked_curve(given: object) -> dict[str, Any] | None:
    """The curve of a request, in order of time."""
    if given is None:
        return None
    if not isinstance(given, dict):
        raise UserError("A curve has events and a level.")
    return {
        "events": _points(given.get("events", []), 0.0, 1.0),
        "level": _points(given.get("level", []), *LEVELS),
    }


def _points(given: object, low: float, high: float) -> list[list[float]]:
    """Pairs of a time and a value, in order of time."""
    if not isinstance(given, list) or len(given) > MAX_POINTS:
        raise UserError(f"A curve has {MAX_POINTS} points at most.")
    points = []
    for pair in given:
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError("A point of a curve is a time and a value.")
        values = dict(zip(("time", "value"), pair, strict=True))
        points.append([number(values, "time", 0, MAX_SECONDS), number(values, "value", low, high)])
    return sorted(points)


def checked_settings(settings: Values, given: object) -> dict[str, Any]:
    """Settings with those of a request; ``UserError`` for values that make no sense."""
    if not isinstance(given, dict):
        raise UserError("Settings have names and values.")
    new = dict(settings)
    integers = {"count": (1, MAX_NEW_TAKES), "seed": (0, 2**32 - 1), "steps": (1, 100)}
    numbers = {"guidance": (0, 20), "temperature": (0, 100)}
    for name, (low, high) in integers.items():
        if name in given and not (name == "steps" and given[name] is None):
            new[name] = integer(given, name, low, high)
    for name, (low, high) in numbers.items():
        if name in given:
            new[name] = number(given, name, low, high)
    if "timing" in given:
        if given["timing"] not in TIMINGS:
            raise UserError(f"Timing is one of {', '.join(TIMINGS)}.")
        new["timing"] = given["timing"]
    return new


def number(values: Values, name: str, low: float, high: float) -> float:
    """Read a number of a request; ``UserError`` if it is none, or not from ``low`` to ``high``."""
    value = values.get(name)
    shown = name.replace("_", " ").capitalize()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{shown} must be a number.")
    if not low <= value <= high:
        raise UserError(f"{shown} must be from {low:.12g} to {high:.12g}.")
    return float(value)


def integer(values: Values, name: str, low: int, high: int) -> int:
    """Read a whole number of a request, as :func:`number` does."""
    value = number(values, name, low, high)
    if value != int(value):
        raise UserError(f"{name.capitalize()} must be a whole number.")
    return int(value)


def text(values: Values, name: str) -> str:
    """Read a text of one line; ``UserError`` if it is none, or too long."""
    value = values.get(name)
    if not isinstance(value, str):
        raise UserError(f"{name.capitalize()} must be a text.")
    value = " ".join(value.split())
    if len(value) > MAX_TEXT:
        raise UserError(f"{name.capitalize()} may have {MAX_TEXT} characters.")
    return value
