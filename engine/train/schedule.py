"""The learning rate: one cosine (Loshchilov & Hutter 2017, Equation 5; the paper's Section 4.1)."""

import math


def cosine(position: int, length: int, lr: float, min_lr: float) -> float:
    """lr at position 0, min_lr at ``length`` and after: min_lr + (lr - min_lr) (1 + cos(pi position / length)) / 2."""
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * min(position, length) / length)) / 2
