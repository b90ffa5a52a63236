"""vab evaluate listening build, serve and results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from vab.cli.options import Link
from vab.cli.output import show, tell
from vab.errors import SettingError

Number = Annotated[int | None, tyro.conf.arg(metavar="N")]
StudyFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY")]


def build(
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER FOLDER ...")],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="STUDY")],
    clips: Number = None,
    raters: int = 3,
    per_person: Number = None,
    surveys: tuple[Literal["preference", "mos"], ...] = ("preference", "mos"),
    seed: int = 0,
    json: bool = False,
) -> int:
    """Make a study of results of two or more systems: what people prefer, and how good they find each.

    Each folder holds the videos of one system, with sound, under the same names as the others; the system is
    called like its folder, which raters never see. The first is compared with every other (preference: five
    grades, of overall quality and of fit to the picture), and every video gets a score of 1 to 5 (mos). After
    about ten trials comes an attention check: a video with beeps for its sound. A video that is missing,
    unreadable or nothing for a browser is named, and nothing is built.

    Args:
        folders: of results, the first one that of the system to compare with the others.
        out: the folder of the study; videos are copied into it, so it can be moved to another machine.
        clips: so many clips, drawn at random (the paper: 150). Left out: all.
        raters: people who answer each trial.
        per_person: most trials for one person. Left out: as many as there are.
        surveys: preference (Figure 4), mos (Table 2), or both, one after the other.
        seed: of the clips that are drawn, and of order and side.
        json: one JSON document on standard output.
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
    asked = ", ".join(f"{count:,} trials of {survey}" for survey, count in counts.items())
    text = (
        f"{out}: {len(study.clips):,} clips of {', '.join(study.systems)}; {asked}, each for {raters}\n"
        f"next: vab evaluate listening serve {out}"
    )
    show(document, text, json)
    return 0


def serve(
    study: StudyFolder,
    people: int = 3,
    host: str = "127.0.0.1",
    port: int = 7870,
    link: Link = None,
    json: bool = False,
) -> int:
    """Serve the page of a study until Ctrl-C; prints a link for each person.

    There are no accounts: who has a link answers as that person, now or later. Answers are on the disk before
    the page goes on, so the server may be killed at any moment and started again.

    Args:
        study: the folder of the study.
        people: links for so many people; more than last time adds some, those there are stay.
        host: the address to listen on. 127.0.0.1 is this machine alone; for others put a web server with
            HTTPS in front, and say with --link where it is.
        port: 0 takes any that is free.
        link: the address that people are to use, such as https://study.example.org.
        json: the links as one JSON document on standard output.
    """
    from vab.listening.answers import Answers
    from vab.listening.server import make_app
    from vab.listening.study import open_study
    from vab.web import address, check_link, listen
    from vab.web import serve as run

    if people < 1:
        raise SettingError("--people must be 1 or more")
    check_link(link)
    opened = open_study(study)
    answers = Answers(opened)
    app = make_app(opened, answers)
    place = listen(host, port)
    answers.invite(people)
    base = address(host, place, link)
    links = [(f"{base}/{rater}", done) for rater, done in answers.progress()]
    lines = [f"{link}  {f'{done:,} answered' if done else ''}".rstrip() for link, done in links]
    document = {"links": [{"link": link, "answered": done} for link, done in links]}
    show(document, "\n".join(["a link for each person:", *lines]), json)
    tell("serving until Ctrl-C")
    run(app, place)
    return 0


def results(
    study: StudyFolder,
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")] = None,
    json: bool = False,
) -> int:
    """What a study has found so far: preferences as in Figure 4, scores as in Table 2, agreement of raters.

    Intervals are 95 %, by 1000 resamples of the clips. Who failed half of their attention checks is left out,
    and named. The server may run meanwhile.

    Args:
        study: the folder of the study.
        out: write answers.csv, answers.json, results.json and preference.png (Figure 4) into this folder.
        json: one JSON document on standard output.
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
        tell(str(path))
    show(found.document(), found.markdown(), json)
    return 0
