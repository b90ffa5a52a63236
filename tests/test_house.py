"""The rules of the house: a quick start, imports one way, small documented modules, papers that are true."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from vab.errors import VABError
from vab.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "vab"
MODULES = {
    ".".join(("vab", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
HEAVY = {"torch", "numpy", "transformers", "timm", "av", "pyarrow", "lightning_fabric", "huggingface_hub"}
IMPORT_VAB = "import vab"
RUN_VAB = "import sys; from vab.cli import main; sys.exit(main())"  # what the installed script does


def python(*arguments: str) -> tuple[set[str], float]:
    """Modules that a fresh interpreter imported for these arguments, and the seconds of CPU it took."""
    command = [sys.executable, "-X", "importtime", "-c", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    before = os.times()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    after = os.times()
    assert done.returncode == 0, done.stderr[-2000:]
    imported = set(re.findall(r"^import time:.*\|\s*([\w.]+)$", done.stderr, flags=re.MULTILINE))
    assert "vab" in imported
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return imported, seconds


@pytest.mark.parametrize("arguments", [(IMPORT_VAB,), (RUN_VAB, "--help")], ids=["import", "help"])
def test_starts_in_under_a_second_without_anything_heavy(arguments: tuple[str, ...]) -> None:
    # CPU seconds, best of three: a busy machine must not fail this, a slow import must
    runs = [python(*arguments) for _ in range(3)]
    imported = runs[0][0]
    assert not HEAVY & imported
    assert min(seconds for _, seconds in runs) < 1.0


def test_the_command_line_is_where_pyproject_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, function = project["scripts"]["vab"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def imports(name: str) -> set[str]:
    """Modules of the package that module ``name`` imports anywhere, also inside functions."""
    base = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = base.split(".")[: len(base.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*up, *([node.module] if node.module else [])])
            # `from package import module` imports the module; `from module import name` imports the module
            found |= {f"{source}.{a.name}" if f"{source}.{a.name}" in MODULES else source for a in node.names}
    return found & set(MODULES) - {name}


def test_imports_point_one_way() -> None:
    # The package itself only hands out public names, lazily: it is no link of a chain.
    graph = {name: imports(name) - {"vab"} for name in MODULES if name != "vab"}
    assert sum(map(len, graph.values())) > 20, "the walk found hardly an import: is it blind?"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


# The rooms of the house: packages, and the files beside them. A room imports only from those before it.
ROOMS = ["errors", "utils", "config", "presets", "media", "codecs", "vision", "timing", "models", "sampling"]
ROOMS += [
    "data",
    "training",
    "inference",
    "library",
    "evaluate",
    "web",
    "listening",
    "studio",
    "bench",
    "cli",
]
# The packages of evaluation, in their order; its other modules may stand anywhere between.
EVALUATION = ["metrics", "backbones", "generation", "timing", "ablation"]


def arrows(depth: int) -> set[tuple[str, str]]:
    """Pairs (importer, imported) of packages, named by the part of their dotted name at ``depth``."""
    pairs = set()
    for name in set(MODULES) - {"vab", "vab.__main__"}:
        for other in imports(name) - {"vab"}:
            parts, others = name.split("."), other.split(".")
            same_parents = parts[:depth] == others[:depth] and min(len(parts), len(others)) > depth
            if same_parents and parts[depth] != others[depth]:
                pairs.add((parts[depth], others[depth]))
    return pairs


def test_rooms_stand_in_one_order() -> None:
    rooms = {name.split(".")[1] for name in MODULES if name not in ("vab", "vab.__main__")}
    assert rooms == set(ROOMS)
    drawn = arrows(1)
    assert len(drawn) > 50, "the walk found hardly an import: is it blind?"
    assert [pair for pair in sorted(drawn) if ROOMS.index(pair[0]) < ROOMS.index(pair[1])] == []


def test_the_house_has_at_most_nine_floors() -> None:
    below: dict[str, set[str]] = {room: set() for room in ROOMS}
    for room, other in arrows(1):
        below[room].add(other)
    floor: dict[str, int] = {}
    for room in ROOMS:  # those below come first
        floor[room] = 1 + max((floor[other] for other in below[room]), default=0)
    assert max(floor.values()) <= 9


def test_evaluation_goes_from_arithmetic_to_experiments() -> None:
    inside = {name: imports(name) for name in MODULES if name.startswith("vab.evaluate.")}
    for name, found in inside.items():
        package = name.split(".")[2]
        if package in EVALUATION:
            later = EVALUATION[EVALUATION.index(package) + 1 :]
            assert not [
                other for other in found if other.startswith("vab.evaluate.") and other.split(".")[2] in later
            ]


def test_the_network_knows_nothing_of_sampling_and_config_nothing_at_all() -> None:
    assert imports("vab.errors") == set()
    assert imports("vab.models.linear") == set()
    assert imports("vab.models.vab") <= {"vab.config", "vab.errors", "vab.models.linear"}
    assert imports("vab.models.foleygen") <= {"vab.config", "vab.errors", "vab.models.vab"}
    assert imports("vab.config") <= {"vab.errors"}
    assert imports("vab.sampling.parallel") <= {"vab.config", "vab.errors"}


# control flow that no person ever sees: class -> why it is no VABError
NO_ERRORS = {
    "vab.bench.gpu.training.Enough": "ends a run whose speed is measured",
    "vab.studio.queue.Cancelled": "ends a job that its visitor gave up",
}


def exceptions() -> dict[str, type[BaseException]]:
    """Every exception class that the package defines, by its dotted name."""
    kinds = {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.bases:
                kind = getattr(importlib.import_module(name), node.name, None)
                if isinstance(kind, type) and issubclass(kind, BaseException):
                    kinds[f"{name}.{node.name}"] = kind
    return kinds


def test_every_error_of_ours_has_one_base() -> None:
    kinds = exceptions()
    assert {
        "vab.media.container.MediaError",
        "vab.data.shard.StoreError",
        "vab.sampling.parallel.DecodeError",
    } <= kinds.keys()
    assert {name for name, kind in kinds.items() if not issubclass(kind, VABError)} == set(NO_ERRORS)


def handlers(name: str) -> list[ast.ExceptHandler]:
    return [node for node in ast.walk(TREES[name]) if isinstance(node, ast.ExceptHandler)]


def test_the_command_line_turns_errors_into_a_line_in_one_place() -> None:
    """No verb lists what it expects to go wrong: one that is forgotten there would be a traceback."""
    verbs = [name for name in MODULES if name.startswith("vab.cli")]
    assert len(verbs) > 10 and handlers("vab.cli")
    assert [n for n in verbs for each in handlers(n) if isinstance(each.type, ast.Tuple)] == []
    broad = [
        n for n in verbs for each in handlers(n) if each.type is None or ast.unparse(each.type) == "Exception"
    ]
    assert broad == ["vab.cli", "vab.cli.diagnostics"]  # vab doctor speaks of what is broken


def test_modules_hold_one_idea_and_packages_about_a_dozen_modules() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 600} == {}
    sizes = Counter(path.parent.relative_to(PACKAGE).as_posix() for path in MODULES.values())
    assert {folder: n for folder, n in sizes.items() if n > (24 if folder == "cli" else 14)} == {}


def test_the_tree_of_modules_is_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"```\nsrc/vab/\n(.*?)```", text, re.DOTALL)
    assert block is not None
    folders: list[str] = []
    listed = set()
    for line in block.group(1).splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2 - 1, line.split()[0]
        assert line.split(maxsplit=1)[1:], f"{name} says nothing of itself"
        del folders[depth:]
        if name.endswith("/"):
            folders.append(name)
        else:
            listed.add("".join([*folders, name]))
    there = {path.relative_to(PACKAGE).as_posix() for path in MODULES.values()}
    packages = {name for name in there if "/" in name and name.endswith("__init__.py")}
    assert listed == there - packages


def undocumented() -> list[str]:
    """Modules, public functions, public classes and their public methods that have no docstring."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    elsewhere = {"forward", "to"}  # what they do is said by their class, and by the protocol it follows
    missing = []
    for name, tree in TREES.items():
        places: list[tuple[str, ast.Module | ast.ClassDef]] = [(name, tree)]
        while places:
            where, place = places.pop()
            missing += [] if ast.get_docstring(place) else [where]
            for node in place.body:
                if not isinstance(node, kinds) or node.name.startswith("_"):
                    continue
                if isinstance(node, ast.ClassDef):
                    places.append((f"{where}.{node.name}", node))
                elif not ast.get_docstring(node) and (place is tree or node.name not in elsewhere):
                    missing.append(f"{where}.{node.name}")
    return missing


