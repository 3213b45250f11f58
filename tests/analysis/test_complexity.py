"""Counts are those one makes by hand, or by another counter; the command prints them, and what it measures."""

import contextlib
import io
import json
import re

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from analysis.complexity import COLUMNS, cell, main
from analysis.macs import WHOLE, Counts, _causal_conv_silu, count, count_network, paper_fusion_macs, scan_macs
from analysis.variants import TABLES
from benchmarks.baseline import Baseline
from benchmarks.roofline import count as count_plainly
from metrics.paper import paper_table
from models import XYScanNet, fusion, mamba
from models.blocks import ChannelNorm, GatedFFN
from models.mamba import S6
from models.ops.causal_conv import causal_conv_silu_ref
from models.ops.selective_scan.reference import selective_scan_ref
from models.registry import FUSIONS, STATE_SPACES, Options
from models.ss2d import SS2D
from models.vssm import InterVSSM, IntraVSSM
from tests.measurements import fork_measurements
from tests.workplace import ROOT

H, W = 12, 20
VARIANTS = {
    "xyscan": {},
    "ss2d": {"vssm": "ss2d"},
    "bidirectional": {"scan": "bidirectional"},
    "intra": {"slices": "intra"},
    "inter": {"slices": "inter"},
    "aff": {"fusion": "aff"},
    "no_fusion": {"fusion": "none"},
}


@pytest.fixture(autouse=True, scope="module")
def counted_once():
    """A network that several tests count is counted once."""
    known: dict[str, Counts] = {}

    def remembered(network: XYScanNet, size: int) -> Counts:
        key = json.dumps([network.description, size])
        if key not in known:
            known[key] = count_network(network, size)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.macs.count_network", remembered)
        yield remembered


class WithNorm(nn.Module):
    """A feed-forward network or state space module as the network's blocks call it."""

    def __init__(self, inner: nn.Module, dim: int):
        super().__init__()
        self.inner, self.norm = inner, ChannelNorm(dim)

    def forward(self, x):
        return x + self.inner(self.norm(x))


class AlongRows(nn.Module):
    def __init__(self, s6: S6):
        super().__init__()
        self.s6 = s6

    def forward(self, x):
        return self.s6(x)


