"""Memory traffic and arithmetic of the network on a GPU by kind of operation, ours and the baseline's; needs no GPU.

    python -m benchmarks.traffic                    XYScanNet-P, one 1280 x 720 image, as on an H100

The networks run on shapes alone, as for a CUDA device. Every operation that PyTorch would launch counts the bytes that
it reads and writes, each operand once; views count nothing, and an operation with a kernel of its own (models/ops)
counts as one. `ms` is the longer of bytes at the data sheet's bandwidth and arithmetic at its peak (TF32 in fp32
convolutions, PyTorch's default); for scans and depth-wise convolutions it is at least the bound by instruction slots
of sass.py's model. The sum is a lower bound on time, a model and not a measurement: it assumes that each operation
reaches its limit and that nothing stays in the cache between two of them. Of the rows below `all`,

    fused       has every element-wise operation, norm, concatenation and copy in the product, convolution or scan
                beside it, so that they move nothing
    one kernel  also has each feed-forward network and each Mamba block in one kernel, which reads its input and writes
                its output

Ours is the network as prediction runs it on a GPU, its blocks fused (models/fused.py); `plain` is without that.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
import torch.nn.functional as F
from einops import rearrange
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks import measure
from benchmarks.baseline import Baseline, Mamba
from engine.console import readable_errors
from models import XYScanNet
from models.blocks import GatedFFN
from models.fused import with_fused_levels
from models.mamba import S6

# Of an H100 SXM: bytes/s, and FLOP/s of products of these types (TF32: convolutions of fp32 numbers).
BANDWIDTH = 3.352e12
PEAK = {"fp32": 66.9e12, "tf32": 494.7e12, "bf16": 989.4e12}
# Instruction slots per second, and instructions per output element: sass.py's for ours, and those counted in the
# same way in mamba-ssm 2.3.2's scan, which computes each chunk of 2048 steps in full.
SLOTS = 132 * 4 * 1.83e9 * 32
OURS = {"scan": {"fp32": 250, "bf16": 284}, "gated": {"fp32": 54, "bf16": 64}, "plain": {"fp32": 24, "bf16": 29}}
MAMBA_SSM = 642
REPLACED = [  # operations with a kernel of their own, where they are used
    *[("mamba", name) for name in ("selective_scan", "causal_conv_silu")],
    *[("blocks", name) for name in ("depthwise", "gated_depthwise", "channel_norm")],
    *[("fused", name) for name in ("depthwise", "gated_depthwise")],
    *[("vssm", "silu_gate"), ("fusion", "kl_divergence")],
]
NO_KERNEL = ("device", "promote_types", "empty", "new_empty", "_unsafe_view", "detach", "alias")
PRODUCTS = ("matrix product", "Mamba block")  # not TF32 by default
FUSIBLE = ("elementwise", "norm", "copy", "gate", "divergence")
COLUMNS = [("", -26), ("calls", 7), ("GB", 9), ("ms", 9), ("share, x baseline", 19)]


@dataclass
class Cost:
    """Of one kind of operation, or of all."""

    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass
class Traffic(TorchDispatchMode):
    """Counts calls, bytes and least seconds by kind of operation while it is active."""

    by_kind: dict[str, Cost] = field(default_factory=lambda: defaultdict(Cost))

    def __post_init__(self):
        super().__init__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if not function.is_view and not name.startswith(NO_KERNEL):
            counter = flop_registry.get(function.overloadpacket)
            flops = counter(*args, **(kwargs or {}), out_val=out) if counter else 0
            self.add(kind_of(name, args), tensors((args, kwargs, out)), flops)
        return out

    def add(self, kind: str, operands: list[torch.Tensor], flops: float = 0, least: float = 0) -> None:
        """Count one call of ``kind``, of at least ``least`` seconds."""
        moved = sum(distinct(operand) * operand.itemsize for operand in operands)
        half = bool(operands) and operands[0].dtype != torch.float32
        peak = PEAK["bf16" if half else "tf32" if kind not in PRODUCTS else "fp32"]
        cost = self.by_kind[kind]
        cost.calls, cost.bytes = cost.calls + 1, cost.bytes + moved
        cost.seconds += max(moved / BANDWIDTH, flops / peak, least)

    def scan(self, operands: list[torch.Tensor], instructions: float) -> None:
        self.add("scan", operands, least=instructions * operands[0].numel() / SLOTS)


def tensors(nested: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, torch.Tensor)]


def distinct(tensor: torch.Tensor) -> int:
    """Elements in memory: a broadcast dimension counts once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count


