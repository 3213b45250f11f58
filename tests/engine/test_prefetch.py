"""Results in order, no further ahead than asked for; neighbours of one kind in batches."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.prefetch import batches, prefetch


def test_prefetch_keeps_the_order_and_its_distance():
    started, lock = [], threading.Lock()

    def double(item: int) -> int:
        with lock:
            started.append(item)
        time.sleep(0.002 * (item % 3))
        return 2 * item

    with ThreadPoolExecutor(4) as pool:
        results = prefetch(pool, double, iter(range(30)), depth=5)
        assert next(results) == 0 and len(started) <= 7
        assert list(results) == list(range(2, 60, 2))


@pytest.mark.parametrize(
    "size, expected", [(1, ["a", "a", "a", "b", "a"]), (2, ["aa", "a", "b", "a"]), (9, ["aaa", "b", "a"])]
)
def test_batches_hold_neighbours_of_one_kind(size, expected):
    assert ["".join(batch) for batch in batches("aaaba", size, kind=lambda letter: letter)] == expected


def test_a_full_batch_does_not_wait_for_the_next_item():
    def failing():
        yield from "ab"
        raise ValueError

    made = batches(failing(), 2, kind=lambda letter: None)
    assert next(made) == ["a", "b"]
    with pytest.raises(ValueError):
        next(made)
