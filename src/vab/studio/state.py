"""The state of a project, as its page shows it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from vab.studio.export import exported
from vab.studio.project import Project
from vab.studio.queue import Job, JobQueue
from vab.utils.progress import STAGE_LABELS


def state_of(project: Project, queue: JobQueue) -> dict[str, Any]:
    """Everything of a project that its page shows, with its jobs in ``queue``; a JSON object."""
    document = project.document  # one and the same all the way: it may be replaced meanwhile
    steps, at = document["history"], document["at"]
    return {
        "project": {"id": project.id, "name": document["name"], "changed": document["changed"]},
        "clip": document["clip"] | {"url": "picture.mp4"},
        "sounds": {name: _sound(name, about) for name, about in document["sounds"].items()},
        "arrangement": steps[at]["arrangement"],
        "history": [step["did"] for step in steps],
        "at": at,
        "can_undo": steps[at]["did"] if at else None,
        "can_redo": steps[at + 1]["did"] if at + 1 < len(steps) else None,
        "jobs": {kind: _job(job, queue) for kind, job in list(project.jobs.items())},
        "answers": dict(project.answers),
        "exports": _exports(project),
        "problems": project.problems(),
    }


def _sound(name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """A sound with its address; stages in words, figures that can be read."""
    timings = {STAGE_LABELS.get(stage, stage): round(value, 2) for stage, value in about["timings"].items()}
    score = about["score"] if about["score"] is None else round(about["score"], 3)
    return {**about, "timings": timings, "score": score, "url": f"sounds/{name}"}


def _exports(project: Project) -> list[dict[str, Any]]:
    """The files that were exported last; one that another export takes away just now is none."""
    files = []
    for path in exported(project.folder):
        with suppress(FileNotFoundError):
            size = path.stat().st_size
            files.append({"name": path.name, "bytes": size, "url": f"exports/{quote(path.name)}"})
    return files


def _job(job: Job, queue: JobQueue) -> dict[str, Any]:
    return {
        "state": job.state,
        "stage": STAGE_LABELS.get(job.stage, job.stage),
        "share": round(job.share, 3),
        "error": job.error,
        "ahead": queue.ahead(job) if job.active else 0,
    }
