"""``python -m vab.bench.gpu gpu --device cuda --pages FOLDER [--small]``, and ``train`` likewise.

argparse, not the project's own command line: what that needs may be missing where a GPU is.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vab.bench.gpu.page import Section
from vab.bench.gpu.parts import GPU_PARTS, TOTAL, TRAIN_PARTS
from vab.bench.gpu.runner import run, run_part


def main(arguments: list[str] | None = None) -> int:
    """Run one page's parts; 0 if all are done and every check is met."""
    parser = argparse.ArgumentParser(prog="python -m vab.bench.gpu", description="What only a GPU can show.")
    parser.add_argument("what", choices=["gpu", "train"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pages", type=Path, default=Path("benchmarks"), help="folder of the page")
    parser.add_argument("--small", action="store_true", help="the size that two cores can do")
    options = parser.parse_args(arguments)
    # a run that is asked to stop ends its part too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # 1. The machine, in a process of its own like every part: a device that hangs must not hang the page.
    machine = Section("machine", limit=60)
    run_part("vab.bench.gpu.__main__:machine", machine, options.pages, options.device, options.small)
    if machine.status != "done":
        print(f"{options.device} cannot be used: {machine.error}", file=sys.stderr)
        return 1
    # 2. The parts, in the time that is left.
    known = sys.argv[1:] if arguments is None else arguments
    about = machine.rows[0] | {"size": "small" if options.small else "full"}
    about["command"] = f"python -m vab.bench.gpu {shlex.join(known)}"
    kind, parts = ("gpu", GPU_PARTS) if options.what == "gpu" else ("gpu-train", TRAIN_PARTS)
    if options.small:  # nothing hangs there, and the two cores may have other work too
        parts = tuple(part._replace(limit=TOTAL) for part in parts)
    page = run(kind, about, parts, options.pages, options.device, options.small, TOTAL - machine.seconds)
    print("\n".join(str(path) for path in page.paths))
    return 0 if all(section.good for section in page.sections) else 1


def machine(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """Describe the machine of the run."""
    import torch

    from vab.utils.device import pick_device
    from vab.utils.provenance import code_version

    where = pick_device(device)
    code = code_version()
    row: dict[str, Any] = {
        "card": f"{os.cpu_count()}-cores",
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }
    if where.type == "cuda":
        about = torch.cuda.get_device_properties(where)
        row |= {
            "card": about.name,
            "memory": f"{about.total_memory / 2**30:.1f} GiB",
            "multiprocessors": about.multi_processor_count,
            "compute capability": f"{about.major}.{about.minor}",
            "driver": _driver(),
            "CUDA of PyTorch": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    row |= {
        "processor": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "PyTorch": torch.__version__,
        "Python": platform.python_version(),
        "code": code["commit"] or f"{code['version']}, sources {code['sources'][:12]}",
    }
    return {"rows": [row]}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        return done.stdout.split("\n")[0].strip()
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