class Products(TorchDispatchMode):
    """Counts elementwise multiplications."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket is torch.ops.aten.mul:
            self.number += out.numel()
        return out


def s6_macs(d_model: int, tokens: int, scans: int = 1, projections: bool = True) -> int:
    """in_proj and out_proj; as often as it scans: causal convolution, x_proj, dt_proj, and the recurrence."""
    d, rank, states = 2 * d_model, -(-d_model // 16), 16
    inside = d * 4 + d * (rank + 2 * states) + rank * d + d * (4 * states + 3)
    return tokens * (scans * inside + projections * (d_model * 2 * d + d * d_model))


def test_known_layers():
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, groups=8, stride=2, padding=1),
        nn.Flatten(2),
        nn.Linear(H * W // 4, 5, bias=False),
    )
    macs = count(layers, 2, 3, H, W)
    assert macs.of["0"] == 2 * H * W * 3 * 8 * 9
    assert macs.of["1"] == 2 * H * W // 4 * 8 * 9
    assert macs.of["3"] == 2 * 8 * H * W // 4 * 5
    assert macs.of[WHOLE] == macs.of["0"] + macs.of["1"] + macs.of["3"]
    assert not any(macs.in_scans.values())


def test_feed_forward_network():
    c = 6
    assert count(WithNorm(GatedFFN(c), c), 1, c, H, W).of[WHOLE] == H * W * (c * 2 * c + 2 * c * 9 + c * c)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_s6(bidirectional):
    d_model, scans = 24, 1 + bidirectional
    macs = count(AlongRows(S6(d_model, bidirectional=bidirectional)), 2, H, W, d_model)
    assert macs.of[WHOLE] == s6_macs(d_model, 2 * H * W, scans)
    assert macs.in_scans[WHOLE] == scans * 2 * H * W * 2 * d_model * 67


@pytest.mark.parametrize("bidirectional", [False, True])
def test_inter_vssm_scans_means_alone(bidirectional):
    c, scans = 12, 1 + bidirectional
    options = Options(scan="bidirectional" if bidirectional else "unidirectional")
    macs = count(WithNorm(InterVSSM(c, options), c), 1, c, H, W)
    around = H * W * (c * 2 * c + 2 * c * 9 + c * c + c * c + c * c)
    assert macs.of[WHOLE] == around + s6_macs(c // 2, H + W, scans)


def test_intra_vssm_scans_every_pixel_twice():
    c = 12
    macs = count(WithNorm(IntraVSSM(c), c), 1, c, H, W)
    around = H * W * (c * 2 * c + 2 * c * 9 + c * c + c * c + c * c)
    assert macs.of[WHOLE] == around + s6_macs(c // 2, 2 * H * W)


def test_ss2d_scans_every_pixel_four_times():
    c, e, rank = 20, 30, 2
    macs = count(WithNorm(SS2D(c), c), 1, c, H, W)
    route = e * (rank + 32) + rank * e + e * 66
    assert macs.of[WHOLE] == H * W * (c * 2 * e + e * 9 + 4 * route + e * c)
    assert macs.in_scans[WHOLE] == H * W * 4 * e * 66


@pytest.mark.parametrize("skip, gate", [(True, True), (True, False), (False, True)])
def test_a_scan_counts_the_reference_s_multiplications(skip, gate):
    batch, channels, states, length = 2, 3, 5, 7
    u, delta, z = torch.rand(3, batch, channels, length)
    B, C = torch.rand(2, batch, states, length)
    with Products() as products:
        selective_scan_ref(
            u, delta, -torch.rand(channels, states), B, C, torch.rand(channels) if skip else None, z if gate else None
        )
    assert products.number == scan_macs(u.numel(), states, skip, gate)


def test_a_causal_convolution_counts_its_own_multiplications():
    x = torch.rand(2, 3, 7)
    with Products() as products:
        causal_conv_silu_ref(x, torch.rand(3, 4), torch.rand(3))
    assert products.number == x.numel() * 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_modules_sum_up_to_the_whole(variant, counted_once):
    network = XYScanNet(8, (1, 1, 1), **VARIANTS[variant])
    counted = counted_once(network, 32)
    assert sum(counted.macs.of.get(module, 0) for module in counted.parameters) == counted.macs.of[WHOLE]
    assert sum(counted.parameters.values()) == sum(parameter.numel() for parameter in network.parameters())
    assert 0 < counted.macs.in_scans[WHOLE] < counted.state_space < counted.macs.of[WHOLE]


def test_as_written_is_the_plain_network_s_count():
    """Of the benchmarks' baseline, whose every layer stands by itself; it counts no scans."""
    dim, blocks, size = 16, (1, 1, 2), 24
    counted = count_network(XYScanNet(dim, blocks), size)
    with torch.device("meta"):
        baseline = Baseline(dim, blocks)
    # The baseline's causal convolutions also compute the three steps after each of their sequences.
    extra = sum(
        depth * (2 * size + 2 * 2**level) // 2**level * (dim * 2**level) * 4 * 3 for level, depth in enumerate(blocks)
    )
    plain = count_plainly(baseline, (1, 3, size, size), backward=False).flops // 2
    assert counted.written - counted.macs.in_scans[WHOLE] == plain - extra


def test_what_is_counted_computes_the_network_s_numbers(monkeypatch):
    torch.manual_seed(0)
    network = XYScanNet(8, (1, 1, 1), scan_backend="torch").double().eval()
    image = torch.rand(1, 3, 16, 24, dtype=torch.float64) - 0.5
    with torch.no_grad():
        expected = network(image)
        monkeypatch.setattr("models.mamba.causal_conv_silu", _causal_conv_silu)
        torch.testing.assert_close(network(image), expected, rtol=1e-9, atol=1e-9)


