"""vab evaluate listening build, serve and results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from vab.cli.options import AllowHost, Link
from vab.cli.output import log, print_result
from vab.errors import SettingError
from vab.utils import count_of

Number = Annotated[int | None, tyro.conf.arg(metavar="N")]
StudyFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY")]


def build(
    folders: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="FOLDER FOLDER ...", help_behavior_hint="(required)"),
    ],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="STUDY")],
    clips: Number = None,
    raters: int = 3,
    per_person: Number = None,
    surveys: tuple[Literal["preference", "mos"], ...] = ("preference", "mos"),
    seed: int = 0,
    json: bool = False,
) -> int:
    """Build a listening study of two or more systems: pairwise preference and mean opinion scores.

    Each folder holds the videos of one system, with sound, under the same file names as the others; a system
    is named after its folder, which raters never see. The first system is compared with every other
    (preference: five grades, for overall quality and for fit to the video), and every video is scored from 1
    to 5 (mos). About every ten trials there is an attention check: a video with beeps for its sound. If a
    video is missing, unreadable or cannot be played by a browser, it is named and nothing is built.

    Args:
        folders: the result folders; the first belongs to the system that is compared with the others.
        out: the folder of the study. Videos are copied into it, so that it can be moved to another machine.
        clips: the number of clips to draw at random (150 in the paper). Default: all.
        raters: the number of people who answer each trial.
        per_person: the largest number of trials for one person. Default: all.
        surveys: preference (Figure 4), mos (Table 2), or both, one after the other.
        seed: the random seed for drawing clips and for order and side.
        json: print one JSON document to standard output.
    """
    from vab.cli.progress import file_progress
    from vab.listening.study import SURVEYS, build_study

    with file_progress() as progress:
        study = build_study(
            folders,
            out,
            clips=clips,
            raters=raters,
            per_person=per_person,
            surveys=surveys,
            seed=seed,
            progress=progress,
        )
    counts = {survey: len(study.of(survey)) for survey in SURVEYS if survey in surveys}
    document = {"study": str(out), "systems": study.systems, "clips": len(study.clips), "trials": counts}
    asked = ", ".join(f"{count_of(count, 'trial')} of {survey}" for survey, count in counts.items())
    shown = count_of(len(study.clips), "clip")
    text = (
        f"{out}: {shown} of {', '.join(study.systems)}; {asked}, each for {raters}\n"
        f"next: vab evaluate listening serve {out}"
    )
    print_result(document, text, json)
    return 0


def serve(
    study: StudyFolder,
    people: int = 3,
    host: str = "127.0.0.1",
    port: int = 7870,
    link: Link = None,
    allow_host: AllowHost = (),
    json: bool = False,
) -> int:
    """Serve the page of a study until Ctrl-C, and print a link for each rater.

    There are no accounts: whoever has a link answers as that person, now or later. Each answer is on disk
    before the page moves on, so the server may be killed at any moment and started again.

    Args:
        study: the folder of the study.
        people: the number of links. Asking for more than last time adds some; existing ones stay valid.
        host: the address to listen on. 127.0.0.1 serves this machine only, 0.0.0.0 whoever reaches it, by
            plain HTTP; for the internet, put a web server with HTTPS in front, with its address as --link.
        port: the port to listen on; 0 picks a free one.
        link: the public address of the page, such as https://study.example.org.
        allow_host: further names of this machine to answer to, such as studio.local.
        json: print the links as one JSON document to standard output.
    """
    from vab.listening.answers import Answers
    from vab.listening.server import make_app
    from vab.listening.study import open_study
    from vab.web.access import check_server, grant, listen

    if people < 1:
        raise SettingError("--people must be 1 or more")
    check_server()
    from vab.web.server import serve as run

    opened = open_study(study)
    answers = Answers(opened)
    listener = listen(host, port)
    # a rater's link is a secret of its own: no token is asked for
    access = grant(listener, host, link=link, allow_hosts=allow_host, ask_token=False)
    app = make_app(opened, answers, access)
    answers.invite(people)
    links = [(f"{access.address}/{rater}", done) for rater, done in answers.progress()]
    lines = [f"{link}  {f'{done:,} answered' if done else ''}".rstrip() for link, done in links]
    document = {"links": [{"link": link, "answered": done} for link, done in links]}
    print_result(document, "\n".join(["a link for each person:", *lines]), json)
    if notice := access.notice("whoever has one of these links answers as that person"):
        log(notice)
    log("serving until Ctrl-C")
    run(app, listener, access)
    return 0


def results(
    study: StudyFolder,
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")] = None,
    json: bool = False,
) -> int:
    """Summarize a study so far: preferences as in Figure 4, scores as in Table 2, agreement of raters.

    Intervals are 95 % bootstrap intervals, from 1000 resamples of the clips. Raters who failed half of their
    attention checks are left out, and named. The server may be running.

    Args:
        study: the folder of the study.
        out: also write answers.csv, answers.json, results.json and preference.png (Figure 4) here.
        json: print one JSON document to standard output.
    """
    from vab.listening.answers import Answers
    from vab.listening.export import export, export_answers
    from vab.listening.results import results as find
    from vab.listening.study import open_study

    opened = open_study(study)
    answers = Answers(opened).all()
    written = [] if out is None else export_answers(opened, answers, out)
    found = find(opened, answers)
    written += [] if out is None else export(found, out)
    for path in written:
        log(str(path))
    print_result(found.document(), found.markdown(), json)
    return 0
