"""Run a function over many items in a pool of workers, a few items ahead of the consumer."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order.

    Executor.map would submit all items at once; here at most ``depth`` results wait in memory for the consumer.
    """
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        while pending and (pending[0].done() or len(pending) > depth):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def batches(items: Iterable[Item], size: int, kind: Callable[[Item], object]) -> Iterator[list[Item]]:
    """Up to ``size`` consecutive items of one ``kind`` at a time; a full batch does not wait for the next item."""
    for _, group in itertools.groupby(items, kind):
        while batch := list(itertools.islice(group, size)):
            yield batch