def test_the_network_is_itself_again_after_counting():
    before = mamba.causal_conv_silu, torch.compiler.is_compiling()
    count(XYScanNet(4, (1, 1, 1)), 1, 3, 8, 8)
    assert (mamba.causal_conv_silu, torch.compiler.is_compiling()) == before


@pytest.mark.parametrize("variant, papers", [("xyscan", 2.19), ("aff", 4.32), ("no_fusion", 0)])
def test_fusion_modules_as_the_paper_counts_them(variant, papers):
    network = XYScanNet(48, (1, 1, 1), **VARIANTS[variant])
    macs = paper_fusion_macs(network, 256, 256)
    assert round(macs / 1e9, 2) == papers
    if variant != "xyscan":  # KLFF is computed in another order
        of = count(network, 1, 3, 256, 256).of
        biases_and_relu = 3 * (48 * 256**2 + 96 * 128**2) if variant == "aff" else 0
        assert of.get("clff_level1", 0) + of.get("clff_level2", 0) == macs - biases_and_relu


def test_klff_convolves_the_smaller_map():
    of = count(XYScanNet(48, (1, 1, 1)), 1, 3, 256, 256).of
    large, medium, small = 256**2, 128**2, 64**2
    assert of["clff_level1"] == 48 * (large * 48 + medium * 96 + small * 192 + large * 96)
    assert of["clff_level2"] == 96 * (medium * 96 + medium * 48 + small * 192 + medium * 192)


def test_columns_and_rows_are_the_paper_s():
    for number, columns in COLUMNS.items():
        paper = paper_table(TABLES[number].paper)
        assert set(TABLES[number].rows) <= set(paper) and set(TABLES[number].rows.values()) <= set(VARIANTS)
        known = set(next(iter(paper.values())))
        assert set(columns) - known <= {"GMACs", "step s"}
        efficiency = {name for name in known if name.endswith((" s", " GB", "(M)", "(K)", "FLOPs"))}
        assert efficiency <= set(columns)


def test_factors_are_of_the_last_row():
    reference = {"test s": 0.165, "train s": None, "step s": "not measured"}
    assert cell("test s", {"test s": 0.33}, reference) == "0.330 (2.00x)"
    assert cell("test s", reference, reference) == "0.165"
    assert cell("train s", {"train s": 189}, reference) == cell("step s", {"step s": 189}, reference)[:3] == "189"
    assert cell("train s", reference, reference) is None
    assert cell("step s", reference, reference) == "not measured"


def cells(output: str, label: str) -> list[str]:
    """What follows a line's label, without the factors in brackets."""
    (line,) = (line for line in output.splitlines() if line.startswith(label + "  "))
    return re.sub(r" \([\d.]+x\)", "", line.removeprefix(label)).split()


def run(arguments: str, capsys) -> str:
    assert main([*arguments.split(), "--device", "cpu"]) == 0
    return capsys.readouterr().out


def test_fusion_modules_are_counted(capsys):
    output = run("--table 8 --num_blocks 1 1 1", capsys)
    assert cells(output, "AFF (paper)") == ["4.32", "–", "152.35"]
    assert cells(output, "AFF (here)") == ["4.32", "4.30", "152.35"]
    assert cells(output, "KLFF (here)") == ["2.19", "1.17", "71.42"]
    assert cells(output, "none (here)") == ["0.00", "0.00", "0.00"]


TINY = "--dim 8 --num_blocks 1 1 1 --size 32"


def register(patch: pytest.MonkeyPatch) -> None:
    """A fusion module "mine" and a state space module "yours"."""
    patch.setitem(FUSIONS, "mine", type("Mine", (fusion.AFF,), {}))
    patch.setitem(STATE_SPACES, "yours", type("Yours", (IntraVSSM,), {}))


@pytest.fixture
def modules(monkeypatch):
    register(monkeypatch)


