"""The verbs of the studio: requests are checked here, and what takes time becomes a job of the queue."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vab.config import DecodeConfig
from vab.errors import SettingError
from vab.inference.embedder import Embedder
from vab.inference.embeddings import Embedded
from vab.library.table import LibraryError
from vab.media.container import MediaError
from vab.models.heads import Inputs
from vab.models.hub import ModelError
from vab.sampling.parallel import decode_settings
from vab.studio.library_view import LibraryView
from vab.studio.queue import Cancelled, Job, JobQueue, UserError
from vab.studio.sessions import Session, SessionStore, TakeHistory
from vab.studio.takes import MAX_NEW_TAKES, Take, TakeMaker
from vab.studio.uploads import Clip
from vab.utils.progress import StageProgress

MAX_TRACKS = 12  # of a session
MAX_UNDO_STEPS = 10  # of each track
MAX_HITS = 12  # sounds found in the library
MAX_CLASSES = 5  # shown, the most probable ones
MAX_SECONDS = 1e6  # of a time in a request
CLIP_GONE = (
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
    """The verbs, for the sessions of all visitors, with one model and perhaps a library."""

    def __init__(
        self, maker: TakeMaker, library: LibraryView | None = None, embedder: Embedder | None = None
    ) -> None:
        self.maker = maker
        self.library = library
        # What is compared with the library is embedded as its vectors were; by default by the pipeline's own.
        self.embedder = embedder
        self.queue = JobQueue()
        self.sessions = SessionStore(self.queue)
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

    def warm_up(self) -> None:
        """Let the first thing that is done be a take that nobody sees."""
        self.queue.add(Job("warm", lambda _: self.maker.warm_up()))

    def close(self) -> None:
        """End the work and remove all files."""
        self.queue.close()
        self.sessions.close()

    def look(self, session: Session, clip: Clip) -> None:
        """Look at a new clip before a take is asked for.

        ``answers["known"]`` then says whether the model knows what it shows, if the model can tell.
        """

        def work(progress: StageProgress) -> None:
            progress("looking", 0, 1)
            known = self.maker.look(clip)
            if known is not None:
                _set_answer(session, clip, "known", known.document(), progress)

        with suppress(UserError):  # another clip has come meanwhile, which is looked at in its turn
            self._start(session, clip, "look", work)

    def make(self, session: Session, values: Values) -> None:
        """Make ``count`` new takes."""
        clip = _need_clip(session)
        count = _integer(values, "count", 1, MAX_NEW_TAKES)
        seed = _seed(values)
        decode = self._decode(values)
        _check_space(session, count)

        def work(progress: StageProgress) -> None:
            for take in self.maker.new(clip, count, seed, decode, progress):
                _hand_over(session, clip, take, progress)

        self._start(session, clip, "make", work)

    def redo(self, session: Session, values: Values) -> None:
        """Make the seconds ``from`` to ``to`` of the take ``track`` anew; with ``rest``, all but them."""
        span = (_number(values, "from", 0, MAX_SECONDS), _number(values, "to", 0, MAX_SECONDS))
        inside = not values.get("rest")

        def make(clip: Clip, take: Take, seed: int, decode: DecodeConfig, progress: StageProgress) -> Take:
            return self.maker.redo(clip, take, span, inside, seed, decode, progress)

        self._change(session, values, make)

    def extend(self, session: Session, values: Values) -> None:
        """Make the take ``track`` longer by ``seconds``."""
        seconds = _number(values, "seconds", 0.1, 60)

        def make(clip: Clip, take: Take, seed: int, decode: DecodeConfig, progress: StageProgress) -> Take:
            return self.maker.extend(clip, take, seconds, seed, decode, progress)

        self._change(session, values, make)

    def _change(
        self,
        session: Session,
        values: Values,
        make: Callable[[Clip, Take, int, DecodeConfig, StageProgress], Take],
    ) -> None:
        """Start a job that makes a new version of a take by ``make(clip, take, seed, decode, progress)``."""
        clip = _need_clip(session)
        track = session.track(values.get("track"))
        decode = self._decode(values)
        take = track.takes[-1]
        # Each try differs, also after an undo; the same clicks give the same takes.
        seed = (_seed(values) + track.num_tries + 1) % 2**32

        def work(progress: StageProgress) -> None:
            try:
                new_take = make(clip, take, seed, decode, progress)
            except SettingError as error:  # of the span or the length
                raise UserError(str(error)) from None
            _hand_over(session, clip, new_take, progress, track)

        self._start(session, clip, "make", work)
        track.num_tries += 1

    def undo(self, session: Session, values: Values) -> None:
        """Return to the version of the take ``track`` before the last change."""
        with session.lock:
            _check_idle(session)
            track = session.track(values.get("track"))
            if len(track.takes) < 2:
                raise UserError("There is nothing to undo.")
            track.takes.pop().remove()

    def remove(self, session: Session, values: Values) -> None:
        """Delete the take ``track`` with all its versions."""
        with session.lock:
            _check_idle(session)
            track = session.track(values.get("track"))
            session.tracks.remove(track)
            for take in track.takes:
                take.remove()

    def own(self, session: Session, values: Values) -> None:
        """Make a take of the original sound of the upload."""
        clip = _need_clip(session)
        if not clip.has_sound:
            raise UserError("This clip came without sound.")
        _check_space(session, 1)

        def work(progress: StageProgress) -> None:
            _hand_over(session, clip, self.maker.place(clip, clip.sound(), "As it came", progress), progress)

        self._start(session, clip, "make", work)

    def place(self, session: Session, values: Values) -> None:
        """Make a take of the sound ``row`` of the library, from ``start`` on."""
        clip = _need_clip(session)
        library = self._need_library()
        row = _integer(values, "row", 0, len(library.paths) - 1)
        start = _number(values, "start", 0, MAX_SECONDS)
        _check_space(session, 1)

        def work(progress: StageProgress) -> None:
            try:
                sound = library.sound(row, start, clip.seconds)
            except MediaError:
                raise UserError("This file of the library cannot be read any more.") from None
            _hand_over(
                session, clip, self.maker.place(clip, sound, library.paths[row].name, progress), progress
            )

        self._start(session, clip, "make", work)

    def find(self, session: Session, values: Values) -> None:
        """Find the sounds of the library nearest to the take ``track``, or to the video without one."""
        clip = _need_clip(session)
        library = self._need_library()
        take = _newest_take(session, values)

        def work(progress: StageProgress) -> None:
            progress("listening" if take else "looking", 0, 1)
            embedded = self._embedded(clip, take)
            hits = self._nearest(library, embedded.mean("audio" if take else "video"))
            _set_answer(session, clip, "find", {"by": _id_of(take), "hits": hits}, progress)

        self._start(session, clip, "find", work)

    def understand(self, session: Session, values: Values) -> None:
        """Classify video, take ``track`` and both; find the nearest sounds and the places on the map."""
        clip = _need_clip(session)
        take = _newest_take(session, values)

        def work(progress: StageProgress) -> None:
            answer: dict[str, Any] = {"by": _id_of(take), "classes": {}, "hits": [], "places": {}}
            # 1. Classes from each modality that there is.
            kinds: tuple[Inputs, ...] = ("video", "audio", "both") if take else ("video",)
            for number, inputs in enumerate(kinds):
                progress("naming what is there", number, 3)
                answer["classes"][inputs] = self._classes(take.video if take else clip.source, inputs)
            # 2. The nearest sounds, and where the clip and the take are on the map of the library.
            if self.library is not None:
                progress("comparing", 0, 1)
                embedded = self._embedded(clip, take)
                video = embedded.mean("video")
                audio = embedded.mean("audio") if take else None
                answer["hits"] = self._nearest(self.library, video if audio is None else audio)[:MAX_CLASSES]
                for kind, vector in (("picture", video), ("take", audio)):
                    if vector is not None and self.library.points:
                        answer["places"][kind] = self.library.place(vector)
            _set_answer(session, clip, "understand", answer, progress)

        self._start(session, clip, "understand", work)

    def cancel(self, session: Session, values: Values) -> None:
        """Stop the job of the kind ``kind``."""
        job = session.jobs.get(str(values.get("kind")))
        if job is not None:
            self.queue.cancel(job)

    def clear(self, session: Session, values: Values) -> None:
        """Delete the clip and everything made of it."""
        self.sessions.clear(session)

    def _start(self, session: Session, clip: Clip, kind: str, work: Callable[[StageProgress], None]) -> None:
        """Queue a job of a kind of which none is active; its files go if the clip is gone meanwhile."""

        def finish(progress: StageProgress) -> None:
            try:
                work(progress)
            finally:
                if session.clip is not clip:  # cleared meanwhile: what was written since goes, too
                    shutil.rmtree(clip.folder, ignore_errors=True)

        with session.lock:
            job = session.jobs.get(kind)
            if job is not None and job.active:
                raise UserError("One thing after another: wait for the last one, or cancel it.")
            if session.clip is not clip:
                raise UserError(CLIP_GONE)
            job = session.jobs[kind] = Job(kind, finish)
        self.queue.add(job)

    def _need_library(self) -> LibraryView:
        if self.library is None:
            raise UserError("No library is open here.")
        return self.library

    def _decode(self, values: Values) -> DecodeConfig:
        """The model's own settings with those of the request; FoleyGen has no steps."""
        own = self.maker.pipeline.config.decode
        steps = _integer(values, "steps", 1, 100) if own.num_steps and "steps" in values else None
        guidance = _number(values, "guidance", 0, 20) if "guidance" in values else None
        temperature = _number(values, "temperature", 0, 100) if "temperature" in values else None
        return decode_settings(own, steps, guidance, temperature)

    def _embedded(self, clip: Clip, take: Take | None) -> Embedded:
        """Embed the windows of the video, and of the sound of a take if there is one."""
        path = take.video if take else clip.source
        try:
            return (self.embedder or self.maker.pipeline.embedder).embed_file(path)
        except ModelError as error:
            raise UserError(f"{str(error).capitalize()}.") from None
        except MediaError:
            if path.exists():
                raise
            raise UserError("This take is not here any more.") from None  # it was undone or removed since

    def _classes(self, path: Any, kind: Inputs) -> list[tuple[str, float]] | str:
        """The most probable classes with their probabilities, or the reason why there are none."""
        try:
            classes = self.maker.pipeline.embedder.classifier[1].classes
        except ModelError:
            return "This model knows no classes."
        _, result = next(self.maker.pipeline.embedder.classify_files([path], kind))
        if isinstance(result, str):
            return "It cannot be told."
        probabilities = result.scores
        best = np.argsort(probabilities)[::-1][:MAX_CLASSES]
        return [(classes[n], round(float(probabilities[n]), 4)) for n in best]

    def _nearest(self, library: LibraryView, vector: NDArray[np.float32] | None) -> list[dict[str, Any]]:
        if vector is None:
            return []
        try:
            hits = library.search(vector, MAX_HITS)
        except LibraryError:
            raise UserError("The library cannot be searched right now.") from None
        return [
            asdict(hit) | {"name": library.paths[hit.row].name, "label": library.labels[hit.row]}
            for hit in hits
        ]


