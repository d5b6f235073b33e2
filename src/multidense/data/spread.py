"""Spread: the same work on many images, over several processes, with the results in order."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

import torch

from multidense.types import MultidenseError

Place, Found = TypeVar("Place"), TypeVar("Found")

WORTH = 100
"""Beginning a process takes about as long as reading so many images."""
AHEAD = 8
"""Results that may wait for whoever takes them, for each process."""


def cores() -> int:
    """How many processes can run at the same time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(
    work: Callable[[Any, Place], Found], shared: Any, places: Sequence[Place], processes: int | None = None
) -> Iterator[Found]:
    """`work(shared, place)` for every place, in order; `work` is a function of a module, and `shared` can be pickled.

    `processes` is by default as many as there are cores and the places are worth; 1 does it all here. A process that works ends
    when the one that began it does, even if that was killed.
    """
    wanted = min(cores(), 1 + len(places) // WORTH) if processes is None else processes
    if wanted < 1:
        raise MultidenseError(f"processes should be at least 1, found {wanted}")
    if wanted == 1:
        yield from (work(shared, place) for place in places)
        return
    # Spawned, for a fork would copy locks that torch's threads or a progress bar's may hold.
    pool = ProcessPoolExecutor(wanted, get_context("spawn"), _begin, (work, shared))
    waiting: deque[Future] = deque()
    try:
        for place in places:
            waiting.append(pool.submit(_there, place))
            if len(waiting) >= AHEAD * wanted:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise MultidenseError("a process that read files ended, likely for want of memory; pass --processes 1") from error
    finally:
        pool.shutdown(cancel_futures=True)


_work: tuple[Callable, Any] = (lambda shared, place: None, None)


def _begin(work: Callable, shared: Any) -> None:
    global _work  # a pool's processes are given it once, not with every place
    _work = work, shared
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops them
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)


def _there(place: Any) -> Any:
    work, shared = _work
    return work(shared, place)
