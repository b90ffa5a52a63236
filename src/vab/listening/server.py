"""The web page of a study: one link per rater, no accounts, nothing that names a system or a file.

A rater's browser may fetch the page itself and the videos of the trials that were put to this rater.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vab.listening.answers import Answers, Refused, UnknownRater
from vab.listening.study import MEDIA, Study
from vab.web.access import Access, check_server

PAGE = Path(__file__).parent / "page"
MAX_ANSWER_BYTES = 4096
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Robots-Tag": "noindex",
}


def make_app(study: Study, answers: Answers, access: Access | None = None) -> Any:
    """The web application (ASGI) of a study, for those with ``access``: by default, on this machine.

    ``ServerError`` without starlette (``vab[studio]``).
    """
    check_server()
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Route

    from vab.web.guard import protect
    from vab.web.values import ERRORS, read_values

    def page(request: Request) -> Response:
        # the same page for everybody; the link alone says who asks
        known = request.path_params.get("rater") in {rater for rater, _ in answers.progress()}
        return FileResponse(PAGE / "page.html", 200 if known else 404)

    def asset(request: Request) -> Response:
        return FileResponse(PAGE / request.url.path.rpartition("/")[2])

    def state(rater: str) -> Response:
        upcoming = answers.next(rater)
        document: dict[str, Any] = {"state": upcoming.state, "done": upcoming.done, "total": upcoming.total}
        if upcoming.trial is not None:
            # videos are named by their place on the page, which says nothing of the system
            places = range(1, len(upcoming.trial.files) + 1)
            document |= {"trial": upcoming.trial.id, "survey": upcoming.trial.survey}
            document["videos"] = [f"{rater}/{upcoming.trial.id}/{place}.mp4" for place in places]
        return JSONResponse(document)

    def ask(request: Request) -> Response:
        return _answered(lambda: state(request.path_params["rater"]))

    def keep(rater: str, trial: str, grades: dict[str, Any]) -> Response:
        answers.answer(rater, trial, grades)
        return state(rater)

    async def answer(request: Request) -> Response:
        grades = await read_values(request, MAX_ANSWER_BYTES)
        rater = request.path_params["rater"]
        trial = request.path_params["trial"]
        return await run_in_threadpool(_answered, lambda: keep(rater, trial, grades))

    def video(request: Request) -> Response:
        rater = request.path_params["rater"]
        place = request.path_params["place"]
        # only what was put to this rater, each video at the place where this rater sees it
        trial = answers.trial_of(rater, request.path_params["trial"])
        places = [str(number) for number in range(1, len(trial.files) + 1)] if trial else []
        if trial is None or place not in places:
            return _error("There is no such video.", 404)
        files = trial.files[::-1] if study.swapped(rater, trial.id) else trial.files
        headers = {"Cache-Control": "private, max-age=3600"}
        return FileResponse(
            study.folder / MEDIA / files[places.index(place)], headers=headers, media_type="video/mp4"
        )

    def _answered(act: Callable[[], Response]) -> Response:
        try:
            return act()
        except UnknownRater:
            return _error("This link is not known.", 404)
        except Refused as error:
            return _error(str(error), 409)
        except sqlite3.Error as error:  # a full disk, for one
            return _error(f"The answer cannot be kept just now ({error}). Please try again later.", 503)

    def _error(message: str, status: int) -> Response:
        return JSONResponse({"error": message}, status)

    app = Starlette(
        exception_handlers=ERRORS,
        routes=[
            Route("/", page),
            Route("/page.css", asset),
            Route("/page.js", asset),
            Route("/{rater}", page),
            Route("/{rater}/next", ask, methods=["POST"]),
            Route("/{rater}/{trial}/answer", answer, methods=["POST"]),
            Route("/{rater}/{trial}/{place}.mp4", video),
        ],
    )
    return protect(app, access or Access(), HEADERS)
