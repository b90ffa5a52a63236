"""vab studio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from vab.cli.options import Device, Link, Model
from vab.cli.output import show, tell


def studio(
    model: Model = None,
    library: Annotated[Path | None, tyro.conf.arg(metavar="DB")] = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    link: Link = None,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Serve a page to make sound for a video or a picture, until Ctrl-C.

    Drop a clip, hear several takes, mark a part of one and redo that or the rest, look for real sounds in a
    library, see what the model makes of it. Needs no network. Uploads and takes are deleted when their
    visitor leaves, and at the end.

    Args:
        model: a name (see vab models), a model directory or a Hub id. Left out: the bundled vab-tiny.
        library: a library to search, made by vab index add with the same model.
        host: the address to listen on. 127.0.0.1 is this machine alone; for others put a web server with
            HTTPS in front, and say with --link where it is.
        port: 0 takes any that is free.
        link: the address that people are to use, such as https://studio.example.org.
        device: where to compute.
        json: the address as one JSON document on standard output.
    """
    from vab.web import address, check_link, check_server, listen, serve

    check_server()
    from vab.inference.pipeline import VABPipeline
    from vab.library.library import Library
    from vab.models.hub import BUNDLED
    from vab.studio.library_view import LibraryView
    from vab.studio.server import LOCAL, make_app
    from vab.studio.service import StudioService
    from vab.studio.takes import TakeMaker

    check_link(link)
    place = listen(host, port)
    pipeline = VABPipeline.from_pretrained(model, device=device)
    shelf = None
    if library is not None:
        opened = Library.open(library)
        opened.check(pipeline.embedder.fingerprint())
        shelf = LibraryView(opened)
    shown = address(host, place, link)
    show({"link": shown}, shown, json)
    tell("serving until Ctrl-C")
    serve(make_app(StudioService(TakeMaker(pipeline), shelf), model or BUNDLED, host in LOCAL, link), place)
    return 0
