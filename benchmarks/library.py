"""How fast and how right a library is: vab.library with 200,000 synthetic windows, exact and by its index.

The pictures' vectors lie near their sounds', but all to one side, as those of contrastive models do.

python benchmarks/library.py -o benchmarks/library_2-cores_2026-11.md
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from vab.inference.embeddings import Embedded, unit
from vab.library import library as vab_library
from vab.library.library import Library
from vab.library.table import Filters

DIM, WINDOWS, CENTRES, SPREAD = 192, 10, 2000, 0.7


def main() -> None:
    """Make the vectors, add them, measure, print, and write Markdown with ``-o``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-n", type=int, default=200_000, help="windows")
    parser.add_argument("-q", type=int, default=200, help="queries")
    parser.add_argument("-o", type=Path, help="Markdown file to write")
    chosen = parser.parse_args()
    load = os.getloadavg()[0]  # what else the machine does: 0 is nothing
    chance = np.random.default_rng(0)
    centres = chance.normal(size=(CENTRES, DIM))

    gap = chance.normal(size=DIM)

    def vectors(number: int) -> tuple[np.ndarray, np.ndarray]:
        around = centres[chance.integers(CENTRES, size=number)]
        audio, video = (around + SPREAD * chance.normal(size=(number, DIM)) for _ in range(2))
        return unit(audio.astype(np.float32)), unit((video + gap).astype(np.float32))

    def embed(paths: Iterable[Path]) -> Iterator[tuple[Path, Embedded | str]]:
        starts = 10.0 * np.arange(WINDOWS, dtype=np.float64)
        for path in paths:
            yield path, Embedded(starts, starts + 10, *vectors(WINDOWS))

    queries = dict(zip(("a sound", "a picture"), vectors(chosen.q), strict=True))
    took: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = list(empty_files(Path(folder) / "media", chosen.n // WINDOWS))
        library = Library.create(Path(folder) / "db", exact_below=chosen.n + 1)
        with timed(took, "add"):
            for result in library.add(files, embed, "synthetic"):
                assert result.status == "added", result.error
        commits = len(list(folder_of(library, "_versions")))
        manifests = sum(file.stat().st_size for file in folder_of(library, "_versions"))
        with timed(took, "add again, nothing new"):
            assert {result.status for result in library.add(files, embed, "synthetic")} == {"unchanged"}
        exact = {
            name: measured(lambda query: library.search(query, exact=True, windows=True), given)
            for name, given in queries.items()
        }
        # The files of one label; those of one folder. They are few, so the search is exact.
        filters = {"label": Filters(label="class7"), "folder": Filters(under=files[0].parent)}

        def filtered() -> list[float]:
            return [
                measured(partial(library.search, filters=given), queries["a sound"])[0]
                for given in filters.values()
            ]

        scanned = filtered()
        library.exact_below = chosen.n
        with timed(took, "indexes and their recall"):
            list(library.add(files[:1], embed, "synthetic"))
        fast = {
            name: measured(lambda query: library.search(query, windows=True), given)
            for name, given in queries.items()
        }
        indexed = filtered()
        by_file = {name: measured(library.search, given)[0] for name, given in queries.items()}
        assert library.meta is not None
        index = library.meta.indexes["audio"]
        size = sum(file.stat().st_size for file in (Path(folder) / "db").rglob("*") if file.is_file())
    rows = []
    for name in queries:
        pairs = zip(exact[name][1], fast[name][1], strict=True)
        recall = np.mean([len(a & b) / len(a) for a, b in pairs])
        rows.append(
            f"| {name} | {exact[name][0]:.1f} | {fast[name][0]:.1f} | {by_file[name]:.1f} | {recall:.4f} |"
        )
    lines = [
        f"# A library of {chosen.n:,} windows",
        "",
        f"{chosen.n // WINDOWS:,} files of {WINDOWS} windows, each with a vector for its sound and one",
        f"for its picture: D = {DIM}, {CENTRES:,} clusters, the pictures' shifted to one side.",
        f"{chosen.q} queries drawn like the sounds and as many drawn like the pictures, each",
        "compared with the sounds, k = 10.",
        "Synthetic: the times are those of any vectors of this size, the recall is not.",
        "",
        f"Machine: {os.cpu_count()} cores, {processor()}; load at the start {load:.1f}.",
        f"Python {platform.python_version()}, lancedb {version('lancedb')}.",
        "",
        f"Command: `python {' '.join(sys.argv)}`",
        "",
        "| query | exact, ms | by the index, ms | by the index, a hit a file, ms | recall@10 of the index |",
        "|---|---:|---:|---:|---:|",
        *rows,
        "",
        f"Times are medians. The index (IVF_SQ, refined with the true vectors) has {index.parts} parts and",
        f"looks into {index.probes}, the least of 8, 16, 32 ... that finds 98 % of the exact answer;",
        f"its own measure of recall@10, on 40 vectors of the library, is {index.recall:.4f}.",
        "",
        "| exact search among one in a hundred files | without an index of filters, ms | with it, ms |",
        "|---|---:|---:|",
        *(
            f"| by {name} | {before:.1f} | {after:.1f} |"
            for name, before, after in zip(filters, scanned, indexed, strict=True)
        ),
        "",
        "| step | seconds |",
        "|---|---:|",
        *(f"| {step} | {seconds:.1f} |" for step, seconds in took.items()),
        "",
        f"Versions on disk after adding: {commits:,}, whose manifests have {manifests / 1e6:.2f} MB.",
        f"In the end all has {size / 1e6:.0f} MB, with what was replaced in the last minutes.",
    ]
    print("\n".join(lines))
    if chosen.o is not None:
        chosen.o.write_text("\n".join(lines) + "\n", encoding="utf-8")


def empty_files(folder: Path, number: int) -> Iterator[Path]:
    """Files for the vectors to belong to."""
    for n in range(number):
        path = folder / f"class{n % 100}" / f"{n:06d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        yield path


def folder_of(library: Library, name: str) -> Iterator[Path]:
    """The files of one kind in the table of a library."""
    return (library.directory / "windows.lance" / name).iterdir()


def measured(
    search: Callable[[np.ndarray], list[vab_library.Hit]], queries: np.ndarray
) -> tuple[float, list[set]]:
    """Median milliseconds of a query, and what each found."""
    search(queries[0])  # the first one reads from disk
    times, found = [], []
    for query in queries:
        begin = time.perf_counter()
        hits = search(query)
        times.append(time.perf_counter() - begin)
        found.append({(hit.path, hit.start) for hit in hits})
    return float(np.median(times)) * 1000, found


@contextmanager
def timed(took: dict[str, float], name: str) -> Iterator[None]:
    """Write down the seconds of a step."""
    begin = time.perf_counter()
    yield
    took[name] = time.perf_counter() - begin


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def version(package: str) -> str:
    """The installed version of a package."""
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    main()
