"""Training runs on disk: those of earlier versions resume, and the state does not depend on the device's optimiser."""

import json
import tarfile

import pytest
import torch

from engine.config import load_config
from engine.train.optimizers import OPTIMIZERS, load_optimizer_state
from engine.train.run import TrainingRun
from engine.train.trainer import Trainer
from models import XYScanNet
from models.weights import load_network
from tests.workplace import ROOT, make_config, make_pairs, weights

FIXTURES = ROOT / "tests" / "fixtures" / "training"  # see the README there
OVERRIDES = {"adam": [], "muon": ["optim.name=muon", "train.ema_decay=0.5", "loss.pixel=mse"]}
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The runs of an earlier version, each with its recipe and data."""
    monkeypatch.chdir(tmp_path)
    make_pairs(tmp_path / "datasets" / "GoPro")
    with tarfile.open(FIXTURES / "runs.tar.xz") as archive:
        for member in archive:
            job, name = member.name.split("/")
            (tmp_path / "results" / job / "models").mkdir(parents=True, exist_ok=True)
            (tmp_path / "results" / job / "models" / name).write_bytes(archive.extractfile(member).read())
    for job in OVERRIDES:
        make_config(
            tmp_path,
            job,
            model={"dim": 2, "num_blocks": [1, 1, 1], "fusion": "none", "slices": "intra"},
            data={"val": None},
            optim={"cosine_length": 4},
            train={"epochs": None, "iterations": 4},
        )
    return tmp_path


def projections(state: dict[str, torch.Tensor]) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    return [
        sum((torch.randn(v.shape, generator=generator, dtype=torch.float64) * v).sum().item() for v in state.values())
        for _ in range(4)
    ]


@pytest.mark.parametrize("job", OVERRIDES)
def test_the_state_of_an_earlier_version_resumes_to_the_weights_it_would_have_come_to(place, job):
    run = TrainingRun(load_config(job, 1, OVERRIDES[job]), "cpu")
    assert run.resume() and run.iteration == {"adam": 2, "muon": 1}[job]
    before = projections(run.network.state_dict())
    assert Trainer(run).fit()
    after = projections(weights(place, job))
    # The steps move the projections by 0.01 to 0.05; other processors round differently.
    assert after == pytest.approx(EXPECTED[job], abs=2e-4) and after != pytest.approx(before, abs=5e-3)


def test_the_weights_of_an_earlier_version_rebuild_their_network(place):
    models = place / "results" / "adam" / "models"
    network, state = (
        load_network(models / "final_XYScanNet_stage1.pth"),
        torch.load(models / "last_XYScanNet_stage1.pth", weights_only=True)["model_state"],
    )
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("fused_before, fused", [(None, True), (True, None)])
def test_a_state_of_adam_is_loaded_whether_fused_or_not(fused_before, fused):
    """Adam is fused on a GPU, and not on the CPU."""
    torch.manual_seed(0)
    network = XYScanNet(2, (1, 1, 1))
    for p in network.parameters():
        p.grad = torch.randn_like(p)
    before = torch.optim.Adam(network.parameters(), fused=fused_before)
    before.step()
    after = torch.optim.Adam(network.parameters(), lr=0.5, fused=fused)
    load_optimizer_state(after, before.state_dict())
    assert [group["fused"] for group in after.param_groups] == [fused]
    assert after.param_groups[0]["lr"] == before.param_groups[0]["lr"]
    first = next(network.parameters())
    assert torch.equal(after.state[first]["exp_avg"], before.state[first]["exp_avg"])
    after.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_in_the_list_takes_the_networks_parameters_and_lowers_a_loss(name):
    torch.manual_seed(0)
    network, image = XYScanNet(2, (1, 1, 1)), torch.rand(1, 3, 16, 16) - 0.5
    optimizer = OPTIMIZERS[name](network, 1e-3)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in network.parameters()}
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = (network(image) + 0.5).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_average_is_the_exponential_one(place):
    run = TrainingRun(load_config("adam", 1, ["train.ema_decay=0.75"]), "cpu")
    parameter, averaged = next(run.network.parameters()), next(run.ema.module.parameters())
    values = [torch.full_like(parameter, value) for value in (1.0, 2.0, 4.0)]
    for value in values:
        parameter.data.copy_(value)
        run.update_average()
    assert torch.allclose(averaged, torch.full_like(averaged, 0.75 * (0.75 * 1 + 0.25 * 2) + 0.25 * 4))
