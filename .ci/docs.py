"""Collects what the site of the documentation is built from: ``python .ci/docs.py FOLDER``.

FOLDER gets the pages of docs/, a page of every command from its ``--help``, the notebook as a page, and the
files of the repository that pages link to. mkdocs.yml says how they hang together. PyTorch is not needed: one
verb (codec train) imports heavy packages for its options, and those that are not installed get a stand-in.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePosixPath
from types import ModuleType
from unittest.mock import MagicMock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from vab.cli import VERBS, main  # noqa: E402 (of the sources beside this file)

NOTEBOOK = "examples/notebook.ipynb"
# Every field of a preset is an option of these verbs; the options of one preset are shown.
PRESET_OF = {
    "pretrain": "vab-tiny",
    "finetune contrastive": "vab-tiny-contrastive",
    "finetune distill": "vab-tiny-student",
    "finetune classify": "vab-tiny-classes",
}
HEAVY = (
    "PIL",
    "av",
    "huggingface_hub",
    "lightning",
    "numpy",
    "pillow_heif",
    "pyarrow",
    "safetensors",
    "torch",
)


# --- commands


class StandIn(MetaPathFinder, Loader):
    """Finds a module that answers to every name, for a heavy package that is not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Answer for what no other finder has found."""
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in HEAVY else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A mock in place of the module."""
        return MagicMock(name=spec.name, __name__=spec.name, __spec__=spec, __path__=[])

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


@contextmanager
def stand_ins() -> Iterator[None]:
    """Let modules be imported whose packages are not installed, to read their options."""
    finder = StandIn()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def help_of(words: Sequence[str]) -> str:
    """What ``vab WORDS --help`` prints, as wide as a page of the site and without colours."""
    os.environ |= {"COLUMNS": "78", "NO_COLOR": "1"}
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # tyro draws boxes where the encoding has them
    with redirect_stdout(printed), stand_ins():
        try:
            main([*words, "--help"])
        except SystemExit as end:
            assert end.code == 0, f"vab {' '.join(words)} --help ended with {end.code}"
    printed.seek(0)
    return printed.read().strip()


def help_page(words: Sequence[str]) -> str:
    """The help as Markdown: the call and the options as they are printed, the text between as paragraphs."""
    head, line, boxes = help_of(words).partition("╭")
    call, *paragraphs = re.split(r"\n\s*\n", head.strip())
    prose = [re.sub(r"([*_<\[\]`|])", r"\\\1", " ".join(text.split())) for text in paragraphs]
    return "\n\n".join([f"```text\n{call}\n```", *prose, f"```text\n{line}{boxes}\n```"])


def command_pages() -> dict[str, str]:
    """``commands/WORD.md`` for the first word of each verb, in the order of ``vab --help``."""
    pages: dict[str, str] = {}
    for verb, (_, _, purpose) in VERBS.items():
        word = verb.split()[0]
        name = f"commands/{word}.md"
        pages.setdefault(name, f"# vab {word}\n")
        pages[name] += f"\n## vab {verb}\n\n{purpose[0].upper()}{purpose[1:]}.\n\n{help_page(verb.split())}\n"
        if preset := PRESET_OF.get(verb):
            pages[name] += f"\n### Options of a preset: {preset}\n\n{help_page([*verb.split(), preset])}\n"
    return pages


def table_of_verbs() -> str:
    """What each verb does, and where its options are."""
    rows = [
        f"| [`vab {verb}`](commands/{verb.split()[0]}.md#vab-{verb.replace(' ', '-')}) | {purpose} |"
        for verb, (_, _, purpose) in VERBS.items()
    ]
    return "\n".join(["| verb | what it does |", "|---|---|", *rows, ""])


# --- the notebook and other files


def notebook_page(path: Path) -> str:
    """The cells of a notebook as Markdown."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    return "\n\n".join(parts) + "\n"


def page_name(path: PurePosixPath) -> str | None:
    """Where a file of the repository stands on the site: ``docs/x.md`` as ``x.md``, text as a page."""
    if path.parts[0] == "docs":
        return path.relative_to("docs").as_posix()
    if path.as_posix() == NOTEBOOK:
        return "notebook.md"
    if path.as_posix() == "README.md":
        return "repository/overview.md"  # a README.md would be the front page of its folder
    readme = path.with_name("index.md") if path.name == "README.md" else path
    if path.suffix in (".md", ".mp4", ".png"):
        return f"repository/{readme}"
    return f"repository/{path}.md"


class Site:
    """The folder that is being filled; a file that a page links to comes along."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: set[str] = set()

    def add(self, path: PurePosixPath) -> None:
        """Put one file of the repository in its place, once."""
        name = page_name(path)
        if name is None or name in self.done:
            return
        self.done.add(name)
        source = ROOT / path
        if path.suffix == ".md":
            text = source.read_text(encoding="utf-8")
            if path.as_posix() == "docs/commands.md":
                text += table_of_verbs()
            self.write(name, self.linked(text, path, name))
        elif path.as_posix() == NOTEBOOK:
            self.write(name, self.linked(notebook_page(source), path, name))
        elif name.endswith(".md"):  # a script or another text, as it is
            text = source.read_text(encoding="utf-8").rstrip()
            kind = {".py": "python", ".sh": "sh", ".json": "json"}.get(path.suffix, "text")
            self.write(name, f"# {path}\n\n````{kind}\n{text}\n````\n")
        else:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, self.folder / name)

    def write(self, name: str, text: str) -> None:
        """Write a page."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")

    def linked(self, text: str, path: PurePosixPath, name: str) -> str:
        """The text of file ``path`` with links that lead where their targets stand from page ``name``."""

        def link(match: re.Match[str]) -> str:
            target, fragment = match.group(1), match.group(2) or ""
            file = Path(os.path.normpath(ROOT / path.parent / target))
            if "://" in target or not file.is_file() or not file.is_relative_to(ROOT):
                return match.group(0)
            other = PurePosixPath(file.relative_to(ROOT).as_posix())
            self.add(other)
            place = os.path.relpath(page_name(other) or "", PurePosixPath(name).parent)
            return f"]({PurePosixPath(place).as_posix()}{fragment})"

        return re.sub(r"\]\(([^)#\s]+)(#[^)\s]*)?\)", link, text)


def collect(folder: Path) -> None:
    """Fill ``folder`` anew with all that the site is built from."""
    shutil.rmtree(folder, ignore_errors=True)
    site = Site(folder)
    for path in sorted((ROOT / "docs").rglob("*")):
        if path.is_file():
            site.add(PurePosixPath(path.relative_to(ROOT).as_posix()))
    for name in (NOTEBOOK, "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        site.add(PurePosixPath(name))
    for name, text in command_pages().items():
        site.write(name, text)


def on_page_content(html: str, **_: object) -> str:
    """As a hook of mkdocs: names in docstrings, such as :meth:`generate`, without their role."""
    return re.sub(r":(?:attr|class|func|meth|mod):<code>~?", "<code>", html)


if __name__ == "__main__":
    collect(Path(sys.argv[1]))
