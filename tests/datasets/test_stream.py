"""The stream of batches: every image once an epoch, and one global batch however it is split and wherever it starts."""

from collections import Counter

import numpy as np
import pytest
from torch.utils.data import DataLoader

from datasets.stream import BatchStream, epoch_of, iterations_for


def stream(**changes: int) -> list[list[tuple[int, int]]]:
    numbers = {"num_images": 10, "batch_size": 4, "seed": 3, "start_iteration": 0, "stop_iteration": 15} | changes
    return list(BatchStream(**numbers))


def test_every_image_once_an_epoch_in_another_order_each_time() -> None:
    keys = [key for batch in stream() for key in batch]
    assert Counter(keys) == Counter((epoch, index) for epoch in range(6) for index in range(10))
    assert [epoch for epoch, _ in keys] == sorted(epoch for epoch, _ in keys)
    orders = [tuple(index for epoch, index in keys if epoch == e) for e in range(6)]
    assert len(set(orders)) == 6
    assert [key for batch in stream(seed=4) for key in batch] != keys


def test_every_batch_is_full() -> None:
    assert {len(batch) for batch in stream()} == {4}
    assert {epoch for epoch, _ in stream()[2]} == {0, 1}  # It straddles two epochs of ten images.


@pytest.mark.parametrize("world_size,accumulate", [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_a_global_batch_is_the_same_however_it_is_split(world_size: int, accumulate: int) -> None:
    ranks = [stream(rank=rank, world_size=world_size, accumulate=accumulate) for rank in range(world_size)]
    whole = stream()
    assert all(len(rank) == len(whole) * accumulate for rank in ranks)
    for iteration, batch in enumerate(whole):
        steps = range(iteration * accumulate, (iteration + 1) * accumulate)
        assert [key for step in steps for rank in ranks for key in rank[step]] == batch


def test_resuming_goes_on_where_it_stopped() -> None:
    assert stream(stop_iteration=7) + stream(start_iteration=7) == stream()
    assert stream(accumulate=2, start_iteration=7) == stream(accumulate=2)[14:]


def test_a_batch_may_hold_several_epochs() -> None:
    keys = [key for batch in stream(num_images=3, batch_size=8, stop_iteration=3) for key in batch]
    assert Counter(keys) == Counter((epoch, index) for epoch in range(8) for index in range(3))


def test_epochs_and_iterations_agree_with_the_stream() -> None:
    for num_images, batch_size in ((10, 4), (7, 7), (3, 8), (2103, 16)):
        batches = stream(num_images=num_images, batch_size=batch_size, stop_iteration=300)
        assert [epoch_of(k, num_images, batch_size) for k in range(300)] == [batch[0][0] for batch in batches]
        for epochs in (1, 2, 5):
            iterations = iterations_for(epochs, num_images, batch_size)
            assert iterations * batch_size >= epochs * num_images > (iterations - 1) * batch_size


def test_length_and_use_as_batch_sampler() -> None:
    sampler = BatchStream(10, 4, 3, 2, 9, accumulate=2)
    assert len(sampler) == 14 == len(list(sampler))

    class Echo:
        def __getitem__(self, key: tuple[int, int]) -> np.ndarray:
            return np.array(key)

    loader = DataLoader(Echo(), batch_sampler=sampler)
    assert [[tuple(key) for key in batch.tolist()] for batch in loader] == list(sampler)