def test_everything_public_is_documented() -> None:
    assert undocumented() == []


def test_what_ships_stays_under_25_mb() -> None:
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 25e6


def test_no_test_imports_another() -> None:
    """What several need stands in tests/helpers; also scripts inside strings look there."""
    pattern = re.compile(r"^\s*(?:from|import) (?:tests\.)?test_\w+", re.MULTILINE)
    files = sorted((ROOT / "tests").rglob("*.py"))
    assert any(path.parent.name == "helpers" for path in files)
    assert [path.name for path in files if pattern.search(path.read_text(encoding="utf-8"))] == []


DOCS = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("**/*.md"))]
DECISIONS = [doc for doc in DOCS if doc.startswith("docs/decisions/")]
PAPERS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS]


@pytest.mark.parametrize("paper", PAPERS)
def test_links_lead_somewhere(paper: str) -> None:
    path = ROOT / paper
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


def code_of(paper: str) -> str:
    """Everything in a paper that is set as code: blocks and spans."""
    text = (ROOT / paper).read_text(encoding="utf-8")
    blocks = re.findall(r"^```.*?^```", text, flags=re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return "\n".join([*blocks, *spans])


def test_make_targets_in_the_papers_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {n for paper in PAPERS for n in re.findall(r"\bmake ([a-z-]+)", code_of(paper))}
    assert {"demo", "test"} <= named <= targets


def test_verbs_in_the_readme_exist() -> None:
    verbs = set(re.findall(r"^(?:\$ )?vab ((?:[a-z]+\b ?){1,2})", code_of("README.md"), re.MULTILINE))
    assert any(verb.startswith("generate") for verb in verbs)
    for verb in sorted({verb.split()[0] for verb in verbs}):
        python(RUN_VAB, verb, "--help")


def test_presets_in_the_readme_are_those_there_are() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `((?:vab|foleygen)-[\w-]+)`", readme, re.MULTILINE)
    pretrained = {"masked", "causal"}
    assert sorted(rows) == sorted(p.name for p in PRESETS.values() if p.train.objective in pretrained)


def exists(dotted: str) -> bool:
    """Whether ``vab.module.name`` or ``vab.module.Class.name`` is defined, told from the source alone."""
    module = max((name for name in MODULES if f"{dotted}.".startswith(f"{name}.")), key=len)
    body: list[ast.stmt] = TREES[module].body
    for part in dotted.removeprefix(module).split(".")[1:]:
        for node in body:
            names = {getattr(node, "name", None)}
            names |= {t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)}
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
            if part in names:
                body = node.body if isinstance(node, ast.ClassDef) else []
                break
        else:
            return False
    return True


