"""The selective scan in vectorised PyTorch: any device, forward and backward, memory linear in the length.

Only the recurrence runs step by step, one fused multiply-add for all sequences, channels and states at once;
exponentials and sums over states are computed for a chunk of steps in one call. For the backward pass only the state at
each chunk's start is kept; the others are recomputed (Gu & Dao 2023, Section 3.3.2).

Tensors are (l, b, n, d) inside, so that a step is one contiguous block and every product's innermost loop runs over
channels. Sequences are processed in groups, so that a chunk stays in cache.
Symbols as in reference.py.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from .. import at_least_fp32

CHUNK = 8  # steps between two kept states
GROUP_ELEMENTS = 2**16  # states of one step of a group on a CPU: fits a core's cache


def selective_scan_chunked(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """Same arguments and result as the reference's."""
    dtype_in = u.dtype
    u, delta, A, B, C = (at_least_fp32(t) for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)

    time_first = [t.movedim(-1, 0).reshape(t.shape[-1], -1, t.shape[-2]).contiguous() for t in (u, delta, B, C)]
    y = _Recurrence.apply(*time_first[:2], A, *time_first[2:])  # (l, b, d)
    y = y.reshape(u.shape[-1], *u.shape[:-1]).movedim(0, -1)  # (*batch, d, l)

    if D is not None:
        y = y + D[:, None] * u
    if z is not None:
        y = y * F.silu(z)
    return y.to(dtype_in)


class _Recurrence(torch.autograd.Function):
    """y_t = C_t h_t for u, delta (l, b, d), A (d, n), B, C (l, b, n)."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C):
        keep = any(ctx.needs_input_grad)
        length, batch, channels = u.shape
        A_nd = A.t().contiguous()
        y = torch.empty_like(u)
        starts = u.new_empty(-(-length // CHUNK) if keep else 0, batch, *A_nd.shape)
        for group in _groups(batch, A.numel(), u.device):
            h = u.new_zeros(group.stop - group.start, *A_nd.shape)
            work = _Work(u, group, A_nd)
            for k, steps in enumerate(_chunks(length)):
                if keep:
                    starts[k, group] = h
                _, states = work.states(u[steps, group], delta[steps, group], B[steps, group], h)
                y[steps, group] = _sum_states(states, C[steps, group])
                h = states[-1].clone()
        if keep:
            ctx.save_for_backward(u, delta, A, B, C, starts)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y):
        u, delta, A, B, C, starts = ctx.saved_tensors
        A_nd = A.t().contiguous()
        grad_u, grad_delta, grad_B, grad_C = (torch.empty_like(t) for t in (u, delta, B, C))
        grad_A = torch.zeros_like(A_nd)
        for group in _groups(u.shape[1], A.numel(), u.device):
            work = _Work(u, group, A_nd)
            carry = torch.zeros_like(starts[0, group])  # exp(delta_{t+1} A) * dL/dh_{t+1}, from the chunk after
            for k, steps in reversed(list(enumerate(_chunks(u.shape[0])))):
                at = (steps, group)
                h_start = starts[k, group]
                decay, states = work.states(u[at], delta[at], B[at], h_start)
                grad_C[at] = torch.matmul(states, grad_y[at].unsqueeze(-1)).squeeze(-1)

                # dL/dh_t = C_t dL/dy_t + exp(delta_{t+1} A) dL/dh_{t+1}, from the last step to the first.
                grad_h = torch.mul(C[at].unsqueeze(-1), grad_y[at].unsqueeze(-2))
                for t in reversed(range(len(grad_h))):
                    grad_h[t] += carry
                    torch.mul(grad_h[t], decay[t], out=carry)

                grad_input = _sum_states(grad_h, B[at])  # of delta_t u_t
                grad_B[at] = torch.matmul(grad_h, (delta[at] * u[at]).unsqueeze(-1)).squeeze(-1)
                grad_u[at] = grad_input * delta[at]

                # of delta_t A: dL/dh_t * h_{t-1} * exp(delta_t A)
                grad_h.mul_(decay)
                grad_h[0] *= h_start
                grad_h[1:] *= states[:-1]
                grad_delta[at] = (grad_h * A_nd).sum(-2).addcmul_(grad_input, u[at])
                grad_A += torch.einsum("lbnd,lbd->nd", grad_h, delta[at])
        return grad_u, grad_delta, grad_A.t(), grad_B, grad_C


class _Work:
    """Scratch memory of one group of sequences: allocated once, reused for every chunk."""

    def __init__(self, like: torch.Tensor, group: slice, A_nd: torch.Tensor):
        shape = (CHUNK, group.stop - group.start, *A_nd.shape)
        self.A = A_nd
        self.decay, self.h = like.new_empty(shape), like.new_empty(shape)

    def states(self, u, delta, B, h_start):
        """exp(delta_t A) and h_t for a chunk's steps, (l, b, n, d) each; valid until the next call."""
        decay, h = self.decay[: len(u)], self.h[: len(u)]
        torch.mul(delta.unsqueeze(-2), self.A, out=decay).exp_()
        torch.mul(B.unsqueeze(-1), (delta * u).unsqueeze(-2), out=h)
        for t in range(len(u)):
            h[t].addcmul_(decay[t], h[t - 1] if t else h_start)
        return decay, h


def _sum_states(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum over n of weights (l, b, n) times states (l, b, n, d)."""
    return torch.matmul(weights.unsqueeze(-2), states).squeeze(-2)


def _chunks(length: int) -> Iterator[slice]:
    return (slice(t, min(t + CHUNK, length)) for t in range(0, length, CHUNK))


def _groups(batch: int, states_per_sequence: int, device: torch.device) -> Iterator[slice]:
    size = max(1, GROUP_ELEMENTS // states_per_sequence) if device.type == "cpu" else batch
    return (slice(b, min(b + size, batch)) for b in range(0, batch, size))
