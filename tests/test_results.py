"""Pages of docs: their commands are ones that there are, their numbers the paper's and the presets'."""

from __future__ import annotations

import functools
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.paper import TABLES as TABLES_OF_THE_PAPER
from vab.cli import VERBS, main
from vab.config import Compute
from vab.evaluate.ablation.tables import ABLATIONS, ARROWS, FAD
from vab.evaluate.paper import CLASSIFICATION, GENERATION, RETRIEVAL, WAYS
from vab.models.flops import training_flops
from vab.models.memory import training_memory
from vab.presets import preset, table_8

ROOT = Path(__file__).resolve().parents[1]
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
TABLES = (1, 3, 4, 5, 6, *range(9, 19))
Table = dict[str, list[str]]  # first cell of a row -> the paper's numbers in it


def commands(paper: str) -> list[list[str]]:
    """The lines of a paper's blocks that call vab, python or a recipe, as words without what launches vab."""
    text = (ROOT / paper).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for kind, block in blocks if kind in ("", "sh") for line in block.splitlines()]
    calls = []
    for words in (shlex.split(line, comments=True) for line in lines):
        if words and words[0] in ("srun", "torchrun"):
            words = words[words.index("vab") :]
        if words and (words[0] in ("vab", "python") or any(word.startswith("recipes/") for word in words)):
            calls.append(words)
    return calls


@pytest.mark.parametrize("paper", ["README.md", "docs/results.md", "docs/training.md", "docs/runs.md"])
def test_every_command_is_one_that_there_is(
    paper: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is read by the command line itself, to its last option; nothing is run."""
    for module, function, _ in VERBS.values():
        place = importlib.import_module(f"vab.cli.{module}")
        real = getattr(place, function)
        monkeypatch.setattr(place, function, functools.wraps(real)(lambda *args, **options: 0))
    found = commands(paper)
    calls = [words[1:] for words in found if words[0] == "vab"]
    assert len(calls) > (1 if paper == "docs/runs.md" else 25)
    calls += [call for words in found for call in options_of_the_recipe(words)]
    for words in calls:
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0, f"vab {shlex.join(words)}\n{capsys.readouterr().err}"
        assert words[:2] != ["evaluate", "ablation"] or words[2] in ABLATIONS
    scripts = [words[1] for words in found if words[0] == "python"]
    scripts += [word for words in found for word in words if word.startswith("recipes/")]
    assert all((ROOT / script).is_file() for script in scripts)


def options_of_the_recipe(words: list[str]) -> Iterator[list[str]]:
    """Calls of vab with the settings that stand before recipes/paper_table1.sh, each of which it knows."""
    script = (ROOT / "recipes" / "paper_table1.sh").read_text(encoding="utf-8")
    verbs = {
        "DATA_OPTIONS": "data vggsound LIST MEDIA -o OUT",
        "EXTRACT_OPTIONS": "extract MANIFEST -o STORE",
        "TRAIN_OPTIONS": "pretrain vab-encodec --store STORE --out OUT",
        "EVALUATE_OPTIONS": "evaluate generation REFERENCE --store STORE",
    }
    for word in words:
        name, given, value = word.partition("=")
        if given and name.isupper():
            assert f"${{{name}:" in script, name
            if name in verbs:
                yield [*verbs[name].split(), *value.split()]
            if name == "PRESET":
                yield ["presets", value]


def test_what_training_takes_is_reckoned_from_the_presets() -> None:
    """Clips, steps, FLOP, hours and memory of each training, as docs/training.md has them."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    clips = 1_573_485 + 177_000
    memory = re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, flags=re.M)
    assert len(memory) == 4
    for name, *numbers in memory:
        chosen = preset(name)
        own = (Compute(), Compute(accumulate=4), Compute(devices=8))
        assert numbers == [f"{training_memory(chosen, each).total / 1e9:.1f}" for each in own], name

        seen = clips * chosen.train.epochs
        flop = training_flops(chosen, chosen.model.video_length, chosen.model.audio_length)
        line = (
            f"{seen / 1e6:.1f} M clips ({chosen.train.epochs:g} epochs) of {flop / 1e12:.2f} TFLOP: "
            f"{seen * flop / 1e18:.1f} EFLOP, {round(seen / chosen.train.batch_size, -3):,.0f} steps"
        )
        assert f"| `{name}` | {line} | {seen * flop / 125e12 / 3600:.0f} h |" in text


