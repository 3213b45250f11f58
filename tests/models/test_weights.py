"""Weights files in every form users hold; clear words about the wrong ones."""

import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch

from models import WeightsError, XYScanNet, load_network, load_weights
from models.weights import read_torch_file, read_weights


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return XYScanNet(8, (1, 2, 1))


def same(a, b):
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("inside", [False, True])
def test_released_forms_load(tmp_path, network, prefix, inside):
    state = {prefix + name: value for name, value in network.state_dict().items()}
    content = {"epoch": 7, "model_state": state, "optimizer_state": {}, "scheduler_state": {}} if inside else state
    torch.save(content, tmp_path / "w.pth")
    loaded = XYScanNet(8, (1, 2, 1))
    load_weights(loaded, tmp_path / "w.pth")
    assert same(loaded, network)


def test_network_is_built_from_the_weights_alone(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "w.pth")
    loaded = load_network(tmp_path / "w.pth", kl_gate="elementwise")
    assert (loaded.dim, loaded.num_blocks, loaded.kl_gate, loaded.training) == (8, (1, 2, 1), "elementwise", False)
    assert same(loaded, network)


def test_how_many_pixels_a_position_has_is_read_off_the_weights(tmp_path):
    network = XYScanNet(8, (1, 1, 1), unshuffle=2)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    loaded = load_network(tmp_path / "w.pth")
    assert loaded.unshuffle == 2 and same(loaded, network)
    for channels in (1, 27):
        other = network.state_dict() | {"patch_embed.proj.weight": torch.zeros(8, channels, 3, 3)}
        torch.save(other, tmp_path / "other.pth")
        with pytest.raises(WeightsError, match=r"other\.pth: .* wrong shape, the first patch_embed\.proj\.weight"):
            load_network(tmp_path / "other.pth")


def test_wrong_file_names_the_first_missing_unexpected_and_wrongly_shaped_keys(tmp_path, network):
    state = network.state_dict()
    del state["output.weight"]
    state["head.bias"] = torch.zeros(3)
    state["patch_embed.proj.weight"] = torch.zeros(9, 3, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError,
        match=r"1 missing, the first output\.weight; 1 unexpected, the first head\.bias; "
        r"1 of the wrong shape, the first patch_embed\.proj\.weight: "
        r"\(9, 3, 3, 3\) in the file, \(8, 3, 3, 3\) in the network",
    ):
        load_weights(XYScanNet(8, (1, 2, 1)), tmp_path / "w.pth")


def test_other_networks_are_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="not XYScanNet weights; its first key is conv.weight"):
        load_network(tmp_path / "w.pth")


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_files_that_are_no_weights(tmp_path):
    path = tmp_path / "w.pth"
    with pytest.raises(WeightsError, match="no such weights file"):
        read_weights(path)
    path.write_bytes(b"not a zip file")
    with pytest.raises(WeightsError, match=r"w\.pth: not a PyTorch file"):
        read_weights(path)
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_weights(path)
    torch.save({"params": {"a.weight": torch.ones(1)}, "iter": 3}, path)
    with pytest.raises(WeightsError, match="keys: params, iter"):
        read_weights(path)
    torch.save({"code": Malicious()}, path)
    with pytest.raises(WeightsError, match="holds code objects \\(.*exec\\)"):
        read_weights(path)