def kind_of(name: str, args: tuple) -> str:
    if name == "convolution":
        weight, groups = args[1], args[8]
        return "depth-wise convolution" if groups > 1 else f"{weight.shape[2]}x{weight.shape[3]} convolution"
    if name in ("mm", "addmm", "bmm"):
        return "matrix product"
    if name == "native_layer_norm":
        return "norm"
    if name in ("mean", "sum"):
        return "reduction"
    if name.startswith("upsample"):
        return "resize"
    return "copy" if name in ("clone", "copy_", "_to_copy", "cat", "constant_pad_nd") else "elementwise"


@contextmanager
def on_a_gpu(bf16: bool) -> Iterator[None]:
    """Tensors without numbers, on a CUDA device that need not be there, under autocast or not."""
    before, dtype_before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), torch.device("cuda"):
        torch.set_autocast_enabled("cuda", bf16)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            yield
        finally:
            torch.set_autocast_enabled("cuda", before)
            torch.set_autocast_dtype("cuda", dtype_before)


class Kernels:
    """Stand-ins for our operations, under their names and with their arguments, that count and do not compute."""

    def __init__(self, counted: Traffic, precision: str):
        self.counted = counted
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.instructions = {name: by_precision[precision] for name, by_precision in OURS.items()}

    def selective_scan(self, u, delta, A, B, C, D, z, bias, delta_softplus, backend):
        y = torch.empty_like(u)
        self.counted.scan([u, delta, B, C, z, y], self.instructions["scan"])
        return y

    def causal_conv_silu(self, x, weight, bias, backend):
        return self._made("causal convolution", torch.empty_like(x), x)

    def depthwise(self, x, weight):
        y = torch.empty_like(x)
        return self._made("depth-wise convolution", y, x, least=self.instructions["plain"] * y.numel() / SLOTS)

    def gated_depthwise(self, x, weight):
        y = torch.empty_like(x[:, ::2])
        return self._made("depth-wise gate", y, x, least=self.instructions["gated"] * y.numel() / SLOTS)

    def channel_norm(self, x, weight, bias, eps):
        return self._made("norm", torch.empty_like(x, dtype=self.dtype), x)

    def silu_gate(self, a, b):
        return self._made("gate", torch.empty_like(a), a, b)

    def kl_divergence(self, a, b):
        return self._made("divergence", torch.empty_like(a, dtype=torch.float32), a, b)

    def normed_product(self, x, norm_weight, norm_bias, eps, W):
        return self.product(x, W)

    def product(self, values, W, x=None):
        y = values.new_empty(*values.shape[:3], len(W))
        read = [values, W] if x is None else [values, W, x]
        return self._made("fused product", y, *read, flops=2 * y.numel() * W.shape[1])

    def gated_projection(self, x, h, v, gate, W_in, W_out):
        y = torch.empty_like(x)
        return self._made("gated projection", y, x, h, v, gate, W_in, W_out, flops=4 * y.numel() * len(W_in))

    def feed_forward(self, module: GatedFFN, x):
        """A feed-forward network in one kernel."""
        weights = sum(parameter.numel() for parameter in module.parameters())
        y = torch.empty_like(x, dtype=self.dtype)
        return self._made("feed-forward network", y, y, flops=2 * weights * x.numel() / x.shape[1])

    def mamba(self, module: S6, u):
        """S6 in one kernel."""
        y, steps = torch.empty_like(u, dtype=self.dtype), len(module.D) * u.numel() / u.shape[-1]
        return self._made("Mamba block", y, y, least=self.instructions["scan"] * steps / SLOTS)

    def _made(self, kind: str, y: torch.Tensor, *read: torch.Tensor, flops: float = 0, least: float = 0):
        self.counted.add(kind, [*read, y], flops, least)
        return y


