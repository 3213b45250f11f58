"""Work done ahead in a pool, in order, and no further ahead than memory allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads; after an error, or Ctrl-C, what has begun is finished and nothing else is begun."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def prefetch(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Iterator[Result]:
    """`function` of each item, in order, computed in the pool up to `depth` items ahead of who asks."""
    under_way = deque()
    for item in items:
        under_way.append(pool.submit(function, item))
        while under_way and (under_way[0].done() or len(under_way) > depth):
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
