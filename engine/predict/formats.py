"""What `python -m engine.predict.export` writes: ONNX models, torch.export programs and released checkpoints."""

from __future__ import annotations

import inspect
import json
import time
from pathlib import Path

import torch
import torch._dynamo

from models.images import MULTIPLE, reflect_pad
from models.weights import read_weights
from models.xyscannet import XYScanNet

from ..memory import is_out_of_memory

TOLERANCE = 1e-4
SIZES = ((2, 93, 125), (1, 256, 256))  # batch, height, width
MULTIPLES = ((2, 96, 128), (1, 256, 256))  # the same for programs, which do not pad
# What the authors' code can build; for one image "image" and "batch" are the same gate.
RELEASED = {
    "vssm": ("xyscan",),
    "scan": ("unidirectional",),
    "slices": ("intra_inter",),
    "fusion": ("klff",),
    "kl_gate": ("image", "batch"),
    "unshuffle": (1,),
}


# PyTorch's cache of shapes doubles the time of tracing where sizes are symbols.
faster_tracing = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)


class ExportError(RuntimeError):
    """What cannot be exported, or what an exported model gets wrong."""


def write_onnx(network: XYScanNet, path: Path, half: bool = False, **facts: object) -> None:
    """Write ``network`` as an ONNX model and compare it, see `onnx_graph.to_onnx`.

    Raises:
        ExportError: the extra ``export`` is missing, PyTorch is too old, or the results differ.
    """
    try:
        import onnx
        import onnxruntime

        from . import onnx_graph
    except ImportError as error:
        raise ExportError(f"ONNX needs onnx, onnxruntime and onnxscript ({error}): pip install -e .[export]") from error
    if "custom_translation_table" not in inspect.signature(torch.onnx.export).parameters:
        raise ExportError(f"ONNX export needs PyTorch 2.6 or later, and this is {torch.__version__}")
    original = None
    if half:
        original = network
        network = type(network)(**network.description)
        network.load_state_dict(original.state_dict())
        round_to_half(network.eval())
    print("translating the network, which takes from half a minute to some minutes", flush=True)
    program, facts = export_program(network), {"network": json.dumps(network.description), **facts}
    try:
        with faster_tracing:
            model = onnx_graph.to_onnx(program, half, **facts)
        onnx.save(model, path)
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"PyTorch cannot translate this network to ONNX: {_cause(error)}") from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {onnx_graph.INPUT: images.numpy()})[0])

    print(f"opset {onnx_graph.OPSET}, onnxruntime {onnxruntime.__version__}, {torch.get_num_threads()} threads")
    compare(run, network, SIZES, "onnxruntime", original)


def write_program(network: XYScanNet, path: Path) -> None:
    """Write ``network`` as a torch.export program and compare what is read back."""
    program = export_program(network)
    with open(path, "wb") as file:
        torch.export.save(program, file)
    with open(path, "rb") as file:
        read = torch.export.load(file).module()
    compare(read, network, MULTIPLES, "the program")


def write_released(network: XYScanNet, path: Path) -> None:
    """Write ``network``'s weights as the released checkpoints are: a bare state dict, names under ``module.``.

    Raises:
        ExportError: a network that the released code does not have.
    """
    for name, known in RELEASED.items():
        if network.description[name] not in known:
            raise ExportError(
                f"the released code has no {name} {network.description[name]!r}, "
                f"only {' or '.join(map(str, known))}: it cannot load these weights"
            )
    state = network.state_dict()
    torch.save({f"module.{name}": value.float().contiguous() for name, value in state.items()}, path)
    read = read_weights(path)
    if read.keys() != state.keys() or any(not torch.equal(read[name], state[name]) for name in state):
        raise ExportError("the weights read back are not those that were written")
    print(f"{len(state)} tensors; in the released code: dim={network.dim}, num_blocks={list(network.num_blocks)}")


def compare(run, network: XYScanNet, sizes, what: str, original: XYScanNet | None = None) -> None:
    """Print the largest difference between ``run`` and the network, and both times, on random images of each size.

    Args:
        original: the network before its weights were rounded, whose difference is printed too.
    Raises:
        ExportError: a difference of more than 1e-4.
    """

    def timed(function, images):
        function(images)  # the first call of a size is slower
        started = time.perf_counter()
        return function(images), time.perf_counter() - started

    def whole(network):
        return lambda images: network(reflect_pad(images))[..., : images.shape[2], : images.shape[3]]

    for batch, height, width in sizes:
        images = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) - 0.5
        with torch.inference_mode():
            (restored, seconds), (expected, seconds_here) = timed(run, images), timed(whole(network), images)
            difference = float((restored - expected).abs().max())
            rounding = (
                "" if original is None else f", {(restored - whole(original)(images)).abs().max():.1e} from fp32's"
            )
        print(
            f"{batch} x {width} x {height} pixels: largest difference {difference:.1e}{rounding}; "
            f"{what} {seconds:.2f} s, PyTorch {seconds_here:.2f} s",
            flush=True,
        )
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{what} differs from the network by {difference:.1e}, more than {TOLERANCE}; not written. "
                "`Unpadded` in engine/predict/formats.py repeats XYScanNet.forward: follow an edit there"
            )


class Unpadded(torch.nn.Module):
    """The network on images whose sides are multiples of 8, without the padding and cropping of `XYScanNet.forward`."""

    def __init__(self, network: XYScanNet):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.network.residual(images)


@faster_tracing
def export_program(network: XYScanNet) -> torch.export.ExportedProgram:
    """`Unpadded` as PyTorch's export records it, batch, height and width free; sides are multiples of 8 from 16.

    Raises:
        ExportError: a network that does what cannot be recorded, such as to decide by the values of an image.
    """
    batch, height, width = (torch.export.Dim(name, min=low) for name, low in (("batch", 1), ("h", 2), ("w", 2)))
    example = torch.zeros(2, 3, 4 * MULTIPLE, 6 * MULTIPLE)
    shapes = {"images": {0: batch, 2: MULTIPLE * height, 3: MULTIPLE * width}}
    try:
        with torch.no_grad():
            return torch.export.export(Unpadded(network).eval(), (example,), dynamic_shapes=shapes)
    except Exception as error:  # anything that the network's code raises, and the exporter's own kinds
        if is_out_of_memory(error):
            raise
        raise ExportError(f"PyTorch cannot export this network: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """The first line of the error that began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


def round_to_half(network: XYScanNet) -> None:
    """Round the weights of convolutions and linear maps to fp16, in place; others would change the result."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1 and not name.endswith("A_log"):
                parameter.copy_(parameter.half())
