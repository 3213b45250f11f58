"""The first culprit is named: parameter, output, loss term or gradient."""

import torch
from torch import nn

from engine.train.nan_check import first_nonfinite


class SquareRoot(nn.Module):
    def forward(self, x):
        return x.sqrt()


def network_of(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*layers)


def losses(network, x):
    def compute():
        total = network(x).sum()
        return total, {"sum": total}

    return compute


def test_a_parameter():
    network = network_of(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight.data[0, 0] = float("nan")
    assert first_nonfinite(network, losses(network, torch.ones(1, 2))) == "parameter 1.weight"


def test_the_first_output_and_not_those_after_it():
    network = network_of(nn.Linear(2, 2), SquareRoot(), nn.Linear(2, 2))
    network[0].weight.data.zero_(), network[0].bias.data.fill_(-1)
    assert first_nonfinite(network, losses(network, torch.ones(1, 2))) == "the output of 1 (SquareRoot)"


def test_a_gradient_where_the_forward_pass_is_finite():
    network = network_of(nn.Linear(2, 2), SquareRoot(), nn.Linear(2, 2))
    network[0].weight.data.zero_(), network[0].bias.data.zero_()  # the root's slope at 0 is infinite
    assert first_nonfinite(network, losses(network, torch.ones(1, 2))) == "the gradient of 1 (SquareRoot)"


def test_a_term_of_the_loss():
    network = network_of(nn.Linear(2, 2))
    terms = {"fine": torch.tensor(1.0), "broken": torch.tensor(float("inf"))}
    culprit = first_nonfinite(network, lambda: (network(torch.ones(1, 2)).sum(), terms))
    assert culprit == "the loss's term broken"


def test_nothing_and_no_hooks_left_behind():
    network = network_of(nn.Linear(2, 2))
    assert first_nonfinite(network, losses(network, torch.ones(1, 2))) is None
    assert not network[0]._forward_hooks and not network[0]._backward_hooks
