"""The variants of the paper's ablations (Tables 5 to 8): which modules stand in the decoder and between the levels."""
from torch import nn

from .fusion import AFF, KLFF, Skip
from .ss2d import SS2D
from .vssm import InterVSSM, IntraVSSM

# Each choice's names, the network's own first.
VARIANTS = {"vssm": ("xyscan", "ss2d"), "scan": ("unidirectional", "bidirectional"),
            "slices": ("intra_inter", "intra", "inter"), "fusion": ("klff", "aff", "none")}
SLICES = {"intra": IntraVSSM, "inter": InterVSSM}


def check_variant(vssm: str, scan: str, slices: str, fusion: str) -> None:
    """ValueError for a name that is unknown, and for a choice among slices or scans where SS2D has neither."""
    for name, value in {"vssm": vssm, "scan": scan, "slices": slices, "fusion": fusion}.items():
        if value not in VARIANTS[name]:
            raise ValueError(f"{name} {value!r} is unknown; choose one of {', '.join(VARIANTS[name])}")
    if vssm == "ss2d" and (scan, slices) != (VARIANTS["scan"][0], VARIANTS["slices"][0]):
        raise ValueError(f"vssm ss2d has four scans of its own and no slices: leave out {scan=}, {slices=}")


def state_space_modules(dim: int, vssm: str, scan: str, slices: str, scan_backend: str) -> list[nn.Module]:
    """The two of a decoder block."""
    if vssm == "ss2d":
        return [SS2D(dim, scan_backend=scan_backend) for _ in range(2)]
    kinds = ("intra", "inter") if slices == "intra_inter" else (slices, slices)
    return [SLICES[kind](dim, scan_backend, scan == "bidirectional") for kind in kinds]


def fusion_module(dim: int, other_dims: tuple[int, int], fusion: str, kl_gate: str) -> nn.Module:
    """What joins a level's features with the two other levels', see ``fusion.KLFF``."""
    if fusion == "klff":
        return KLFF(dim, other_dims, kl_gate)
    return AFF(dim, other_dims) if fusion == "aff" else Skip()