def flip(path, position):
    """Invert one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_one_flipped_bit_is_noticed_in_every_record(tmp_path, network):
    path = tmp_path / "w.pth"
    torch.save(network.state_dict(), path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = [record for record in archive.infolist() if record.file_size]
    for record in records[::7]:
        # The record ends where its descriptor or the next header begins; its content is unique enough to be found.
        with zipfile.ZipFile(path) as archive:
            position = whole.index(archive.read(record), record.header_offset) + record.file_size // 2
        flip(path, position)
        with pytest.raises(WeightsError) as caught:
            read_weights(path)
        assert caught.value.path == path and record.filename in caught.value.reason
        path.write_bytes(whole)
    read_weights(path)


@pytest.fixture
def without_checksums():
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip(f"torch {torch.__version__} always writes checksums")
    torch.serialization.set_crc32_options(False)
    yield
    torch.serialization.set_crc32_options(True)


def test_files_without_checksums_load_with_a_warning(tmp_path, network, caplog, without_checksums):
    torch.save(network.state_dict(), tmp_path / "w.pth")
    read_weights(tmp_path / "w.pth")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_format_before_zip_loads_and_is_refused_when_cut_short(tmp_path, network):
    path = tmp_path / "w.pth"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    loaded = load_network(path)
    assert same(loaded, network)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightsError):
        read_weights(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_load(tmp_path, network, dtype):
    torch.save({name: value.to(dtype) for name, value in network.state_dict().items()}, tmp_path / "w.pth")
    loaded = load_network(tmp_path / "w.pth")
    assert all(
        torch.equal(value, network.state_dict()[name].to(dtype).float()) for name, value in loaded.state_dict().items()
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value.index_fill(0, torch.tensor([1]), float("nan")),
        lambda value: value.index_fill(0, torch.tensor([0]), float("inf")),
        lambda value: value.half().index_fill(0, torch.tensor([0]), float("-inf")),
        lambda value: value.double().index_fill(
            0, torch.tensor([0]), 1e300
        ),  # finite, but not in the network's float32
        lambda value: value.int(),
        lambda value: value.bool(),
        lambda value: value.to(torch.complex64),
        lambda value: value.to(torch.float8_e4m3fn),
        lambda value: value.to_sparse(),
        lambda value: value.to("meta"),
        lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    ],
    ids=["nan", "inf", "-inf in half", "overflow", "int", "bool", "complex", "float8", "sparse", "meta", "quantised"],
)
@pytest.mark.filterwarnings("ignore")  # of quantisation, sparse tensors
def test_tensors_that_cannot_be_weights_are_named(tmp_path, network, spoil):
    state = network.state_dict()
    state["output.weight"] = spoil(state["output.weight"])
    torch.save(state, tmp_path / "w.pth")
    for load in (load_network, lambda path: load_weights(XYScanNet(8, (1, 2, 1)), path)):
        with pytest.raises(WeightsError) as caught:
            load(tmp_path / "w.pth")
        assert caught.value.reason.startswith("output.weight ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"patch_embed.proj.weight": torch.zeros(9, 3, 3, 3)},
        {"patch_embed.proj.weight": torch.tensor(1.0)},
        {"patch_embed.proj.weight": torch.zeros(0, 3, 3, 3)},
        {"output.weight": torch.tensor(1.0)},
        {7: torch.zeros(1)},
        {"module.output.weight": torch.zeros(3, 8, 3, 3)},
    ],
    ids=["odd dim", "rank 0 embedding", "no channels", "rank 0", "integer key", "name twice"],
)
def test_state_dicts_of_no_network(tmp_path, network, change):
    torch.save({**network.state_dict(), **change}, tmp_path / "w.pth")
    with pytest.raises(WeightsError):
        load_network(tmp_path / "w.pth")


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks of memory cannot be reset here")
@pytest.mark.parametrize(
    "embedding",
    [torch.zeros(2000, 3, 3, 3), torch.zeros(200_000, 3, 3, 3), torch.zeros(1).expand(200_000, 3, 3, 3)],
    ids=["large", "huge", "expanded"],
)
def test_a_claim_of_a_larger_network_fills_no_memory(tmp_path, network, embedding):
    """It would take gigabytes, or more than can be had."""
    torch.save({**network.state_dict(), "patch_embed.proj.weight": embedding}, tmp_path / "w.pth")
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak to the current value
    before = resident("VmRSS")
    with pytest.raises(WeightsError):
        load_network(tmp_path / "w.pth")
    assert resident("VmHWM") - before < 200 * 2**20


def resident(name: str) -> int:
    """Bytes of one entry of /proc/self/status."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def test_an_archive_that_unpacks_to_more_than_its_size(tmp_path):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(WeightsError) as caught:
        read_torch_file(path)
    assert "size" in caught.value.reason


def test_each_way_of_being_no_file_has_its_own_reason(tmp_path, network):
    whole = tmp_path / "whole.pth"
    torch.save(network.state_dict(), whole)
    contents = {
        "empty": b"",
        "cut": whole.read_bytes()[:-200],
        "text": b"not weights",
        "pickle": pickle.dumps({1: 2}, protocol=2),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    torch.save({"code": Malicious()}, tmp_path / "code")
    torch.save({"code": Malicious()}, tmp_path / "old code", _use_new_zipfile_serialization=False)
    reasons = {}
    for name in (*contents, "folder", "fifo", "code", "old code", "missing"):
        with pytest.raises(WeightsError) as caught:
            read_torch_file(tmp_path / name)
        assert caught.value.path == tmp_path / name and "\n" not in str(caught.value)
        reasons[name] = caught.value.reason
    assert reasons.pop("pickle").split(" (")[0] == reasons["text"].split(" (")[0]
    assert reasons.pop("old code") == reasons["code"]
    assert len(set(reasons.values())) == len(reasons)


def test_too_little_memory_is_not_called_damage(tmp_path, network, monkeypatch):
    torch.save(network.state_dict(), tmp_path / "w.pth")

    def fail(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(RuntimeError):
        read_weights(tmp_path / "w.pth")


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(WeightsError("w.pth", "damaged")))
    assert (str(error), error.reason) == ("w.pth: damaged", "damaged")
