"""Traffic is counted as one counts it by hand, and without a GPU."""

from functools import cache, partial

import pytest
import torch

from benchmarks import traffic
from benchmarks.traffic import Cost, Traffic, distinct, on_a_gpu, whole
from models.blocks import ChannelNorm


def counted(work, bf16=False):
    found = Traffic()
    with on_a_gpu(bf16):
        x, weight = torch.empty(1, 6, 5, 7), torch.empty(4, 6, 1, 1)
        with found:
            work(x, weight)
    return {kind: (cost.calls, cost.bytes) for kind, cost in found.by_kind.items()}


def test_a_convolution_reads_its_input_and_weight_and_writes_its_result():
    numbers = 6 * 35 + 4 * 6 + 4 * 35
    assert counted(torch.nn.functional.conv2d) == {"1x1 convolution": (1, 4 * numbers)}
    half = counted(torch.nn.functional.conv2d, bf16=True)
    assert half["1x1 convolution"] == (1, 2 * numbers)
    assert half["copy"] == (2, 6 * (6 * 35 + 4 * 6))  # of both operands, from four bytes to two


def test_views_and_broadcast_operands_move_nothing():
    assert counted(lambda x, _: x.permute(0, 2, 3, 1).chunk(2, dim=1)[0][..., None].detach()) == {}
    assert counted(lambda x, _: x * x[:, :1, :1, :1]) == {"elementwise": (1, 4 * (2 * 6 * 35 + 1))}
    assert distinct(torch.empty(1, 1).expand(5, 7)) == 1


def test_the_norm_copies_to_its_precision():
    with on_a_gpu(False):
        norm = ChannelNorm(6)
    found = counted(lambda x, _: norm(x.bfloat16()))
    assert found["norm"][0] == 1 and found["copy"] == (2, 2 * 6 * 6 * 35)  # to bf16 here, and back in the module


def test_time_is_bound_by_bytes_arithmetic_or_instructions():
    found, small, large = Traffic(), torch.empty(10), torch.empty(10**6)
    found.add("3x3 convolution", [small], flops=traffic.PEAK["tf32"])
    found.add("copy", [large, large])
    found.scan([small], instructions=traffic.SLOTS)
    seconds = {kind: cost.seconds for kind, cost in found.by_kind.items()}
    assert seconds == {"3x3 convolution": 1, "copy": pytest.approx(8e6 / traffic.BANDWIDTH), "scan": 10}
    assert whole(found.by_kind, ("copy",)) == Cost(2, 80, 11)


@pytest.fixture(scope="module")
def shallow():
    """Networks of one block a level, since each further one counts the same again, and each counted once.

    From its first use to the end of this file.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XYScanNet", "Baseline"):
            patch.setattr(traffic, name, partial(getattr(traffic, name), num_blocks=(1, 1, 1)))
        for name in ("ours", "baseline"):
            patch.setattr(traffic, name, cache(getattr(traffic, name)))
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_the_more_is_fused_the_less_moves():
    costs = [
        whole(by_kind)
        for by_kind in (
            traffic.baseline(48, 64, 64),
            traffic.ours(48, 64, 64, "fp32", "plain"),
            traffic.ours(48, 64, 64, "fp32", "fused"),
            traffic.ours(48, 64, 64, "bf16", "fused"),
            traffic.ours(48, 64, 64, "bf16", "one kernel"),
        )
    ]
    for more, less in zip(costs, costs[1:], strict=False):
        assert more.bytes > less.bytes > 0 and more.seconds > less.seconds > 0


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_the_command_prints_both_bounds_of_each_network(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["traffic.py", "--dim", "48", "--size", "64", "64"])
    traffic.main()
    lines = [line.split("  ")[0] or line.split("  ")[1] for line in capsys.readouterr().out.splitlines() if line]
    assert [line for line in lines if line.startswith(("baseline", "ours"))] == [
        "baseline, fp32",
        "ours, fp32",
        "ours, bf16",
    ]
    assert [lines.count(bound) for bound in ("all", "plain", "fused", "one kernel")] == [3, 2, 3, 2]