def _need_clip(session: Session) -> Clip:
    if session.clip is None:
        raise UserError("Choose a video or a picture first.")
    return session.clip


def _check_idle(session: Session) -> None:
    """``UserError`` while a take is being made, perhaps from the one that would go."""
    job = session.jobs.get("make")
    if job is not None and job.active:
        raise UserError("A take is being made: wait for it, or cancel it.")


def _newest_take(session: Session, values: Values) -> Take | None:
    """The newest take of the track named in a request; None if it names none."""
    return session.track(values["track"]).takes[-1] if values.get("track") else None


def _id_of(take: Take | None) -> str:
    return take.id if take else ""


def _check_space(session: Session, count: int) -> None:
    if len(session.tracks) + count > MAX_TRACKS:
        raise UserError(f"There is room for {MAX_TRACKS} takes; remove some first.")


def _hand_over(
    session: Session, clip: Clip, take: Take, progress: StageProgress, track: TakeHistory | None = None
) -> None:
    """Put a finished take into the session; ``Cancelled`` if it, its clip or its track is gone by now."""
    with session.lock:
        try:
            progress("codec", 1, 1)  # the last moment to cancel: the session is locked
            if session.clip is not clip or (track is not None and track not in session.tracks):
                raise Cancelled
        except Cancelled:
            take.remove()
            raise
        if track is None:
            session.tracks.append(TakeHistory(secrets.token_urlsafe(8), [take]))
        else:
            track.takes.append(take)
            for old in track.takes[: -MAX_UNDO_STEPS - 1]:
                track.takes.remove(old)
                old.remove()


def _set_answer(session: Session, clip: Clip, kind: str, answer: Any, progress: StageProgress) -> None:
    with session.lock:
        progress("comparing", 1, 1)
        if session.clip is clip:
            session.answers[kind] = answer


def _number(values: Values, name: str, low: float, high: float) -> float:
    """Read a number of a request; ``UserError`` if it is none, or not from ``low`` to ``high``."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name.capitalize()} must be a number.")
    if not low <= value <= high:
        raise UserError(f"{name.capitalize()} must be from {low:.12g} to {high:.12g}.")
    return float(value)


def _integer(values: Values, name: str, low: int, high: int) -> int:
    value = _number(values, name, low, high)
    if value != int(value):
        raise UserError(f"{name.capitalize()} must be a whole number.")
    return int(value)


def _seed(values: Values) -> int:
    return _integer(values, "seed", 0, 2**32 - 1)
