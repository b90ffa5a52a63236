"""The verbs of the studio: requests are checked here, and what takes time becomes a job of the queue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vab.config import DecodeConfig
from vab.errors import SettingError, first_line
from vab.inference.embedder import Embedder
from vab.inference.embeddings import Embedded, Kind
from vab.library.table import LibraryError
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.models.heads import Inputs
from vab.models.hub import ModelError
from vab.sampling.parallel import decode_settings
from vab.studio import arrangement as arrangements
from vab.studio import export as exports
from vab.studio.arrangement import MAX_NEW_TAKES, MAX_SECONDS, Arrangement, Values, integer, number, text
from vab.studio.library_view import MAX_ROW, LibraryView, SoundHit
from vab.studio.mix import RATE, read_sound
from vab.studio.project import UNREADABLE, Project, Projects, Step, keeping
from vab.studio.queue import Job, JobQueue, UserError
from vab.studio.state import state_of
from vab.studio.takes import Take, TakeMaker
from vab.studio.uploads import Clip, UploadError, prepare_sound
from vab.timing.curve import TimingCurve
from vab.utils.files import scratch_folder
from vab.utils.progress import StageProgress

MAX_HITS = 12  # sounds found in the library by another sound or a picture
MAX_FOUND = 60  # by words or a label
MAX_CLASSES = 5  # shown, the most probable ones


class StudioService:
    """The verbs, for all projects of a folder, with one model and perhaps a library."""

    def __init__(
        self,
        maker: TakeMaker,
        projects: Projects,
        library: LibraryView | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        self.maker = maker
        self.projects = projects
        self.library = library
        # What is compared with the library is embedded as its vectors were; by default by the pipeline's own.
        self.embedder = embedder
        self.queue = JobQueue()
        self.verbs: dict[str, Callable[[Project, Values], None]] = {
            "make": self.make,
            "remake": self.remake,
            "extend": self.extend,
            "own": self.own,
            "place": self.place,
            "layer": self.layer,
            "add": self.add,
            "remove": self.remove,
            "order": self.order,
            "set": self.set,
            "rename": self.rename,
            "undo": self.undo,
            "redo": self.redo,
            "go": self.go,
            "find": self.find,
            "understand": self.understand,
            "export": self.export,
            "cancel": self.cancel,
        }

    def warm_up(self) -> None:
        """Let the first thing that is done be a take that nobody sees."""
        self.queue.add(Job("warm", lambda _: self.maker.warm_up()))

    def close(self) -> None:
        """End the work; what was made until now is on the disk."""
        self.queue.close()
        self.projects.close()

    # ---- projects

    def default_settings(self) -> dict[str, Any]:
        """The settings of a new project: the model's own."""
        decode = self.maker.pipeline.config.decode
        return {
            "count": 2,
            "seed": 0,
            "steps": decode.num_steps or None,
            "guidance": decode.guidance_scale,
            "temperature": decode.mask_temperature if decode.num_steps else decode.sampling_temperature,
            "timing": "motion" if self.maker.follows_motion else "none",
        }

    def create(self, clip: Clip, name: str) -> Project:
        """Make a project of a clip, and look at it. ``OSError``, ``UserError``."""
        project = self.projects.create(clip, name, self.default_settings())
        self._look(project)
        return project

    def open(self, name: str) -> Project:
        """A project by the name of its folder; its clip is looked at when it is opened. ``ProjectError``."""
        project = self.projects.open(name)
        if "look" not in project.jobs:  # asked without the lock: nobody waits while something is written
            with project.lock:
                if "look" not in project.jobs:
                    self._look(project)
        return project

    def _look(self, project: Project) -> None:
        """Look at a clip before a take is asked for.

        ``answers["known"]`` then says whether the model knows what it shows, if the model can tell.
        """

        def work(progress: StageProgress) -> None:
            progress("looking", 0, 1)
            try:
                known = self.maker.look(project.clip)
            except MediaError:
                raise UserError(UNREADABLE) from None
            if known is not None:
                _set_answer(project, "known", known.document(), progress)

        self._start(project, "look", work)

    def state(self, project: Project) -> dict[str, Any]:
        """All that the page of a project shows."""
        return state_of(project, self.queue)

    # ---- sounds by the model

    def make(self, project: Project, values: Values) -> None:
        """Make ``count`` new takes. The settings of the request become those of the arrangement.

        Those that are changed before a take is there stay as they are then. Of takes that are layers already
        others are made, by the next seed.
        """
        before = project.arrangement["settings"]
        settings = arrangements.checked_settings(before, values)
        count = integer(settings, "count", 1, MAX_NEW_TAKES)
        decode = self._decode(settings)
        _check_space(project, count)
        timing = self._timing(project, settings, project.clip.seconds)
        there = [project.sound(layer["sound"]) for layer in project.arrangement["layers"]]
        is_made = partial(self.maker.is_made, project.clip, decode, timing)
        while any(is_made(settings["seed"], sound) for sound in there):
            settings["seed"] = (settings["seed"] + 1) % 2**32

        def work(progress: StageProgress) -> None:
            step: Step | None = None
            takes = self.maker.new(project.clip, count, settings["seed"], decode, progress, timing)
            for done, take in enumerate(takes):
                did = f"{done + 1} takes made" if done else "1 take made"

                def add(
                    now: Arrangement, name: str, about: Values, is_first: bool = not done
                ) -> dict[str, Any]:
                    if now["settings"] == before:
                        now = {**now, "settings": settings}
                    return arrangements.with_take(now, project.document["sounds"], name, about, is_first)

                step = self._hand_over(project, take, "take", did, add, progress, amended=step)

        self._start(project, "make", work)

    def remake(self, project: Project, values: Values) -> None:
        """Make the seconds ``from`` to ``to`` of a layer's sound anew; with ``rest``, all but them."""
        span = (number(values, "from", 0, MAX_SECONDS), number(values, "to", 0, MAX_SECONDS))
        inside = not values.get("rest")
        what = "a part" if inside else "the rest"

        def make(take: Take, seed: int, decode: DecodeConfig, *how: Any) -> Take:
            return self.maker.remake(project.clip, take, span, inside, seed, decode, *how)

        self._edit(project, values, f"{what} remade", 0.0, make)

    def extend(self, project: Project, values: Values) -> None:
        """Make a layer's sound longer by ``seconds``."""
        seconds = number(values, "seconds", 0.1, 60)

        def make(take: Take, seed: int, decode: DecodeConfig, *how: Any) -> Take:
            return self.maker.extend(project.clip, take, seconds, seed, decode, *how)

        self._edit(project, values, "extended", seconds, make)

    def _edit(
        self,
        project: Project,
        values: Values,
        did: str,
        longer: float,
        make: Callable[..., Take],
    ) -> None:
        """Start a job that makes the sound of a layer anew by ``make``."""
        layer = arrangements.layer_of(project.arrangement, values.get("layer"))
        sound = project.sound(layer["sound"])
        if not sound["editable"]:
            raise UserError("The model cannot go on from this sound.")
        settings = arrangements.checked_settings(project.arrangement["settings"], values)
        decode = self._decode(settings)
        shift = layer["offset"] - layer["start"]  # of the sound against the clip
        timing = self._timing(project, settings, sound["seconds"] + longer, shift)
        name = layer["sound"]

        def replaced(now: Arrangement, new: str, about: Values) -> dict[str, Any]:
            there = arrangements.layer_of(now, layer["id"])
            whole = longer > 0 or there["stop"] >= sound["seconds"]  # it ends where the sound ends, then too
            stop = about["seconds"] if whole else min(there["stop"], about["seconds"])
            called = arrangements.edited_name(there["name"], sound["title"], about["title"])
            return arrangements.with_layer(now, {**there, "name": called, "sound": new, "stop": stop})

        def work(progress: StageProgress) -> None:
            # Each try differs, also after an undo; the same clicks give the same takes.
            tries = project.count_try(name)
            seed = (settings["seed"] + tries) % 2**32
            try:
                take = make(project.take(name), seed, decode, progress, timing, shift)
            except SettingError as error:  # of the span or the length
                raise UserError(str(error)) from None
            self._hand_over(
                project, take, sound["kind"], f"{did}: {layer['name']}", replaced, progress, name, tries
            )

        self._start(project, "make", work)

    # ---- sounds that are there

    def own(self, project: Project, values: Values) -> None:
        """Make a layer of the sound that the clip came with."""
        if not project.clip.has_sound:
            raise UserError("This clip came without sound.")
        _check_space(project, 1)

        def work(progress: StageProgress) -> None:
            with scratch_folder("own") as folder:
                wav = folder / "own.wav"
                try:
                    unwanted = project.jobs["make"].cancelled.is_set
                    prepare_sound(project.clip.source, wav, project.clip.seconds, unwanted=unwanted)
                except UploadError as error:
                    progress("reading", 0, 1)  # it ends here if it was cancelled
                    raise UserError(str(error)) from None
                heard = read_sound(wav)
            take = self.maker.place(project.clip, heard, "As it came", progress)
            self._hand_over(project, take, "own", "own sound added", arrangements.beside, progress)

        self._start(project, "make", work)

    def place(self, project: Project, values: Values) -> None:
        """Make a layer of the sound ``row`` of the library, from ``start`` on."""
        library = self._need_library()
        row = integer(values, "row", 0, MAX_ROW)
        name = library.path(row).name
        start = number(values, "start", 0, MAX_SECONDS)
        _check_space(project, 1)

        def work(progress: StageProgress) -> None:
            try:
                heard = library.heard(row, start, project.clip.seconds)
            except MediaError:
                raise UserError("This file of the library cannot be read any more.") from None
            take = self.maker.place(project.clip, heard, name, progress)
            self._hand_over(project, take, "library", f"{take.title} added", arrangements.beside, progress)

        self._start(project, "make", work)

    def add_file(self, project: Project, wav: Path, title: str) -> None:
        """Make a layer of a sound of the user, which was prepared as ``wav``."""
        _check_space(project, 1)
        heard = read_sound(wav)

        def work(progress: StageProgress) -> None:
            take = self.maker.place(project.clip, heard, title or "Sound", progress)
            self._hand_over(project, take, "file", f"{take.title} added", arrangements.beside, progress)

        self._start(project, "make", work)

    def _hand_over(
        self,
        project: Project,
        take: Take,
        kind: str,
        did: str,
        how: Callable[[Arrangement, str, Values], dict[str, Any]],
        progress: StageProgress,
        parent: str | None = None,
        num_tries: int = 0,
        amended: Step | None = None,
    ) -> Step:
        """Put a finished sound on the disk, then into the project: its step in the history."""
        about = take.about(kind, parent, num_tries)
        name = project.write_sound(take)
        try:
            with project.lock:
                progress("codec", 1, 1)  # the last moment to cancel: the project is locked
                since = project.jobs["make"].since
                return project.change(did, lambda now: how(now, name, about), {name: about}, amended, since)
        except BaseException:
            if name not in project.document["sounds"]:
                project.forget_sound(name)
            raise

    # ---- the arrangement

    def layer(self, project: Project, values: Values) -> None:
        """Change fields of a layer."""
        with project.lock:
            before = arrangements.layer_of(project.arrangement, values.get("layer"))
            after = arrangements.changed(before, values, project.document["sounds"])
            if after == before:
                return
            did = next(word for name, word in arrangements.EDITS.items() if after[name] != before[name])
            if did in ("muted", "solo") and not after["mute" if did == "muted" else "solo"]:
                did = {"muted": "heard again", "solo": "solo off"}[did]
            project.change(f"{did}: {after['name']}", lambda now: arrangements.with_layer(now, after))

    def add(self, project: Project, values: Values) -> None:
        """Add a layer of a sound that is there."""
        name = values.get("sound")
        sound = project.sound(name if isinstance(name, str) else "")
        with project.lock:
            layer = arrangements.new_layer(str(name), sound)
            layer = arrangements.changed(layer, values, project.document["sounds"])
            project.change(f"layer added: {layer['name']}", lambda now: arrangements.plus(now, layer))

    def remove(self, project: Project, values: Values) -> None:
        """Remove a layer; undo brings it back."""
        with project.lock:
            layer = arrangements.layer_of(project.arrangement, values.get("layer"))
            rest = [other for other in project.arrangement["layers"] if other is not layer]
            project.change(f"removed: {layer['name']}", lambda now: {**now, "layers": rest})

    def order(self, project: Project, values: Values) -> None:
        """Put the layers into another order."""
        with project.lock:
            new = arrangements.ordered(project.arrangement, values.get("layers"))
            project.change("layers reordered", lambda _: new)

    def set(self, project: Project, values: Values) -> None:
        """Replace the marks or the curve, or change settings."""
        with project.lock:
            now = arrangements.as_seen(project.arrangement, values)
            new: dict[str, Any] = {}
            if "marks" in values:
                new["marks"] = arrangements.checked_marks(values["marks"])
            if "curve" in values:
                new["curve"] = arrangements.checked_curve(values["curve"])
            if "settings" in values:
                new["settings"] = arrangements.checked_settings(now["settings"], values["settings"])
            new = {name: value for name, value in new.items() if value != now[name]}
            if new:
                # Settings that are changed one after another are one step.
                did = f"{' and '.join(new)} changed"
                last = project.document["history"][-1]
                again = did == "settings changed" == last["did"] and now is last["arrangement"]
                project.change(did, lambda now: {**now, **new}, amended=last if again else None)

    def rename(self, project: Project, values: Values) -> None:
        """Give the project another name."""
        project.rename(text(values, "name"))

    def undo(self, project: Project, values: Values) -> None:
        """Go one step back in the history."""
        with project.lock:
            if project.document["at"] < 1:
                raise UserError("There is nothing to undo.")
            project.go(project.document["at"] - 1)

    def redo(self, project: Project, values: Values) -> None:
        """Go one step forward again."""
        with project.lock:
            if project.document["at"] + 1 >= len(project.document["history"]):
                raise UserError("There is nothing to redo.")
            project.go(project.document["at"] + 1)

    def go(self, project: Project, values: Values) -> None:
        """Go to the step ``at`` of the history."""
        project.go(integer(values, "at", 0, len(project.document["history"]) - 1))

    def find(self, project: Project, values: Values) -> None:
        """Find sounds of the library: nearest to the picture or to a layer's sound, or by words or label.

        ``by``: ``picture``, the id of a layer, ``text:WORDS`` or ``label:NAME``.
        """
        library = self._need_library()
        by = values.get("by", "picture")
        way, colon, wanted = str(by).partition(":")
        if colon and way in ("text", "label"):
            lookup = library.words if way == "text" else library.labelled
            self._start(project, "find", partial(self._look_up, project, by, lookup, wanted), False)
            return
        kind: Kind = "video" if by == "picture" else "audio"
        path = project.clip.source
        if by != "picture":
            path = project.path(arrangements.layer_of(project.arrangement, by)["sound"])

        def work(progress: StageProgress) -> None:
            progress("looking" if kind == "video" else "listening", 0, 1)
            hits = self._nearest(library, self._embedded(path).mean(kind))
            _set_answer(project, "find", {"by": by, "hits": hits}, progress)

        self._start(project, "find", work)

    def _look_up(
        self,
        project: Project,
        by: str,
        lookup: Callable[[str, int], list[SoundHit]],
        wanted: str,
        progress: StageProgress,
    ) -> None:
        """The job that finds sounds by what is written of them."""
        progress("looking", 0, 1)
        try:
            hits = lookup(wanted, MAX_FOUND + 1)
        except LibraryError as error:
            raise UserError(f"{first_line(error).capitalize()}.") from None
        library = self._need_library()
        found = [_hit(library, hit) for hit in hits[:MAX_FOUND]]
        _set_answer(project, "find", {"by": by, "hits": found, "more": len(hits) > MAX_FOUND}, progress)

    def nearest_to(self, project: Project, wav: Path) -> Job:
        """The job that finds the sounds nearest to ``wav``; they are its ``result``."""
        library = self._need_library()

        def work(progress: StageProgress) -> None:
            progress("listening", 0, 1)
            job.result = self._nearest(library, self._embedded(wav).mean("audio"))

        job = self._start(project, "find", work)
        return job

    def understand(self, project: Project, values: Values) -> None:
        """Classify the picture, the sound of a layer and both; find the nearest sounds."""
        layer = values.get("layer")
        sound = None if layer is None else arrangements.layer_of(project.arrangement, layer)["sound"]

        def work(progress: StageProgress) -> None:
            answer: dict[str, Any] = {"by": layer, "classes": {}, "hits": []}
            with scratch_folder("film") as folder:
                path = project.clip.source if sound is None else _film(project, sound, folder)
                # 1. Classes from each modality that there is.
                kinds: tuple[Inputs, ...] = ("video",) if sound is None else ("video", "audio", "both")
                for done, inputs in enumerate(kinds):
                    progress("naming what is there", done, 3)
                    answer["classes"][inputs] = self._classes(path, inputs)
                # 2. The nearest sounds.
                if self.library is not None:
                    progress("comparing", 0, 1)
                    embedded = self._embedded(path)
                    audio = None if sound is None else embedded.mean("audio")
                    nearest = self._nearest(self.library, embedded.mean("video") if audio is None else audio)
                    answer["hits"] = nearest[:MAX_CLASSES]
            _set_answer(project, "understand", answer, progress)

        self._start(project, "understand", work)

    def export(self, project: Project, values: Values) -> None:
        """Write the film, the mix, the stems or the markers into the folder of exports."""
        what = text(values, "what")
        given: dict[str, Any] = {}
        for name in ("format", "name", "past_end"):
            if values.get(name) is not None:
                given[name] = text(values, name)
        if values.get("channels") is not None:
            given["channels"] = integer(values, "channels", 1, 2)
        if values.get("loudness") is not None:
            given["loudness"] = number(values, "loudness", -60, 0)

        def work(progress: StageProgress) -> None:
            try:
                with keeping():
                    made = exports.export(project.folder, project.document, what, **given, progress=progress)
            except SettingError as error:
                raise UserError(str(error)) from None
            except MediaError:
                raise UserError(" ".join(project.problems()) or UNREADABLE) from None
            answer = {"files": [path.name for path in made.files], "notes": made.notes}
            project.answers["export"] = answer

        self._start(project, "export", work, False)

    def cancel(self, project: Project, values: Values) -> None:
        """Stop the job of the kind ``kind``."""
        job = project.jobs.get(str(values.get("kind")))
        if job is not None:
            self.queue.cancel(job)

    def delete(self, name: str) -> None:
        """Delete a project by the name of its folder, also one that cannot be opened. ``ProjectError``."""
        for job in self.projects.jobs(name):
            self.queue.cancel(job)
        self.projects.delete(name)

    def _start(
        self, project: Project, kind: str, work: Callable[[StageProgress], None], by_model: bool = True
    ) -> Job:
        """Queue a job of a kind of which none is active."""
        with project.lock:
            job = project.jobs.get(kind)
            if job is not None and job.active:
                raise UserError("One thing after another: wait for the last one, or cancel it.")
            job = project.jobs[kind] = Job(kind, work, since=project.step, by_model=by_model)
        self.queue.add(job)
        return job

    def _need_library(self) -> LibraryView:
        if self.library is None:
            raise UserError("No library is open here.")
        return self.library

    def _decode(self, settings: Values) -> DecodeConfig:
        """The model's own settings with those of an arrangement; FoleyGen has no steps."""
        own = self.maker.pipeline.config.decode
        steps = settings.get("steps") if own.num_steps else None
        return decode_settings(own, steps, settings.get("guidance"), settings.get("temperature"))

    def _timing(
        self, project: Project, settings: Values, seconds: float, shift: float = 0.0
    ) -> TimingCurve | str:
        """What the model is told of a sound that lies ``shift`` seconds after the start of the clip."""
        curve = project.arrangement["curve"]
        if curve is not None and shift:
            curve = {kind: [[time - shift, value] for time, value in curve[kind]] for kind in curve}
        try:
            return self.maker.timing(settings.get("timing", "none"), curve, seconds)
        except SettingError as error:
            raise UserError(str(error)) from None

    def _embedded(self, path: Path) -> Embedded:
        """Embed the windows of a film or a sound."""
        try:
            return (self.embedder or self.maker.pipeline.embedder).embed_file(path)
        except ModelError as error:
            raise UserError(f"{str(error).capitalize()}.") from None
        except MediaError:
            if path.exists():
                raise
            raise UserError("This sound is not here any more.") from None

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
        return [_hit(library, hit) for hit in hits]


def _hit(library: LibraryView, hit: SoundHit) -> dict[str, Any]:
    """A hit as the page shows it."""
    return asdict(hit) | {"name": library.path(hit.row).name, "label": library.labels[hit.row]}


def _check_space(project: Project, count: int) -> None:
    arrangements.with_layers({}, [*project.arrangement["layers"], *[{}] * count])


def _set_answer(project: Project, kind: str, answer: Any, progress: StageProgress) -> None:
    with project.lock:
        progress("comparing", 1, 1)
        project.answers[kind] = answer


def _film(project: Project, sound: str, folder: Path) -> Path:
    """The picture of a project with one of its sounds, to be judged by both."""
    heard = read_sound(project.path(sound)).mean(0, dtype=np.float32)
    with MediaFile(project.clip.picture) as picture:
        picture.mux(heard, RATE, folder / "film.mp4")
    return folder / "film.mp4"
