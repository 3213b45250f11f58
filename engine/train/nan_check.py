"""When a number stops being one: find the first module that produced it, keep the batch, stop."""

import warnings
from collections.abc import Callable

import torch
from torch import nn


class NonFiniteError(RuntimeError):
    """A loss or gradient that is infinite or not a number; training past it would destroy the weights."""


def nonfinite_parameter(network: nn.Module) -> str | None:
    """The first parameter of ``network`` that is not finite; None where all are."""
    named = dict(network.named_parameters())
    finite = torch.stack([torch.isfinite(parameter).all() for parameter in named.values()]).tolist()  # at once
    return next((name for name, fine in zip(named, finite, strict=True) if not fine), None)


def first_nonfinite(
    network: nn.Module, losses: Callable[[], tuple[torch.Tensor, dict[str, torch.Tensor]]]
) -> str | None:
    """Run ``losses`` (forward and loss, as in training) and its backward pass again; name what fails first, if any.

    Looked at in the order of computation: parameters, each module's output, the loss's terms, then, going back,
    each module's input gradient and each parameter's gradient.
    """
    for name, parameter in network.named_parameters():
        if not _finite(parameter):
            return f"parameter {name}"
    found: list[str] = []
    hooks = []
    for name, module in network.named_modules():
        what = f"{name or 'network'} ({type(module).__name__})"
        hooks.append(module.register_forward_hook(_forward_hook(what, found)))
        hooks.append(module.register_full_backward_hook(_backward_hook(what, found)))
    try:
        network.zero_grad(set_to_none=True)
        total, terms = losses()
        if found:
            return f"the output of {found[0]}"
        for name, term in terms.items():
            if not _finite(term):
                return f"the loss's term {name}"
        with warnings.catch_warnings():  # that the image itself needs no gradient is as it should be
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            total.backward()
    finally:
        for hook in hooks:
            hook.remove()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and not _finite(parameter.grad):
            found.append(f"parameter {name}")
    return f"the gradient of {found[0]}" if found else None


def _forward_hook(what: str, found: list[str]):
    def hook(module, inputs, output):
        if not found and torch.is_tensor(output) and not _finite(output):
            found.append(what)

    return hook


def _backward_hook(what: str, found: list[str]):
    def hook(module, grad_inputs, grad_outputs):
        if not found and any(gradient is not None and not _finite(gradient) for gradient in grad_inputs):
            found.append(what)

    return hook


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
