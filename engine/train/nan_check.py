"""Find the parameter, module or loss term that first produced NaN or Inf."""

import warnings
from collections.abc import Callable

import torch
from torch import nn


class NonFiniteError(RuntimeError):
    """A loss, gradient or weight is NaN or infinite; training past it would destroy the weights."""


def nonfinite_parameter(network: nn.Module) -> str | None:
    """The name of the first parameter that is not finite; None where all are."""
    named = dict(network.named_parameters())
    finite = torch.stack([torch.isfinite(parameter).all() for parameter in named.values()]).tolist()  # one wait
    return next((name for name, fine in zip(named, finite, strict=True) if not fine), None)


def first_nonfinite(
    network: nn.Module, losses: Callable[[], tuple[torch.Tensor, dict[str, torch.Tensor]]]
) -> str | None:
    """Repeat a training step and name what first became NaN or Inf; None where all is finite.

    Checked in the order of computation: parameters, the output of each module, the terms of the loss, then, backwards,
    the input gradient of each module and the gradient of each parameter.

    Args:
        losses: the forward pass of ``network`` and its loss, as in training: returns the total and its terms.
    """
    if name := nonfinite_parameter(network):
        return f"parameter {name}"
    found: list[str] = []
    hooks = []
    for name, module in network.named_modules():
        what = f"{name or 'network'} ({type(module).__name__})"

        def check(tensors, what=what):
            if not found and not all(_finite(tensor) for tensor in tensors if torch.is_tensor(tensor)):
                found.append(what)

        hooks.append(module.register_forward_hook(lambda module, inputs, output, check=check: check([output])))
        hooks.append(module.register_full_backward_hook(lambda module, inputs, outputs, check=check: check(inputs)))
    try:
        network.zero_grad(set_to_none=True)
        total, terms = losses()
        if found:
            return f"the output of {found[0]}"
        for name, term in terms.items():
            if not _finite(term):
                return f"the loss's term {name}"
        with warnings.catch_warnings():  # the image needs no gradient
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            total.backward()
    finally:
        for hook in hooks:
            hook.remove()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and not _finite(parameter.grad):
            found.append(f"parameter {name}")
    return f"the gradient of {found[0]}" if found else None


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