def anchors(text: str) -> set[str]:
    """The fragments that lead to a document's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("paper", PAPERS)
def test_links_to_headings_lead_to_them(paper: str) -> None:
    path = ROOT / paper
    links = re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", path.read_text(encoding="utf-8"))
    local = [(path.parent / link if link else path, part) for link, part in links if "://" not in link]
    assert [part for page, part in local if part not in anchors(page.read_text(encoding="utf-8"))] == []


def test_every_decision_is_in_the_index() -> None:
    index = (ROOT / "docs/decisions/README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\* \[(.*)\]\((\w+\.md)#", index, re.MULTILINE)
    records = [
        (heading, Path(doc).name)
        for doc in DECISIONS
        for heading in re.findall(r"^## (.*)$", (ROOT / doc).read_text(encoding="utf-8"), re.MULTILINE)
        if Path(doc).name != "README.md"
    ]
    assert len(records) > 70
    assert sorted(listed) == sorted(records)


def test_code_named_in_the_papers_exists() -> None:
    papers = ["docs/paper_to_code.md", "CONTRIBUTING.md", *DECISIONS]
    named = set(re.findall(r"\bvab\.(?!py\b)\w+(?:\.\w+)*\b", "\n".join(map(code_of, papers))))
    assert len(named) > 80
    assert sorted(name for name in named if not exists(name)) == []
