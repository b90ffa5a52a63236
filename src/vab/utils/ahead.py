"""Work that threads do ahead of whoever takes its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def run_ahead(
    work: Callable[[A], B], items: Iterable[A], threads: int, depth: int
) -> Generator[tuple[A, B], None, None]:
    """Yield each item with ``work(item)``, in order; threads are at most ``depth`` items ahead.

    What ``work`` raises comes at the item that it was called for. The threads end with the generator, also if
    it is closed early.
    """
    waiting: deque[tuple[A, Future[B]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        try:
            # Submit one, hand out the oldest: never more than ``depth`` results in memory.
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > depth:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                last, future = waiting.popleft()
                yield last, future.result()
        finally:
            # What has not begun need not be done.
            for _, future in waiting:
                future.cancel()
