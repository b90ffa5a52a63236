"""Kill a real studio again and again while somebody works in it: is anything lost that was shown?

    python recipes/studio_kills.py [N] [--model MODEL] [--seed SEED]

A life of the server ends by SIGKILL at a random moment. Meanwhile a user makes projects and takes, remakes
parts, moves and removes layers, undoes and redoes. After each kill all projects are opened again: every
sound that an answer of the server had shown must be there, whole, with the same samples. Exits with 1 if one
is not.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import multiprocessing
import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vab.inference.pipeline import VABPipeline
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.studio.mix import RATE
from vab.studio.project import Projects
from vab.studio.server import make_app
from vab.studio.service import StudioService
from vab.studio.takes import TakeMaker
from vab.web.access import grant, listen
from vab.web.server import serve

MAX_LIFE = 4.0  # seconds from the server's first answer to its end, at most
LIVES_OF_PROJECT = 4  # then another one is made
MAX_STEPS = 80  # the same, before the history is full and its first steps go


class Killed(Exception):
    """The server does not answer any more."""


class User:
    """Somebody who works in the studio, and remembers what it showed."""

    def __init__(self, clip: bytes, projects: Path, chance: random.Random) -> None:
        self.clip = clip
        self.projects = projects
        self.chance = chance
        self.port = 0
        self.project = ""
        self.lives = 0  # of the project
        self.shown: dict[tuple[str, str], float] = {}  # seconds of each sound, by project and its id
        self.heard: dict[tuple[str, str], str] = {}  # a hash of those that were fetched
        self.layers: list[Any] = []  # as they were shown last
        self.is_undone = False
        self.is_busy = False  # a sound was being made when it was seen last
        self.num_answers = 0

    def ask(self, path: str, body: bytes | None = None, name: str = "") -> bytes:
        """The answer to a request; ``Killed`` if there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {"File-Name": name} if name else {}
            connection.request("GET" if body is None else "POST", path, body, headers)
            reply = connection.getresponse()
            content = reply.read()
        except (OSError, http.client.HTTPException):
            raise Killed from None
        finally:
            connection.close()
        if reply.status not in (200, 409):
            raise AssertionError(f"{path}: {reply.status} {content[:300]!r}")
        self.num_answers += 1
        return content

    def state(self, verb: str | None = None, **values: Any) -> Any:
        """The state of the project, after a verb; what it shows is remembered."""
        path = f"/projects/{self.project}/" + ("state" if verb is None else f"do/{verb}")
        state = json.loads(self.ask(path, None if verb is None else json.dumps(values).encode()))
        for sound, about in state.get("sounds", {}).items():
            self.shown[self.project, sound] = about["seconds"]
        self.layers = state.get("arrangement", {}).get("layers", self.layers)
        return state

    def begin(self) -> None:
        """Make another project if there is none, or the last one is old."""
        if not self.project or self.lives >= LIVES_OF_PROJECT:
            state = json.loads(self.ask("/projects", self.clip, "clip.mp4"))
            self.project, self.lives, self.is_undone = state["project"]["id"], 0, False
            self.layers = []
            self.state("make", count=1, steps=1)
            while not self.layers:
                self.state()
                time.sleep(0.01)

    def work(self) -> None:
        """Do one thing after another until the server is gone."""
        self.begin()
        self.lives += 1
        while True:
            state = self.state()
            busy = state["jobs"].get("make", {}).get("state") in ("waiting", "working")
            self.is_busy = busy
            layers = state["arrangement"]["layers"]
            if state["at"] > MAX_STEPS:
                self.project = ""
                self.begin()
            elif busy:
                time.sleep(0.01)
            elif self.is_undone or state["can_redo"]:  # a change would drop what was undone
                self.state("redo")
                self.is_undone = False
            elif not layers or self.chance.random() < 0.3:
                count = self.chance.randint(1, 3)
                self.state("make", count=count, seed=self.chance.randrange(2**32), steps=1)
            else:
                self.change(self.chance.choice(layers), state)

    def change(self, layer: dict[str, Any], state: Any) -> None:
        """Do something at random with a layer."""
        name = layer["id"]
        what = self.chance.random()
        if what < 0.3:
            self.state("remake", layer=name, steps=1, **{"from": 0.2, "to": self.chance.uniform(0.3, 0.9)})
        elif what < 0.6:
            self.state("layer", layer=name, offset=self.chance.uniform(-1, 1), mute=not layer["mute"])
        elif what < 0.7:
            self.state("remove", layer=name)
        elif what < 0.8:
            self.state("own")
        elif state["can_undo"]:
            self.is_undone = True
            self.state("undo")

    def check(self, everything: bool) -> list[str]:
        """Sentences on what was shown and is not there, or is damaged, in a server that was started again.

        Of the last project, or of ``everything`` that was ever made.
        """
        lost = []
        listed = {entry["id"]: entry["problem"] for entry in json.loads(self.ask("/projects"))}
        lost += [f"{name}: {problem}" for name, problem in listed.items() if problem]
        for project in {name for name, _ in self.shown if everything or name == self.project}:
            state = json.loads(self.ask(f"/projects/{project}/state"))
            lost += [f"{project}: {problem}" for problem in state.get("problems", [state.get("error")])]
            known = state.get("sounds", {})
            for (where, sound), seconds in self.shown.items():
                if where == project and sound not in known:
                    lost.append(f"{project}: the sound {sound} is not there")
                elif where == project:
                    lost += self._listen(project, sound, seconds)
        # The layers that were shown last are a step of the history, or part of one to which a take was added.
        if self.project:
            document = json.loads((self.projects / self.project / "project.json").read_bytes())
            steps = [step["arrangement"]["layers"] for step in document["history"]]
            if not any(all(layer in step for layer in self.layers) for step in steps):
                lost.append(f"{self.project}: the layers that were shown last are not there")
        return lost

    def _listen(self, project: str, sound: str, seconds: float) -> list[str]:
        data = self.ask(f"/projects/{project}/sounds/{sound}.wav")
        try:
            with MediaFile(data) as file:
                length = sum(block.shape[1] for block in file.channel_blocks(0.0, RATE, "mono"))
        except MediaError:
            length = 0
        now = hashlib.sha256(data).hexdigest()
        before = self.heard.setdefault((project, sound), now)
        if length != round(seconds * RATE) or before != now:
            return [f"{project}: the sound {sound} is not whole, or another one"]
        return []


