"""An option that a message advises is one that the verb has: read from the code, from each verb onward."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import vab
from vab.cli import VERBS

PACKAGE = Path(vab.__file__).parent
TREES = {
    ".".join(("vab", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): ast.parse(
        path.read_text(encoding="utf-8")
    )
    for path in sorted(PACKAGE.rglob("*.py"))
}
Name = tuple[str, str]  # module, name in it: a function, class or constant, or class.method

# Messages that verbs do not show, though their code leads there: the module or package, the verbs, and why.
NEVER_SHOWN = [
    ("vab.codecs", {"bench"}, "its codecs are random, or those of a model folder"),
    ("vab.codecs", {"codec train"}, "it makes a codec, or starts from a folder"),
    ("vab.inference.parts", {"bench"}, "as its codecs are"),
    ("vab.vision", {"bench"}, "its encoders are random, or the bundled one"),
    ("vab.media.muxing.mux", set(VERBS) - {"generate"}, "only vab generate shows the notes on a film"),
    (
        "vab.evaluate.backbones.weights",
        {"doctor", "pretrain", "finetune contrastive", "finetune classify", "finetune distill"},
        "what is not there is not measured",
    ),
    ("vab.utils.shares", {"evaluate ablation", "learn"}, "it takes all, and only its devices share"),
    ("vab.data.extraction.stored", {"learn"}, "it encodes all pictures itself"),
    ("vab.data.mixture", {"learn"}, "it has one store, which it made"),
]


def place(module: str, node: ast.stmt) -> Iterator[tuple[Name, ast.AST]]:
    """The names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield (module, node.name), node
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                yield (module, target.id), node


DEFINED = {
    name: node
    for module, tree in TREES.items()
    for statement in tree.body
    for name, node in place(module, statement)
}
# What a name in a module stands for: its own definitions, and what it imports anywhere.
SCOPES: dict[str, dict[str, Name]] = {module: {} for module in TREES}
for _module, _tree in TREES.items():
    for _node in ast.walk(_tree):
        if isinstance(_node, ast.ImportFrom) and (_node.module or "").startswith("vab"):
            SCOPES[_module] |= {a.asname or a.name: (str(_node.module), a.name) for a in _node.names}
for _name in DEFINED:
    SCOPES[_name[0]][_name[1]] = _name


@cache  # verbs share most of their code
def mentions(node: ast.AST) -> list[ast.Name | ast.Attribute]:
    """The names and attributes in code."""
    return [each for each in ast.walk(node) if isinstance(each, ast.Name | ast.Attribute)]


def reached(start: Name) -> dict[Name, list[ast.AST]]:
    """The code that a function may run: functions by their names, methods by those of classes it reaches."""
    found: dict[Name, list[ast.AST]] = {}
    methods: dict[str, list[tuple[Name, ast.FunctionDef]]] = {}  # of reached classes, by name
    called: set[str] = set()
    waiting: list[tuple[Name, list[ast.AST]]] = [(start, [DEFINED[start]])]
    while waiting:
        name, nodes = waiting.pop()
        if name in found:
            continue
        found[name] = nodes
        for node in (each for top in nodes for each in mentions(top)):
            if isinstance(node, ast.Name):
                other = SCOPES[name[0]].get(node.id)
                if other not in DEFINED or other in found:
                    continue
                definition = DEFINED[other]
                if not isinstance(definition, ast.ClassDef):
                    waiting.append((other, [definition]))
                    continue
                # Of a class what runs by itself, and what is called by its name anywhere.
                inside = [n for n in definition.body if isinstance(n, ast.FunctionDef)]
                waiting.append((other, [n for n in definition.body if n not in inside]))
                for method in inside:
                    key = (other[0], f"{other[1]}.{method.name}")
                    methods.setdefault(method.name, []).append((key, method))
                    if method.name in called or method.name.startswith("__"):
                        waiting.append((key, [method]))
            elif isinstance(node, ast.Attribute) and node.attr not in called:
                called.add(node.attr)
                waiting += [(key, [method]) for key, method in methods.get(node.attr, [])]
    return found


@cache
def sentences(node: ast.AST) -> list[str]:
    """The strings of code that are for people: no docstring, and more than a word or with an error."""
    documented = ast.Module | ast.FunctionDef | ast.ClassDef
    docstrings = {
        id(each.body[0].value)
        for each in ast.walk(node)
        if isinstance(each, documented) and each.body and isinstance(each.body[0], ast.Expr)
    }
    found = []
    for each in ast.walk(node):
        if not isinstance(each, ast.Constant) or not isinstance(each.value, str) or id(each) in docstrings:
            continue
        if " " in each.value.strip() and "pip install" not in each.value:
            found.append(each.value)
    return found


def options(function: Name, code: dict[Name, list[ast.AST]]) -> set[str]:
    """The options of a verb: its parameters, their other names, the fields of its command line's classes."""
    node = DEFINED[function]
    assert isinstance(node, ast.FunctionDef)
    arguments = [*node.args.args, *node.args.kwonlyargs]
    named = {f"--{argument.arg.replace('_', '-')}" for argument in arguments}
    for argument in arguments:
        for each in ast.walk(argument.annotation) if argument.annotation else ():
            if isinstance(each, ast.Constant) and isinstance(each.value, str):
                named.add(each.value if each.value.startswith("--") else f"--{each.value}")
    for (module, _), nodes in code.items():
        fields = [
            node
            for node in nodes
            if isinstance(node, ast.AnnAssign) and module.startswith(("vab.cli", "vab.config"))
        ]
        named |= {f"--{ast.unparse(field.target).replace('_', '-')}" for field in fields}
    return named


def test_every_option_that_a_message_advises_is_known_to_the_verb() -> None:
    wrong: list[str] = []
    looked = 0
    needed: set[int] = set()
    for verb, (file, function, _) in VERBS.items():
        start = (f"vab.cli.{file}", function)
        code = reached(start)
        known = options(start, code) | {"--json"}
        for name, nodes in code.items():
            for text in (text for node in nodes for text in sentences(node)):
                if re.search(r"vab [a-z]+.* --", text):  # of another verb, which it names
                    continue
                for option in re.findall(r"(?<![\w-])--[a-z][\w-]*(?![\w.-])", text):  # not --train.inputs
                    looked += 1
                    if option in known:
                        continue
                    excuses = {
                        n
                        for n, (module, verbs, _) in enumerate(NEVER_SHOWN)
                        if f"{name[0]}.".startswith(f"{module}.") and verb in verbs
                    }
                    needed |= excuses
                    if not excuses:
                        wrong.append(f"vab {verb} has no {option}, which {'.'.join(name)} advises: {text!r}")
    assert not wrong, "\n".join(wrong)
    assert looked > 100, "hardly any message was found: is the walk blind?"
    assert len(needed) == len(NEVER_SHOWN), "an excuse that nobody needs"
