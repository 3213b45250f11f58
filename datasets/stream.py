"""The order of training images: an endless stream of seeded permutations, cut into full batches.

The stream is the concatenation of one permutation per epoch, and batch k of global size B is its positions
[k B, (k + 1) B). So every image is seen exactly once per epoch, every batch is full (a batch may straddle two epochs),
and a global batch holds the same samples however it is split over processes and micro-batches. A resumed run
starts at any iteration without replaying the earlier ones. Workers do not stop at the end of an epoch, where restarting
them and refilling their queues would starve the GPU.
"""

from collections.abc import Iterator

import numpy as np

Key = tuple[int, int]  # epoch, index of the image


class BatchStream:
    """A DataLoader's batch_sampler: yields lists of (epoch, index) keys.

    For each iteration k from start_iteration to stop_iteration - 1 there are ``accumulate`` lists of
    b = batch_size / (world_size * accumulate) keys; list a of rank r starts at position k B + (a world_size + r) b.

    Args:
        num_images: images in an epoch.
        batch_size: global, over all ranks and micro-batches; a multiple of world_size * accumulate.
        seed: of the permutations.
        accumulate: micro-batches in an iteration.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        start_iteration: int,
        stop_iteration: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.start_iteration, self.stop_iteration = start_iteration, stop_iteration
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.micro_batch_size = batch_size // (world_size * accumulate)

    def __len__(self) -> int:
        return max(0, self.stop_iteration - self.start_iteration) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        orders: dict[int, np.ndarray] = {}
        for iteration in range(self.start_iteration, self.stop_iteration):
            for step in range(self.accumulate):
                part = step * self.world_size + self.rank
                begin = iteration * self.batch_size + part * self.micro_batch_size
                yield [self._key(position, orders) for position in range(begin, begin + self.micro_batch_size)]

    def _key(self, position: int, orders: dict[int, np.ndarray]) -> Key:
        epoch, place = divmod(position, self.num_images)
        if epoch not in orders:
            for passed in [other for other in orders if other < epoch]:
                del orders[passed]
            orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
        return epoch, int(orders[epoch][place])


def epoch_of(iteration: int, num_images: int, batch_size: int) -> int:
    """The epoch, from 0, of an iteration's first sample."""
    return iteration * batch_size // num_images


def iterations_for(epochs: int, num_images: int, batch_size: int) -> int:
    """The smallest number of iterations that shows every image ``epochs`` times."""
    return -(-epochs * num_images // batch_size)