@pytest.fixture(scope="module")
def tables() -> list[str]:
    """The tables by module, Table 5 and Table 8 of all recipes and registered modules, each network counted once."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        register(patch)
        assert main([*f"--table modules 5 8 {TINY}".split(), "--device", "cpu"]) == 0
    return re.split(r"^Table [58]\.", printed.getvalue(), flags=re.M)


def test_tables_by_module_have_a_column_for_every_recipe_and_registered_module(tables):
    parameters, macs = tables[0].split("GMACs at 32 x 32")
    columns = parameters.splitlines()[2].split()
    assert columns[-2:] == ["mine", "yours"] and set(VARIANTS) <= set(columns)
    assert columns == macs.splitlines()[2].split()
    network = XYScanNet(8, (1, 1, 1), fusion="aff")
    of, in_scans = count(network, 1, 3, 32, 32)
    for column in (columns.index("aff"), columns.index("mine")):
        assert cells(parameters, "whole")[column] == f"{sum(p.numel() for p in network.parameters()):,}"
        for label, number in (
            ("whole", of[WHOLE]),
            ("clff_level1", of["clff_level1"]),
            ("of it selective scans", in_scans[WHOLE]),
        ):
            assert cells(macs, label)[column] == f"{number / 1e9:.3f}"


def test_registered_modules_have_rows_in_the_table_of_their_kind(tables):
    _, table5, table8 = tables
    assert cells(table5, "yours (here)")[0] == cells(table5, "XYScanNet-S (here)")[0]
    assert cells(table8, "mine (here)") == ["–", *cells(table8, "AFF (here)")[1:]]
    assert "mine (here)" not in table5 and "yours (here)" not in table8
    assert "mine: model.dim=8 model.num_blocks=(1, 1, 1) model.fusion=mine" in table8
    assert re.search(r"XYScanNet-S \(here\) +0\.\d\d +0\.\d\d +– +not measured", table5)


def test_given_variants_are_the_only_columns_and_rows(modules, capsys):
    output = run(f"--table modules 8 --variants yours,model.kl_gate=batch,klff {TINY}", capsys)
    assert len(cells(output.partition("GMACs")[0], "whole")) == 3
    rows = re.findall(r"^(.*) \(here\)  ", output, re.M)
    assert rows == ["yours", "model.kl_gate=batch", "klff"]


def test_a_job_s_own_size_is_counted_unless_another_is_given(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for arguments, dim in (("", 32), ("--dim 16", 16)):
        output = run(f"--table modules --variants xyscannet_t --size 64 {arguments}", capsys)
        network = XYScanNet(dim, (1, 1, 2), unshuffle=2)
        assert cells(output.partition("GMACs")[0], "whole") == [f"{sum(p.numel() for p in network.parameters()):,}"]


@pytest.mark.slow
def test_the_command_measures(capsys, monkeypatch):
    fork_measurements(monkeypatch)
    sizes = "--dim 16 --num_blocks 1 1 1 --size 64 --batch 2 --train_size 16 --test_size 16 24 --repeats 1"
    output = run(f"--table 6 --variants bidirectional --measure {sizes}", capsys)
    assert cells(output, "bidirectional (paper)") == ["–", "19.51", "5.18"]
    gmacs, train, test = map(float, cells(output, "bidirectional (here)"))
    assert gmacs > 0.1 and train >= 0 and test >= 0
    assert "one RTX 3090" in output and f"CPU, {torch.get_num_threads()} threads" in output
    assert "batch 2, 16 x 16" in output


def test_the_format_is_the_one_asked_for(capsys):
    assert "| klff (here) |" in run(f"--table 8 --variants klff --format markdown {TINY}", capsys)


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--size", "18"], "multiple of 4"),
        (["--dim", "7"], "--dim must be even"),
        (["--table", "4"], "invalid choice"),
        (["--batch", "0"], "--batch"),
        (["--device", "nonsense"], "--device"),
        (["--variants", "nonsense"], "'nonsense' is not a variant"),
    ],
)
def test_bad_arguments_are_told(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and complaint in capsys.readouterr().err