def be_server(pipeline: VABPipeline, projects: Path, listener: socket.socket, log: Path) -> None:
    """What `vab studio` does once it has loaded the model."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    service = StudioService(TakeMaker(pipeline), Projects(projects))
    access = grant(listener, "127.0.0.1")
    serve(make_app(service, "vab-tiny", access), listener, access)


def start(pipeline: VABPipeline, user: User, projects: Path, log: Path) -> Any:
    """A new server; it is listening. Forked, as to load a model takes longer than most lives."""
    with listen("127.0.0.1", 0) as listener:
        user.port = listener.getsockname()[1]
        context = multiprocessing.get_context("fork")
        process = context.Process(target=be_server, args=(pipeline, projects, listener, log))
        process.start()
    return process


def killed(process: Any, seconds: float, work: Callable[[], None]) -> None:
    """Work until the server is killed after so many seconds."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    with suppress(Killed):
        work()
    timer.join()
    process.join()


def write_clip(path: Path) -> bytes:
    """A second of a moving bar with noise, as a file."""
    frames = np.zeros((10, 48, 64, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[:, 6 * number : 6 * number + 4] = 255
    sound = 0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    with MediaFile(frames, fps=10) as film:
        film.mux(sound, RATE, path)
    return path.read_bytes()


def main() -> int:
    """Run and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kills", type=int, nargs="?", default=100, metavar="N")
    parser.add_argument("--model", default="vab-tiny")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()

    torch.set_num_threads(1)  # a fork takes no threads along
    pipeline = VABPipeline.from_pretrained(chosen.model, device="cpu", dtype="float32")
    chance = random.Random(chosen.seed)
    begin = time.monotonic()
    lost: list[str] = []
    busy = 0
    with tempfile.TemporaryDirectory(prefix="vab-kills-") as name:
        folder = Path(name)
        projects, log = folder / "projects", folder / "log"
        user = User(write_clip(folder / "clip.mp4"), projects, chance)
        for number in range(chosen.kills + 1):
            process = start(pipeline, user, projects, log)
            lost += user.check(number == chosen.kills)
            if number == chosen.kills:
                process.terminate()
                process.join()
                break
            if chance.random() > 0.3:  # else a project may be killed while it is made
                user.begin()
            killed(process, chance.uniform(0.0, MAX_LIFE), user.work)
            busy += user.is_busy

        # What kills left behind: sounds that were on the disk before the document had named them.
        documents = {path.parent: json.loads(path.read_bytes()) for path in projects.glob("*/project.json")}
        unnamed = [
            path
            for place, document in documents.items()
            for path in place.glob("sounds/*.wav")
            if path.stem not in document["sounds"]
        ]
        figures = {
            "kills": chosen.kills,
            "while a sound was being made": busy,
            "projects": len(documents),
            "answers": user.num_answers,
            "sounds shown": len(user.shown),
            "lost or damaged": len(lost),
            "whole sounds that no document names": len(unnamed),
            "tracebacks": log.read_text().count("Traceback"),
            "seconds": round(time.monotonic() - begin),
        }
    for sentence in lost[:20]:
        print(sentence, file=sys.stderr)
    print(json.dumps(figures, indent=1))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
