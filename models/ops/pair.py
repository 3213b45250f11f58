"""The autograd function of an element-wise operation on two tensors: one pass forward and one backward."""

import torch


class Pair(torch.autograd.Function):
    """``apply(compute, a, b)``, where compute(a, b) is (y,), and compute(a, b, y's gradient) those of a and b.

    Only a and b are kept for the backward pass.
    """

    @staticmethod
    def forward(ctx, compute, a, b):
        ctx.compute = compute
        ctx.save_for_backward(a, b)
        (y,) = compute(a, b)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return None, *ctx.compute(*ctx.saved_tensors, grad)
