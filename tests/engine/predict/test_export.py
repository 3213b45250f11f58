"""Exported networks compute what the network computes; released weights go back under their own names."""

import importlib.util
import json
import logging
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from engine.predict import export, formats
from models import XYScanNet, load_network
from models.fusion import AFF, KLFF
from models.images import reflect_pad
from models.mamba import S6
from models.registry import Options
from models.ss2d import SS2D
from models.weights import described_state, read_weights
from tests.parity import fill
from tests.workplace import ROOT

needs_onnx = pytest.mark.skipif(
    None in map(importlib.util.find_spec, ("onnx", "onnxruntime", "onnxscript")),
    reason="the extra `export` (onnx, onnxruntime, onnxscript) is not installed",
)
SIZES = [(1, 8, 8), (2, 37, 45)]
pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9),
    reason="PyTorch 2.4 cannot export the network, and 2.8 cannot read a program back",
)


def network_of(**options) -> XYScanNet:
    torch.manual_seed(0)
    return XYScanNet(8, (1, 1, 1), **options).eval()


def images_of(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) - 0.5


def runner(model) -> Callable[..., list[torch.Tensor]]:
    """ONNX Runtime's, from a model's inputs to its outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feed)]

    return run


@pytest.fixture(scope="module")
def network():
    """With weights that are exact in fp16, and far from the initial ones, with which its few scans hardly count."""
    network = XYScanNet(8, (0, 0, 1), unshuffle=2).eval()
    network.load_state_dict(fill(network.state_dict(), 0))
    formats.round_to_half(network)
    return network


@pytest.fixture(scope="module")
def program(network):
    return formats.export_program(network)


@pytest.fixture(scope="module")
def model(network, program, tmp_path_factory):
    """Written and compared as the command does, whose log is for its user's eyes."""
    import onnx

    path = tmp_path_factory.mktemp("export") / "model.onnx"
    records: list[logging.LogRecord] = []
    collector, level = _Collect(records), logging.root.level
    logging.root.addHandler(collector)
    logging.root.setLevel(logging.INFO)  # as `readable_errors` does
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(formats, "export_program", lambda network: program)
            patch.setattr(formats, "SIZES", SIZES)
            formats.write_onnx(network, path, half=True, weights_sha256="0123")
    finally:
        logging.root.removeHandler(collector)
        logging.root.setLevel(level)
    assert {record.name.partition(".")[0] for record in records} <= {"models"}
    return onnx.load(path)


@pytest.fixture(scope="module")
def run(model):
    return runner(model)


class _Collect(logging.Handler):
    def __init__(self, records: list):
        super().__init__()
        self.emit = records.append


@needs_onnx
@pytest.mark.slow  # PyTorch's exporter takes half a minute for any network
@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch, height, width", SIZES)
def test_a_model_takes_images_of_any_size_in_any_number(network, run, batch, height, width):
    images = images_of(batch, 3, height, width)
    with torch.no_grad():
        expected = network(reflect_pad(images))[..., :height, :width]
    assert torch.allclose(run(images)[0], expected, atol=1e-5)


@needs_onnx
@pytest.mark.slow
def test_a_model_says_what_it_is_and_stores_weights_in_half_the_size(network, model):
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["network"]) == network.description and facts["weights_sha256"] == "0123"
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    filters = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4 and np.prod(tensor.dims) >= 256]
    assert filters and {tensor.data_type for tensor in filters} == {10}  # TensorProto.FLOAT16


