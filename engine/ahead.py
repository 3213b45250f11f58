"""Work done ahead in a pool, in order, and no further ahead than memory allows."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


def ahead(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Iterator[Result]:
    """`function` of each item, in order, computed in the pool up to `depth` items ahead of who asks."""
    under_way = deque()
    for item in items:
        under_way.append(pool.submit(function, item))
        while under_way and (under_way[0].done() or len(under_way) > depth):
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
