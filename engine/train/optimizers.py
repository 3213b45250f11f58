"""The list of optimisers, the values of ``optim.name``. A new one is a function or class and a line in OPTIMIZERS."""

from collections.abc import Callable

import torch
from torch import nn

from .muon import Muon


def adam(network: nn.Module, lr: float) -> torch.optim.Adam:
    """Adam, the paper's; fused on a GPU, where it is faster and can skip a step by itself, see `skips_steps`."""
    parameters = list(network.parameters())
    return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.999), fused=parameters[0].is_cuda or None)


# name -> constructor from the network and the learning rate
OPTIMIZERS: dict[str, Callable[[nn.Module, float], torch.optim.Optimizer]] = {"adam": adam, "muon": Muon}


def skips_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimiser skips a step on the device where its ``found_inf`` is 1, as GradScaler's protocol has it.

    PyTorch's fused optimisers do.
    """
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load a state dict that may come from another device: whether the optimiser is fused stays as it is."""
    fused = optimizer.param_groups[0].get("fused")
    groups = [{**group, "fused": fused} if "fused" in group else group for group in state["param_groups"]]
    optimizer.load_state_dict({**state, "param_groups": groups})