def ours(dim: int, height: int, width: int, precision: str, blocks: str = "fused") -> dict[str, Cost]:
    """The traffic of our network with the Triton kernels, by kind; ``blocks`` are fused, plain or one kernel."""
    counted = Traffic()
    kernels = Kernels(counted, precision)
    with ExitStack() as stack:
        for file, name in REPLACED:
            stack.enter_context(patch(f"models.{file}.{name}", getattr(kernels, name)))
        stack.enter_context(patch("models.ops.fused_triton", kernels, create=True))
        stack.enter_context(patch("models.fused._runs", lambda x: True))
        if blocks == "one kernel":
            stack.enter_context(patch.object(GatedFFN, "forward", lambda *given: kernels.feed_forward(*given)))
            stack.enter_context(patch.object(S6, "forward", lambda *given: kernels.mamba(*given)))
        stack.enter_context(on_a_gpu(precision == "bf16"))
        network, image = XYScanNet(dim), torch.empty(1, 3, height, width)
        if blocks == "fused":
            network = with_fused_levels(network)
        with counted:
            network(image)
    return dict(counted.by_kind)


def baseline(dim: int, height: int, width: int) -> dict[str, Cost]:
    """The traffic of the baseline with mamba-ssm's fused kernels, in fp32, by kind."""
    counted = Traffic()

    def fused(module: Mamba, xz: torch.Tensor) -> torch.Tensor:
        """As mamba_ssm.mamba_inner_fn computes it."""
        x, z = xz.chunk(2, dim=1)
        convolved = torch.empty_like(x)
        counted.add("causal convolution", [x, convolved])
        dt, B, C = module.x_proj(rearrange(convolved, "b d l -> (b l) d")).split(module.sizes, dim=-1)
        delta = rearrange(module.dt_proj.weight @ dt.t(), "d (b l) -> b d l", l=x.shape[2])
        B, C = (rearrange(t, "(b l) n -> b n l", l=x.shape[2]).contiguous() for t in (B, C))
        y, gated = torch.empty_like(x), torch.empty_like(x)  # the kernel writes both
        steps, chunk = x.shape[2], min(2048, max(128, 1 << (x.shape[2] - 1).bit_length()))
        counted.scan([x, delta, B, C, z, y, gated], MAMBA_SSM * (-steps // chunk * -chunk) / steps)
        return F.linear(rearrange(gated, "b d l -> b l d"), module.out_proj.weight)

    with on_a_gpu(False):
        network, image = Baseline(dim, scan_backend="torch"), torch.empty(1, 3, height, width)
        for module in network.modules():
            if isinstance(module, Mamba):
                module.fused = lambda xz, *_, module=module, **__: fused(module, xz)
        with counted:
            network(image)
    return dict(counted.by_kind)


def whole(by_kind: dict[str, Cost], leave_out: tuple[str, ...] = ()) -> Cost:
    kept = [cost for kind, cost in by_kind.items() if kind not in leave_out]
    return Cost(*(sum(getattr(cost, name) for cost in kept) for name in ("calls", "bytes", "seconds")))


def main() -> None:
    arguments = parse_arguments()
    dim, (height, width) = arguments.dim, arguments.size
    theirs = baseline(dim, height, width)
    print_table("baseline, fp32", theirs, {"fused": whole(theirs, FUSIBLE)}, whole(theirs))
    for precision in ("fp32", "bf16"):
        by_kind, plain, one = (ours(dim, height, width, precision, kind) for kind in ("fused", "plain", "one kernel"))
        bounds = {"plain": whole(plain), "fused": whole(plain, FUSIBLE), "one kernel": whole(one, FUSIBLE)}
        print_table(f"ours, {precision}", by_kind, bounds, whole(theirs))


def print_table(title: str, by_kind: dict[str, Cost], bounds: dict[str, Cost], reference: Cost) -> None:
    total = whole(by_kind)
    measure.print_row(COLUMNS, [title, *[heading for heading, _ in COLUMNS[1:]]])
    for kind, cost in sorted(by_kind.items(), key=lambda item: -item[1].seconds):
        print_cost(kind, cost, f"{cost.seconds / total.seconds:.0%}")
    for kind, cost in {"all": total, **bounds}.items():
        print_cost(kind, cost, f"{reference.seconds / cost.seconds:.2f}x")
    print()


def print_cost(kind: str, cost: Cost, last: str) -> None:
    cells = [f"{cost.calls}", f"{cost.bytes / 1e9:.1f}", f"{cost.seconds * 1e3:.2f}"]
    measure.print_row(COLUMNS, [f"  {kind}", *cells, last])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=144, help="channels: 48 (S), 72 or 144 (P) (default %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=[720, 1280], metavar=("HEIGHT", "WIDTH"))
    return parser.parse_args()


if __name__ == "__main__":
    with readable_errors():
        main()