def test_table_8_is_the_papers() -> None:
    rows = {
        cells[0].strip(): [cell.strip() for cell in cells[1:-1]]
        for line in TABLES_OF_THE_PAPER["8"]
        if len(cells := line.split("|")) == 9
    }
    names = {
        "Base learning rate": "learning_rate",
        "Warm-up steps": "warmup_steps",
        "Epochs": "epochs",
        "Batch size": "batch_size",
        "Temporal Rolling Prob.": "roll_prob",
        "Class Balanced Sampling": "class_balanced",
        "Loss Function": "loss",
    }
    columns = ("", "-contrastive", "-as2m", "-as20k", "-vggsound", "-esc50", "-spc1")
    for row, field in names.items():
        # the loss is a setting of classifiers alone
        known = columns if field != "loss" else columns[2:]
        ours = [table_8(f"vab-encodec{column}")[f"train.{field}"] for column in known]
        assert ours == rows[row][-len(known) :], row


def tables() -> dict[int, Table]:
    """The paper's columns of each table, those before the first that is called here."""
    found: dict[int, Table] = {}
    for section in re.split(r"^## ", RESULTS, flags=re.M):
        if not (title := re.match(r"Table (\d+):", section)):
            continue
        lines = [line[1:-1].split("|") for line in section.splitlines() if line.startswith("|")]
        header = [cell.strip() for cell in lines[0]]
        ours = [n for n, cell in enumerate(header) if cell.startswith("here")]
        columns = ours[0] if ours else len(header)
        found[int(title[1])] = {
            cells[0].strip(): [part for cell in cells[1:columns] for part in cell.strip().split(" / ")]
            for cells in lines[2:]
        }
    return found


def expected() -> dict[int, dict[str, list[float | None]]]:
    """The same from the numbers that the commands print beside ours."""
    table: dict[int, dict[str, list[float | None]]] = {number: {} for number in TABLES}
    for row in GENERATION:
        numbers = [row.fad, row.kld, row.seconds]
        table[int(row.source[6:])][row.system] = numbers if row.source == "Table 1" else numbers[:1]
    for row in RETRIEVAL:
        if row.source == "Table 3":
            name = f"{row.system}, {ARROWS[row.way]}"
            table[3][name] = [number for recall in row.recall.values() for number in recall]
    fads = {row.name: row.paper[FAD] for name in ("order", "vision") for row in ABLATIONS[name].rows}
    for number, names in ((10, list(fads)[:2]), (14, list(fads)[2:])):
        rows = [row for row in RETRIEVAL if row.source == f"Table {number}"]
        for system, name in zip(dict.fromkeys(row.system for row in rows), names, strict=True):
            both = {row.way: row.recall["vggsound"] for row in rows if row.system == system}
            table[number][system] = [fads[name], *both[WAYS[0]], *both[WAYS[1]]]
    for row in CLASSIFICATION:
        scores = [score for each in row.scores.values() for score in each]
        audio_only = row.source == "Table 5"
        table[int(row.source[6:])][row.system] = scores[2::3] if audio_only else scores
    for number, name in ((12, "masking"), (16, "guidance"), (17, "temperature"), (18, "steps")):
        table[number] = {row.name: list(row.paper.values()) for row in ABLATIONS[name].rows}
    return table


def test_the_papers_numbers_are_the_same_everywhere() -> None:
    wanted = {
        number: {name: ["-" if x is None else x for x in numbers] for name, numbers in rows.items()}
        for number, rows in expected().items()
    }
    found = {
        number: {name: ["-" if x == "-" else float(x) for x in numbers] for name, numbers in rows.items()}
        for number, rows in tables().items()
    }
    assert found == wanted


def test_the_papers_numbers_are_those_of_the_paper() -> None:
    """Row by row, or column by column where ours stands on its side, digit by digit."""
    for number, rows in tables().items():
        lines = [" | ".join(numbers) for numbers in rows.values()]
        if number in (15, 16, 17, 18):
            lines = [" | ".join(column) for column in zip(*rows.values(), strict=True)]
        text = "\n".join(TABLES_OF_THE_PAPER[str(number)])
        assert [line for line in lines if f" {line} |" not in text] == [], f"Table {number}"
