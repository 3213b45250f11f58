"""A trained network in a form that other programs run.

    python -m engine.predict.export --job_name xyscannetp_gopro --output model.onnx
    python -m engine.predict.export --weights FILE --output model.onnx --half
    python -m engine.predict.export --weights FILE --output model.pt2
    python -m engine.predict.export --weights FILE --output best_XYScanNet_stage2.pth

.onnx  ONNX, opset 18, for onnxruntime and the browser: RGB (batch, 3, height, width) in [-0.5, 0.5] of any size from
       8 x 8, padded by reflection and cropped inside; float32, not clamped
.pt2   a torch.export program for sides that are multiples of 8, from 16; `import xyscannet` before it is loaded
.pth   weights under the names of the authors' released checkpoints

ONNX models and programs are run on two sizes and compared with the network; one that differs by more than 1e-4 is not
written. Without --job_name and --weights, the small network's weights are used, which come with the repository.
"""

from __future__ import annotations

import argparse
from pathlib import Path

FORMATS = (".onnx", ".pt2", ".pth")


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)

    # Only here: --help needs no PyTorch, which takes seconds to import.
    from datasets.files import atomic, checksum
    from models.weights import load_network

    from ..config import model_options
    from ..console import readable_errors
    from ..provenance import network_code
    from .formats import ExportError, write_onnx, write_program, write_released
    from .weights import find_weights

    with readable_errors():
        weights = find_weights(arguments.weights, arguments.job_name, "best")
        if arguments.output.exists() and arguments.output.samefile(weights):
            raise ExportError(f"--output: {arguments.output} holds the weights themselves; choose another file")
        network = load_network(weights, **model_options(weights, arguments.job_name) | {"scan_backend": "auto"})
        with atomic(arguments.output) as temporary:
            if arguments.output.suffix == ".onnx":
                marks = {"weights_sha256": checksum(weights), "network_code": network_code()}
                write_onnx(network, temporary, arguments.half, **marks)
            else:
                {".pt2": write_program, ".pth": write_released}[arguments.output.suffix](network, temporary)
            size = temporary.stat().st_size
        print(f"{arguments.output}: {size / 2**20:.1f} MiB, from {weights}")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engine.predict.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="what to write, .onnx, .pt2 or .pth")
    parser.add_argument("--job_name", default="xyscannet_t", help="whose best_ stage-2 weights (default %(default)s)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights to use instead of the job's")
    parser.add_argument(
        "--half", action="store_true", help=".onnx: store weights in fp16, half the size; computing is in fp32"
    )
    arguments = parser.parse_args(argv)
    if arguments.output.suffix not in FORMATS:
        parser.error(f"--output: {arguments.output} ends in none of {', '.join(FORMATS)}")
    if arguments.half and arguments.output.suffix != ".onnx":
        parser.error(f"--half is for .onnx, not for {arguments.output.suffix}")
    return arguments


if __name__ == "__main__":
    main()
