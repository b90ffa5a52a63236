"""Batches made ahead of the step that takes them, by threads.

Threads, not processes: what takes time (reading mapped pages, hashing, copying) runs without Python's lock,
errors arrive as they are, and nothing is copied or sent. A batch is a function of its step, so that neither
the number of threads nor their order changes what is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

from vab.training.batches import Batch
from vab.utils.ahead import run_ahead

T = TypeVar("T")


@contextmanager
def made_ahead(
    make: Callable[[T], Batch], items: Iterable[T], *, workers: int = 1, prefetch: int = 2, pin: bool = False
) -> Iterator[Iterator[Batch]]:
    """An iterator over ``make(item)`` in order, made up to ``prefetch`` batches ahead by ``workers`` threads.

    With ``pin`` the batches lie in pinned memory, from where a GPU takes them while it computes.
    What ``make`` raises comes at the batch that it was called for. The ``with`` block's end ends the threads.
    """

    def work(item: T) -> Batch:
        batch = make(item)
        return batch.pin() if pin else batch

    with closing(run_ahead(work, items, workers, prefetch)) as made:
        yield (batch for _, batch in made)
