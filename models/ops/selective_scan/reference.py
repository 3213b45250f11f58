"""The selective scan as it is defined, step by step.

Symbols are Mamba's (Gu & Dao 2023, Sections 3.2 and 3.5; Algorithm 2), where S6 is the selective SSM:
    b batch (any number of dimensions), d channels, n states (d_state), l length;
    u       (b, d, l)   input x_t                  delta (b, d, l)  step size, before bias and softplus
    A       (d, n)      state matrix, real, < 0     B, C  (b, n, l)  input and output matrices of each step
    D       (d,)        skip connection             z     (b, d, l)  gate
"""

import torch
import torch.nn.functional as F

from .. import at_least_fp32


def selective_scan_ref(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;  y_t = C_t h_t + D u_t;  the result is y * SiLU(z)."""
    dtype_in = u.dtype
    u, delta, A, B, C = (at_least_fp32(t) for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)

    h = u.new_zeros(*u.shape[:-2], *A.shape)  # (b, d, n)
    y = []
    for t in range(u.shape[-1]):
        decay = torch.exp(delta[..., t, None] * A)  # (b, d, n)
        h = decay * h + (delta[..., t] * u[..., t])[..., None] * B[..., None, :, t]
        y.append((h * C[..., None, :, t]).sum(-1))  # (b, d)
    y = torch.stack(y, dim=-1)  # (b, d, l)

    if D is not None:
        y = y + D[:, None] * u
    if z is not None:
        y = y * F.silu(z)
    return y.to(dtype_in)
