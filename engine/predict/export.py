"""A trained network in a form that other programs run.

    python -m engine.predict.export --job_name xyscannetp_gopro --output model.onnx
    python -m engine.predict.export --weights FILE --output model.onnx --half
    python -m engine.predict.export --weights FILE --output model.pt2
    python -m engine.predict.export --weights FILE --output best_XYScanNet_stage2.pth --format released

onnx      ONNX, opset 18, for onnxruntime and the browser: RGB (batch, 3, height, width) in [-0.5, 0.5] of any size from
          8 x 8, padded by reflection and cropped inside; float32, not clamped
pt2       a torch.export program for sides that are multiples of 8, from 16; `import xyscannet` before it is loaded
released  weights under the names of the authors' released checkpoints

ONNX models and programs are run on two sizes and compared with the network; one that differs by more than 1e-4 is not
written. Without --job_name and --weights, the small network's weights are used, which come with the repository.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from models.xyscannet import XYScanNet

FORMATS = {".onnx": "onnx", ".pt2": "pt2", ".pth": "released"}
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


class ExportError(RuntimeError):
    """What cannot be exported, or what an exported model gets wrong."""


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)

    # Only here: --help needs no PyTorch, which takes seconds to import.
    from datasets.files import atomic
    from models.weights import load_network

    from ..config import model_options
    from ..console import readable_errors
    from .weights import checksum, find_weights

    with readable_errors():
        weights = find_weights(arguments.weights, arguments.job_name, "best")
        if arguments.output.exists() and arguments.output.samefile(weights):
            raise ExportError(f"--output: {arguments.output} holds the weights themselves; choose another file")
        network = load_network(weights, **model_options(weights, arguments.job_name) | {"scan_backend": "auto"})
        write = {"onnx": write_onnx, "pt2": write_program, "released": write_released}[arguments.format]
        options = {"half": True} if arguments.half else {}
        with atomic(arguments.output) as temporary:
            write(network, temporary, weights_sha256=checksum(weights), **options)
            size = temporary.stat().st_size
        print(f"{arguments.output}: {size / 2**20:.1f} MiB, from {weights}")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engine.predict.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="what to write")
    parser.add_argument("--job_name", default="xyscannet_t", help="whose best_ stage-2 weights (default %(default)s)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights to use instead of the job's")
    parser.add_argument(
        "--format", choices=tuple(FORMATS.values()), help="default: by the suffix of --output, .onnx, .pt2 or .pth"
    )
    parser.add_argument(
        "--half", action="store_true", help="onnx: store weights in fp16, half the size; computing is in fp32"
    )
    arguments = parser.parse_args(argv)
    arguments.format = arguments.format or FORMATS.get(arguments.output.suffix)
    if arguments.format is None:
        parser.error(f"--output: {arguments.output} ends in none of {', '.join(FORMATS)}; name its --format")
    if arguments.half and arguments.format != "onnx":
        parser.error(f"--half is for onnx, not for {arguments.format}")
    return arguments


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
    import torch

    original = None
    if half:
        original = network
        network = type(network)(**network.description)
        network.load_state_dict(original.state_dict())
        onnx_graph.round_to_half(network.eval())
    print("translating the network, which takes a minute or more", flush=True)
    try:
        onnx.save(onnx_graph.to_onnx(network, half, **facts), path)
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"PyTorch cannot export this network to ONNX: {_cause(error)}") from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {onnx_graph.INPUT: images.numpy()})[0])

    print(f"opset {onnx_graph.OPSET}, onnxruntime {onnxruntime.__version__}, {torch.get_num_threads()} threads")
    compare(run, network, SIZES, "onnxruntime", original)


def _cause(error: BaseException) -> str:
    """The first line of the error that began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


def write_program(network: XYScanNet, path: Path, **facts: object) -> None:
    """Write ``network`` as a torch.export program and compare what is read back."""
    import torch

    from .onnx_graph import export_program

    torch.export.save(export_program(network), path)
    with open(path, "rb") as file:
        program = torch.export.load(file).module()
    compare(program, network, MULTIPLES, "the program")


def write_released(network: XYScanNet, path: Path, **facts: object) -> None:
    """Write ``network``'s weights as the released checkpoints are: a bare state dict, names under ``module.``.

    Raises:
        ExportError: a network that the released code does not have.
    """
    import torch

    from models.weights import read_weights

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
    import time

    import torch

    from models.images import reflect_pad

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
                f"{what} differs from the network by {difference:.1e}, more than {TOLERANCE}; not written"
            )


if __name__ == "__main__":
    main()
