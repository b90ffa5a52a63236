"""vab studio."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from vab.cli.library import query_precision
from vab.cli.options import AllowHost, Device, Link, Model, Precision, WeightsPath
from vab.cli.output import log, print_result
from vab.presets import Speed, at_speed


def studio(
    model: Model = None,
    projects: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("~/vab-projects"),
    library: Annotated[Path | None, tyro.conf.arg(metavar="DB")] = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    speed: Speed | None = None,
    link: Link = None,
    allow_host: AllowHost = (),
    token: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    codec_path: WeightsPath = None,
    vision_path: WeightsPath = None,
    precision: Precision = "auto",
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Serve the studio, a workbench to make sound for videos and images, until Ctrl-C.

    Drop a clip, listen to several takes, mark part of one and remake it or the rest, lay sounds of a library
    and of your own beside it, export the film or its sound. Needs no network. Each clip is a project, a
    folder that is saved as you work; stop the server whenever you like.

    Args:
        model: a name (see vab models), a model directory or a Hub id. Default: the bundled vab-tiny.
        projects: the folder of the projects, made if it is missing. A project is a folder in it, which can be
            copied to another machine, or renamed or deleted while it is not open.
        library: a library to search, made by vab library add with the same model.
        host: the address to listen on. 127.0.0.1 serves this machine only, 0.0.0.0 whoever reaches it and has
            the link that is printed, by plain HTTP.
        port: the port to listen on; 0 picks a free one.
        speed: how much is computed for a sound, as in vab generate. Default: the model's own settings.
        link: the public address of the page, such as https://studio.example.org, if a web server with HTTPS
            is in front.
        allow_host: further names of this machine to answer to, such as studio.local.
        token: a file with the token of the link, which is made if it is not there. Default: a new token at
            each start where other machines can come in, none on 127.0.0.1.
        codec_path: file, folder or Hub id of the codec's weights, instead of the default ones.
        vision_path: file, folder or Hub id of the image encoder's weights, instead of the default ones.
        precision: what the networks and the image encoder compute in; the codec stays in float32. auto is
            bfloat16 where a product of matrices is measured to be at least 1.5 times as fast in it, else
            float32. What is compared with a library is computed in its precision.
        device: the device to compute on.
        json: print the address as one JSON document to standard output.
    """
    from vab.web.access import check_server, grant, listen

    check_server()
    from vab.inference.pipeline import VABPipeline
    from vab.library.library import Library
    from vab.models.hub import BUNDLED
    from vab.studio.library_view import LibraryView
    from vab.studio.project import Projects
    from vab.studio.server import make_app
    from vab.studio.service import StudioService
    from vab.studio.takes import TakeMaker
    from vab.studio.teaching import Teaching
    from vab.web.server import serve

    listener = listen(host, port)
    access = grant(listener, host, link=link, allow_hosts=allow_host, token=token)
    pipeline = VABPipeline.from_pretrained(
        model, device=device, dtype=precision, codec_path=codec_path, vision_path=vision_path
    )
    pipeline.config = replace(pipeline.config, decode=at_speed(pipeline.config.decode, speed))
    view = embedder = None
    if library is not None:
        opened = Library.open(library)
        opened.check(pipeline.embedder.fingerprint())
        view = LibraryView(opened)
        chosen = query_precision(opened, None, pipeline.device)
        if chosen.precision != pipeline.chosen.precision:
            embedder = pipeline.embedder.beside(chosen)
    opened_projects = Projects(projects.expanduser())
    print_result({"link": access.entrance}, access.entrance, json)
    if notice := access.notice("whoever has this link sees, changes and deletes all projects and models"):
        log(notice)
    log(f"serving until Ctrl-C, in {pipeline.chosen.precision}; projects in {opened_projects.folder}")
    service = StudioService(TakeMaker(pipeline), opened_projects, view, embedder)
    service.warm_up()
    teaching = Teaching(
        opened_projects.folder / "models",
        model,
        device=device,
        codec_path=codec_path,
        vision_path=vision_path,
    )
    serve(make_app(service, model or BUNDLED, access, teaching), listener, access)
    return 0
