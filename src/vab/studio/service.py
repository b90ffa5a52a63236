"""What a visitor can ask for: requests are checked here, and what takes time becomes a job of the queue."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vab.config import DecodeConfig
from vab.errors import SettingError
from vab.inference.embedder import Inputs
from vab.inference.embeddings import Embedded
from vab.library.table import LibraryError
from vab.media.container import MediaError
from vab.models.hub import ModelError
from vab.sampling.parallel import decode_settings
from vab.studio.library_view import LibraryView
from vab.studio.queue import Cancelled, Job, JobQueue, ProgressFn, UserError
from vab.studio.sessions import Session, SessionStore, TakeHistory
from vab.studio.takes import MOST_TAKES, Take, TakeMaker
from vab.studio.uploads import Clip

MOST_TRACKS = 12  # takes in a room
MOST_UNDO = 10  # steps back of each
HITS = 12
CLASSES = 5  # likeliest ones told
GONE = (
    "Your clip is not here any more: nobody was here for half an hour, or the studio was started anew. "
    "Choose it again."
)
STAGE_LABELS = {
    "decode_video": "reading the picture",
    "features": "looking at the picture",
    "sampling": "making sound",
    "refining": "adding detail",
    "codec": "writing the sound",
}

Values = Mapping[str, Any]


class StudioService:
    """The studio's verbs for the rooms of all visitors, with one model and perhaps a library."""

    def __init__(self, maker: TakeMaker, shelf: LibraryView | None = None) -> None:
        self.maker, self.shelf = maker, shelf
        self.line = JobQueue()
        self.rooms = SessionStore(self.line)
        self.verbs: dict[str, Callable[[Session, Values], None]] = {
            "make": self.make,
            "redo": self.redo,
            "extend": self.extend,
            "undo": self.undo,
            "remove": self.remove,
            "find": self.find,
            "place": self.place,
            "own": self.own,
            "understand": self.understand,
            "cancel": self.cancel,
            "clear": self.clear,
        }

    def close(self) -> None:
        """End the work and remove all files."""
        self.line.close()
        self.rooms.close()

    def make(self, room: Session, values: Values) -> None:
        """``count`` new takes."""
        clip = _clip(room)
        count, seed, decode = _whole(values, "count", 1, MOST_TAKES), _seed(values), self._decode(values)
        _space(room, count)

        def work(tell: ProgressFn) -> None:
            for take in self.maker.new(clip, count, seed, decode, tell):
                _add(room, clip, take, tell)

        self._start(room, clip, "make", work)

    def redo(self, room: Session, values: Values) -> None:
        """The seconds ``from`` to ``to`` of the take ``track`` anew; with ``rest`` all but them."""
        span = (_number(values, "from", 0, 1e6), _number(values, "to", 0, 1e6))
        inside = not values.get("rest")

        def make(clip: Clip, take: Take, seed: int, decode: DecodeConfig, tell: ProgressFn) -> Take:
            return self.maker.redo(clip, take, span, inside, seed, decode, tell)

        self._change(room, values, make)

    def extend(self, room: Session, values: Values) -> None:
        """The take ``track`` with ``seconds`` more."""
        seconds = _number(values, "seconds", 0.1, 60)

        def make(clip: Clip, take: Take, seed: int, decode: DecodeConfig, tell: ProgressFn) -> Take:
            return self.maker.extend(clip, take, seconds, seed, decode, tell)

        self._change(room, values, make)

    def _change(
        self,
        room: Session,
        values: Values,
        make: Callable[[Clip, Take, int, DecodeConfig, ProgressFn], Take],
    ) -> None:
        clip, track, decode, seed = (
            _clip(room),
            room.track(values.get("track")),
            self._decode(values),
            _seed(values),
        )
        take = track.takes[-1]
        number = (seed + track.tries + 1) % 2**32

        def work(tell: ProgressFn) -> None:
            try:
                made = make(clip, take, number, decode, tell)
            except SettingError as error:  # of the span or the length
                raise UserError(str(error)) from None
            _add(room, clip, made, tell, track)

        self._start(room, clip, "make", work)
        track.tries += 1

    def undo(self, room: Session, values: Values) -> None:
        """The take ``track`` as it was before."""
        with room.lock:
            _still(room)
            track = room.track(values.get("track"))
            if len(track.takes) < 2:
                raise UserError("There is nothing to undo.")
            track.takes.pop().remove()

    def remove(self, room: Session, values: Values) -> None:
        """Take away the take ``track``."""
        with room.lock:
            _still(room)
            track = room.track(values.get("track"))
            room.tracks.remove(track)
            for take in track.takes:
                take.remove()

    def own(self, room: Session, values: Values) -> None:
        """A take of the sound that the upload had."""
        clip = _clip(room)
        if not clip.has_sound:
            raise UserError("This clip came without sound.")
        _space(room, 1)

        def work(tell: ProgressFn) -> None:
            _add(room, clip, self.maker.place(clip, clip.sound(), "As it came", tell), tell)

        self._start(room, clip, "make", work)

    def place(self, room: Session, values: Values) -> None:
        """A take of the sound ``row`` of the library, from ``start`` on."""
        clip, shelf = _clip(room), self._shelf()
        row, start = _whole(values, "row", 0, len(shelf.paths) - 1), _number(values, "start", 0, 1e6)
        _space(room, 1)

        def work(tell: ProgressFn) -> None:
            try:
                sound = shelf.sound(row, start, clip.seconds)
            except MediaError:
                raise UserError("This file of the library cannot be read any more.") from None
            _add(room, clip, self.maker.place(clip, sound, shelf.paths[row].name, tell), tell)

        self._start(room, clip, "make", work)

    def find(self, room: Session, values: Values) -> None:
        """The library's sounds that are nearest to the take ``track``, or to the picture without one."""
        clip, shelf, take = _clip(room), self._shelf(), _top(room, values)

        def work(tell: ProgressFn) -> None:
            tell("listening" if take else "looking", 0, 1)
            embedded = self._embedded(clip, take)
            hits = self._near(shelf, embedded.mean("audio" if take else "video"))
            _answer(room, clip, "find", {"by": _name(take), "hits": hits}, tell)

        self._start(room, clip, "find", work)

    def understand(self, room: Session, values: Values) -> None:
        """Classes of picture, of the take ``track`` and of both; the nearest sounds; places on the map."""
        clip, take = _clip(room), _top(room, values)

        def work(tell: ProgressFn) -> None:
            told: dict[str, Any] = {"by": _name(take), "classes": {}, "hits": [], "places": {}}
            kinds: tuple[Inputs, ...] = ("video", "audio", "both") if take else ("video",)
            for number, inputs in enumerate(kinds):
                tell("naming what is there", number, 3)
                told["classes"][inputs] = self._classes(take.video if take else clip.source, inputs)
            if self.shelf is not None:
                tell("comparing", 0, 1)
                embedded = self._embedded(clip, take)
                seen, heard = embedded.mean("video"), embedded.mean("audio") if take else None
                told["hits"] = self._near(self.shelf, seen if heard is None else heard)[:CLASSES]
                for kind, vector in (("picture", seen), ("take", heard)):
                    if vector is not None and self.shelf.points:
                        told["places"][kind] = self.shelf.place(vector)
            _answer(room, clip, "understand", told, tell)

        self._start(room, clip, "understand", work)

    def cancel(self, room: Session, values: Values) -> None:
        """Stop the job of the kind ``kind``."""
        job = room.jobs.get(str(values.get("kind")))
        if job is not None:
            self.line.cancel(job)

    def clear(self, room: Session, values: Values) -> None:
        """Delete the clip and everything made of it."""
        self.rooms.clear(room)

    def _start(self, room: Session, clip: Clip, kind: str, work: Callable[[ProgressFn], None]) -> None:
        def finish(tell: ProgressFn) -> None:
            try:
                work(tell)
            finally:
                if room.clip is not clip:  # cleared meanwhile: what was written since goes, too
                    shutil.rmtree(clip.folder, ignore_errors=True)

        with room.lock:
            job = room.jobs.get(kind)
            if job is not None and job.active:
                raise UserError("One thing after another: wait for the last one, or cancel it.")
            if room.clip is not clip:
                raise UserError(GONE)
            job = room.jobs[kind] = Job(kind, finish)
        self.line.add(job)

    def _shelf(self) -> LibraryView:
        if self.shelf is None:
            raise UserError("No library is open here.")
        return self.shelf

    def _decode(self, values: Values) -> DecodeConfig:
        own = self.maker.pipeline.config.decode
        steps = _whole(values, "steps", 1, 100) if own.num_steps and "steps" in values else None
        guidance = _number(values, "guidance", 0, 20) if "guidance" in values else None
        temperature = _number(values, "temperature", 0, 100) if "temperature" in values else None
        return decode_settings(own, steps, guidance, temperature)

    def _embedded(self, clip: Clip, take: Take | None) -> Embedded:
        """The windows of the picture, with those of a take's sound if there is one."""
        path = take.video if take else clip.source
        try:
            return self.maker.pipeline.embedder.embed_file(path)
        except ModelError as error:
            raise UserError(f"{str(error).capitalize()}.") from None
        except MediaError:
            if path.exists():
                raise
            raise UserError("This take is not here any more.") from None  # it was undone or removed since

    def _classes(self, path: Any, kind: Inputs) -> list[tuple[str, float]] | str:
        """The likeliest classes with their probabilities, or the reason why there are none."""
        try:
            classes = self.maker.pipeline.embedder.classifier[1].classes
        except ModelError:
            return "This model knows no classes."
        found = next(self.maker.pipeline.embedder.classify_files([path], kind))[1]
        if isinstance(found, str):
            return "It cannot be told."
        best = np.argsort(found[1])[::-1][:CLASSES]
        return [(classes[n], round(float(found[1][n]), 4)) for n in best]

    def _near(self, shelf: LibraryView, vector: NDArray[np.float32] | None) -> list[dict[str, Any]]:
        if vector is None:
            return []
        try:
            found = shelf.search(vector, HITS)
        except LibraryError:
            raise UserError("The library cannot be searched right now.") from None
        return [
            asdict(hit) | {"name": shelf.paths[hit.row].name, "label": shelf.labels[hit.row]} for hit in found
        ]