class EveryVariantsModules(torch.nn.Module):
    """What the variants have and the network has not, side by side, so that one translation has it all."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.s6, self.ss2d = S6(8, bidirectional=True), SS2D(8)
        self.aff = AFF(8, (16, 32))
        self.elementwise, self.batch = (
            KLFF(8, (16, 32), Options(kl_gate=kl_gate)) for kl_gate in ("elementwise", "batch")
        )

    def forward(self, large: torch.Tensor, medium: torch.Tensor, small: torch.Tensor) -> dict[str, torch.Tensor]:
        """The fusion modules take the maps of three levels."""
        return {
            "s6": self.s6(large.permute(0, 2, 3, 1)),
            "ss2d": self.ss2d(large),
            "aff": self.aff(large, medium, small),
            "batch": self.batch(large, medium, small),
            "elementwise": self.elementwise.gate(large, 2 * large) * large,
        }


@pytest.mark.slow
@needs_onnx
def test_every_variants_modules_are_exported():
    from engine.predict.onnx_graph import translate

    def inputs(batch: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
        return tuple(images_of(batch, 8 << level, height >> level, width >> level) for level in range(3))

    modules = EveryVariantsModules().eval()
    batch, h, w = (torch.export.Dim(name, min=low) for name, low in (("batch", 1), ("h", 2), ("w", 2)))
    shapes = tuple({0: batch, 2: (4 >> level) * h, 3: (4 >> level) * w} for level in range(3))
    with torch.no_grad(), formats.faster_tracing:
        run = runner(translate(torch.export.export(modules, inputs(2, 16, 24), dynamic_shapes=shapes)))
        for size in ((1, 16, 16), (3, 20, 36)):
            given = inputs(*size)
            for (name, expected), ours in zip(modules(*given).items(), run(*given), strict=True):
                assert torch.allclose(ours, expected, atol=1e-5), (name, size)


@needs_onnx
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_program_is_read_back_and_compared(network, program, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(formats, "export_program", lambda network: program)
    monkeypatch.setattr(formats, "MULTIPLES", [(1, 16, 16), (2, 40, 48)])
    formats.write_program(network, tmp_path / "model.pt2")
    assert capsys.readouterr().out.count("largest difference") == 2


def test_a_network_that_cannot_be_exported_is_refused_in_a_line():
    class Choosing(XYScanNet):
        def residual(self, x):
            return super().residual(x) if x.mean() > 0 else x

    with pytest.raises(formats.ExportError) as error:
        formats.export_program(Choosing(8, (1, 1, 1)))
    assert "\n" not in str(error.value)


def test_a_model_that_differs_is_refused():
    network = network_of()
    with pytest.raises(formats.ExportError, match="1.0e-03"):
        formats.compare(lambda images: network(images) + 1e-3, network, [(1, 16, 16)], "it")
    with pytest.raises(formats.ExportError, match="nan"):
        formats.compare(lambda images: images * torch.nan, network, [(1, 16, 16)], "it")


def test_released_weights_have_the_released_names(tmp_path):
    """The names that the fixtures list of the released network, under `module.`, and nothing else in the file."""
    fixture = np.load(ROOT / "tests" / "fixtures" / "parity" / "model_parity.npz")
    case = json.loads(str(fixture["meta"]))[0]
    network = XYScanNet(case["dim"], case["num_blocks"])
    path = tmp_path / "best_XYScanNet_stage2.pth"
    formats.write_released(network, path)
    content = torch.load(path, weights_only=True)
    assert set(content) == {f"module.{name}" for name in case["grad_norms"]}
    assert all(type(value) is torch.Tensor and value.dtype == torch.float32 for value in content.values())
    expected, loaded = network.state_dict(), load_network(path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    "variant",
    [
        {"vssm": "ss2d"},
        {"scan": "bidirectional"},
        {"slices": "inter"},
        {"fusion": "aff"},
        {"kl_gate": "elementwise"},
        {"unshuffle": 2},
    ],
)
def test_what_the_released_code_cannot_build_is_refused(variant, tmp_path):
    with pytest.raises(formats.ExportError, match=next(iter(variant))):
        formats.write_released(network_of(**variant), tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(described_state(network_of()), "w.pth")
    return "w.pth"


def test_the_command_writes_released_weights_and_nothing_else(weights, tmp_path, capsys):
    export.main(["--weights", weights, "--output", "out/final_XYScanNet_stage2.pth"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["final_XYScanNet_stage2.pth"]
    assert read_weights("out/final_XYScanNet_stage2.pth").keys() == read_weights(weights).keys()
    assert "dim=8, num_blocks=[1, 1, 1]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output", "model.tflite"],
        ["--output", "model.pt2", "--half"],
        ["--output", "w.pth"],
        ["--output", "model.onnx", "--weights", "missing.pth"],
    ],
)
def test_a_command_that_cannot_be_ends_with_a_line_and_writes_nothing(weights, arguments, tmp_path, capsys):
    before = (tmp_path / weights).read_bytes()
    with pytest.raises(SystemExit) as end:
        export.main(["--weights", weights, *arguments])
    assert end.value.code == 2 and capsys.readouterr().err.count("error") == 1
    assert [path.name for path in tmp_path.iterdir()] == [weights] and (tmp_path / weights).read_bytes() == before


def test_without_the_extra_a_line_names_it(weights, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SystemExit):
        export.main(["--weights", weights, "--output", "model.onnx"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install -e .[export]" in line
