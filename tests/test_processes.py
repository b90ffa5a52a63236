"""Several processes of one machine, and shares of work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import processes as at_work
from vab.errors import SettingError
from vab.utils.processes import ProcessError, devices_for, in_order, run_processes
from vab.utils.shares import Share

CPU = torch.device("cpu")


def test_results_come_in_order_and_messages_with_their_rank() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(5)
    heard: list[tuple[int, object]] = []
    try:
        found = run_processes(
            at_work.double, [3, 4], devices_for(2, "cpu"), lambda *message: heard.append(message)
        )
    finally:
        torch.set_num_threads(threads)
    assert [result for result, *_ in found] == [6, 8]
    assert [tuple(about) for _, *about in found] == [(0, 2, "cpu", 2), (1, 2, "cpu", 2)]
    assert sorted(heard) == [(0, "half of 3"), (1, "half of 4")]


def test_results_of_items_come_in_the_order_of_the_items() -> None:
    devices = [torch.device("cpu")] * 2
    results = list(in_order(at_work.each_takes_its_time, 0.2, list("abcdefg"), devices))  # type: ignore[arg-type]
    assert results == [(item, n % 2) for n, item in enumerate("abcdefg")]
    alone = list(in_order(at_work.each_takes_its_time, 0.0, [5], devices))
    assert alone == [(5, 0)]


def test_the_environment_is_that_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["VAB_CACHE", "VAB_DATA"]
    for value in ("a", "b"):  # whenever what starts the processes was started itself
        monkeypatch.setenv("VAB_CACHE", value)
        monkeypatch.delenv("VAB_DATA", raising=False)
        assert run_processes(at_work.variable, names, [CPU] * 2) == [value, None]


def test_one_argument_needs_no_process() -> None:
    assert run_processes(at_work.own_process, [None], [CPU]) == [os.getpid()]


@pytest.mark.parametrize(
    ("way", "kind", "message"),
    [
        ("ours", SettingError, r"^no such thing as fish$"),
        ("bug", ZeroDivisionError, "division by zero"),
        ("odd", RuntimeError, "OddError"),
        ("killed", ProcessError, r"^process 2 of 2 \(on cpu\) was killed \(SIGKILL\).*again to go on$"),
    ],
)
def test_what_goes_wrong_in_one_is_raised_here_and_ends_the_other(
    tmp_path: Path, way: str, kind: type[Exception], message: str
) -> None:
    begin = time.monotonic()
    with pytest.raises(kind, match=message) as caught:
        run_processes(at_work.fail, [("waits", tmp_path), (way, tmp_path)], [CPU] * 2)
    assert time.monotonic() - begin < 60
    notes = "\n".join(getattr(caught.value, "__notes__", []))
    assert ("in process 2 of 2" in notes) == (way == "bug")
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_however_the_parent_ends_the_others_do(tmp_path: Path, name: str) -> None:
    script = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from helpers import processes
from vab.utils.processes import run_processes
if __name__ == "__main__":
    run_processes(processes.wait_long, [Path({str(tmp_path)!r})] * 2, [torch.device("cpu")] * 2)
"""
    (tmp_path / "run.py").write_text(script)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py")], start_new_session=True, stderr=subprocess.PIPE
    )
    while len(list(tmp_path.glob("pid-*"))) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    if name == "SIGINT":  # as a terminal sends it: to all
        os.killpg(parent.pid, signal.SIGINT)
    else:
        parent.send_signal(getattr(signal, name))
    _, told = parent.communicate(timeout=30)
    assert parent.returncode and told.count(b"Traceback") == (name == "SIGINT")
    assert all(gone(int(path.read_text())) for path in tmp_path.glob("pid-*"))


def gone(pid: int) -> bool:
    """True once a process has ended."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_for(1, "cpu") == [CPU] and devices_for(3, "cpu") == [CPU] * 3
    with pytest.raises(SettingError, match="1 or more"):
        devices_for(0, "cpu")
    # a machine with three GPUs, as far as torch is asked how many there are
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("RANK", raising=False)
    assert devices_for(1) == [torch.device("cuda")]
    assert devices_for(2) == [torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(SettingError, match="there are 3 GPUs here"):
        devices_for(4, "cuda")
    for name, value in (("RANK", "6"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "2"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert devices_for(1) == [torch.device("cuda", 2)] and devices_for(1, "cpu") == [CPU]


@given(st.integers(1, 9), st.integers(1, 5), st.text(max_size=9))
def test_each_name_is_in_one_share_and_in_one_of_its_parts(count: int, parts: int, name: str) -> None:
    mine = [share for share in (Share(n, count) for n in range(count)) if share.has(name)]
    assert len(mine) == 1
    divided = [
        share.part(n, parts) for share in (Share(n, count) for n in range(count)) for n in range(parts)
    ]
    assert [share for share in divided if share.has(name)] == [
        part for part in (mine[0].part(n, parts) for n in range(parts)) if part.has(name)
    ]
    assert len({share.index for share in divided}) == count * parts
    assert Share.parse(str(mine[0])) == mine[0]


def test_a_name_that_is_not_utf_8_has_a_share_too() -> None:
    assert [Share(n, 3).has("clip\udcff") for n in range(3)].count(True) == 1


def test_shares_by_hand() -> None:
    assert Share.parse("1/4") == Share(0, 4) and Share.parse("4/4") == Share(3, 4)
    for text in ("0/4", "5/4", "1/0", "4", "1/", "a/b", "-1/4", "1/4/8", "1.0/4", "1/-4", ""):
        with pytest.raises(SettingError, match="1/N for the first to N/N for the last"):
            Share.parse(text)


def test_shares_of_the_environment() -> None:
    array = {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "4"}
    array["SLURM_ARRAY_TASK_STEP"] = "4"
    torchrun = {"RANK": "2", "WORLD_SIZE": "3"}
    srun = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}
    srun |= {"SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2"}
    assert Share.from_environment({}) == Share(0, 1)
    assert Share.from_environment(array) == Share(2, 4)
    assert Share.from_environment(torchrun) == Share(2, 3)
    assert Share.from_environment(srun, terminal=False) == Share(1, 2)
    assert Share.from_environment({**array, **srun}, terminal=False) == Share(2, 4).part(1, 2)
    # a person's shell, which srun --pty opened, does all of the work
    assert Share.from_environment(srun, terminal=True) == Share(0, 1)
    # torchrun inside srun counts all its processes
    assert Share.from_environment({**torchrun, **srun}) == Share(2, 3)
    # a batch script that asked for tasks, but did not start them
    assert Share.from_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == Share(0, 1)
    for wrong in (
        {**array, "SLURM_ARRAY_TASK_COUNT": "2"},
        {**torchrun, "RANK": "3"},
        {**torchrun, "RANK": "x"},
    ):
        with pytest.raises(SettingError, match="--shard I/N"):
            Share.from_environment(wrong)