def _clip(room: Session) -> Clip:
    if room.clip is None:
        raise UserError("Choose a video or a picture first.")
    return room.clip


def _still(room: Session) -> None:
    """``UserError`` while a take is being made, perhaps from the one that would go."""
    job = room.jobs.get("make")
    if job is not None and job.active:
        raise UserError("A take is being made: wait for it, or cancel it.")


def _top(room: Session, values: Values) -> Take | None:
    """The newest of the track that is named, None if none is."""
    return room.track(values["track"]).takes[-1] if values.get("track") else None


def _name(take: Take | None) -> str:
    return take.id if take else ""


def _space(room: Session, count: int) -> None:
    if len(room.tracks) + count > MOST_TRACKS:
        raise UserError(f"There is room for {MOST_TRACKS} takes; remove some first.")


def _add(room: Session, clip: Clip, take: Take, tell: ProgressFn, track: TakeHistory | None = None) -> None:
    """Hand over a finished take, unless nobody wants it any more, or its clip or its track is gone by now."""
    with room.lock:
        try:
            tell("codec", 1, 1)
            if room.clip is not clip or (track is not None and track not in room.tracks):
                raise Cancelled
        except Cancelled:
            take.remove()
            raise
        if track is None:
            room.tracks.append(TakeHistory(secrets.token_urlsafe(8), [take]))
        else:
            track.takes.append(take)
            for old in track.takes[: -MOST_UNDO - 1]:
                track.takes.remove(old)
                old.remove()


def _answer(room: Session, clip: Clip, kind: str, answer: Any, tell: ProgressFn) -> None:
    with room.lock:
        tell("comparing", 1, 1)
        if room.clip is clip:
            room.answers[kind] = answer


def _number(values: Values, name: str, least: float, most: float) -> float:
    """A number that a request holds; ``UserError`` if it is none, or not from ``least`` to ``most``."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name.capitalize()} must be a number.")
    if not least <= value <= most:
        raise UserError(f"{name.capitalize()} must be from {least:g} to {most:g}.")
    return float(value)


def _whole(values: Values, name: str, least: int, most: int) -> int:
    value = _number(values, name, least, most)
    if value != int(value):
        raise UserError(f"{name.capitalize()} must be a whole number.")
    return int(value)


def _seed(values: Values) -> int:
    return _whole(values, "seed", 0, 2**32 - 1)
