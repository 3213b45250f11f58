"""Muon: orthogonalised momentum for the weight matrices inside the network; Adam for all other parameters.

Muon by K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; its step is scaled to Adam's, so that one
learning rate serves both, by Liu et al. 2025, https://arxiv.org/abs/2502.16982, Section 2.2. torch.optim.Muon (since
2.9) takes only matrices, one after another; here a convolution is a matrix (C_out, C_in * k * k), and all matrices of
one shape are updated together.
"""

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import nn

MOMENTUM, STEPS = 0.95, 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: singular values into 0.7 ... 1.2 in five steps
RMS = 0.2  # of the elements of Adam's usual step
ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8


class Muon(torch.optim.Optimizer):
    """Two groups of parameters, the matrices first.

    Args:
        network: an XYScanNet. Its matrices are the weights of its convolutions and linear layers, except depth-wise
            ones, the first and the last layer, and the scans' own x_proj and dt_proj.
        lr: the learning rate of both groups.
    """

    def __init__(self, network: nn.Module, lr: float):
        matrices = list(hidden_matrices(network))
        chosen = {id(p) for p in matrices}
        others = [p for p in network.parameters() if id(p) not in chosen]
        super().__init__(
            [{"params": matrices, "kind": "muon"}, {"params": others, "kind": "adam"}], {"lr": lr, "step": 0}
        )

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter with a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            group["step"] += 1
            if group["kind"] == "muon":
                self._muon(parameters, group["lr"])
            elif parameters:
                self._adam(parameters, group["lr"], group["step"])

    def _muon(self, parameters: list[torch.Tensor], lr: float) -> None:
        by_shape = defaultdict(list)
        for p in parameters:
            by_shape[p.flatten(1).shape].append(p)
        for shape, alike in by_shape.items():
            gradients = torch.stack([p.grad.flatten(1) for p in alike])
            momentum = torch.stack([self._state(p, "momentum").flatten(1) for p in alike])
            momentum.lerp_(gradients, 1 - MOMENTUM)
            steps = orthogonalise(gradients.lerp(momentum, MOMENTUM))  # Nesterov's
            for p, kept, step in zip(alike, momentum, steps, strict=True):
                self.state[p]["momentum"].copy_(kept.view_as(p))
                p.add_(step.reshape(p.shape), alpha=-lr * RMS * max(shape) ** 0.5)

    def _adam(self, parameters: list[torch.Tensor], lr: float, step: int) -> None:
        gradients = [p.grad for p in parameters]
        first, second = ([self._state(p, name) for p in parameters] for name in ("first", "second"))
        torch._foreach_lerp_(first, gradients, 1 - ADAM_BETAS[0])
        torch._foreach_mul_(second, ADAM_BETAS[1])
        torch._foreach_addcmul_(second, gradients, gradients, 1 - ADAM_BETAS[1])
        seen1, seen2 = (1 - beta**step for beta in ADAM_BETAS)  # the averages start at 0
        deviation = torch._foreach_sqrt(second)
        torch._foreach_div_(deviation, seen2**0.5)
        torch._foreach_add_(deviation, ADAM_EPSILON)
        torch._foreach_addcdiv_(parameters, first, deviation, -lr / seen1)

    def _state(self, p: torch.Tensor, name: str) -> torch.Tensor:
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p)
        return state[name]


def hidden_matrices(network: nn.Module) -> Iterator[nn.Parameter]:
    """Yields the weights that Muon updates, see ``Muon``."""
    for name, module in network.named_modules():
        plain = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        if plain and name not in ("patch_embed.proj", "output") and not name.endswith(("x_proj", "dt_proj")):
            yield module.weight


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """(B, M, N) -> the same shape: approximately the nearest matrices with orthonormal rows (or columns, if fewer).

    Fifth-order Newton-Schulz iterations; the singular values end within about 0.7 to 1.2.
    """
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-12)
    for _ in range(STEPS):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return x.transpose(1, 2) if tall else x
