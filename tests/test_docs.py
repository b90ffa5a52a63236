"""The site of the documentation and the notebook: nothing left out of the navigation, cells that run."""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import vab
from vab.cli import VERBS, main

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / ".ci"))
import docs  # noqa: E402 (.ci/docs.py)

NAV = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    docs.collect(folder)
    return folder


def test_every_page_is_in_the_navigation_once(pages: Path) -> None:
    found = {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")}
    entries = re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", NAV, re.MULTILINE)
    assert len(entries) == len(set(entries)) > 40
    assert set(entries) <= found
    assert {name for name in found - set(entries) if not name.startswith("repository/")} == set()


def test_the_command_pages_name_every_verb_and_print_its_help(
    pages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in VERBS:
        page = (pages / "commands" / f"{verb.split()[0]}.md").read_text(encoding="utf-8")
        assert f"\n## vab {verb}\n" in page and f"usage: vab {verb} " in page
        assert f"`vab {verb}`" in (pages / "commands.md").read_text(encoding="utf-8")
        blocks, paragraphs = page.split("```")[1::2], page.split("```")[::2]
        assert any(re.search(r"^│ -h, --help +show", block, re.MULTILINE) for block in blocks)
        assert not any("-h, --help" in paragraph for paragraph in paragraphs)
    page = (pages / "commands/search.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["search", "--help"])
    options = set(re.findall(r"--[a-z][\w-]+", capsys.readouterr().out))
    assert len(options) > 4 and options <= set(re.findall(r"--[a-z][\w-]+", page))


def test_the_api_page_has_every_public_name() -> None:
    named = re.findall(r"^::: vab\.(\w+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(set(vab.__all__) - {"__version__"})


def test_links_out_of_docs_lead_to_pages_of_the_site(pages: Path) -> None:
    for page in pages.rglob("*.md"):
        links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
        assert lost == [], page


# --- the notebook, run without Jupyter: cells of plain Python in one namespace


def run(cell: str, names: dict[str, Any]) -> Any:
    """Run a cell; gives the value of its last line, as a notebook shows it."""
    tree = ast.parse(cell)
    shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return eval(compile(ast.Expression(shown.value), "<cell>", "eval"), names) if shown else None


def test_the_notebook_runs_and_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((ROOT / "examples/notebook.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in cells
    )  # none to go stale
    shutil.copy(ROOT / "examples/cat.mp4", tmp_path)
    shutil.copytree(ROOT / "examples/sounds", tmp_path / "sounds")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown = [run("".join(cell["source"]), names) for cell in cells]
    assert "<audio" in shown[1]._repr_html_() and "<audio" in shown[2]._repr_html_()
    kept = names["kept"]
    assert names["different"][kept].max() < 2e-4 < 0.01 < names["different"][kept.stop :].max()
    assert -1 <= names["fit"] <= 1
    assert next(iter(names["classes"])) == "cat" and names["ranked"][0] == "cat"
