"""Prepares the page (ONNX Runtime from npm, the exported network) and serves it on this machine.

    python -m web.serve                 http://127.0.0.1:8000
    python -m web.serve --port 8080 --weights results/J/models/best_XYScanNet_stage2.pth
    python -m web.serve --prepare_only  web/ is then a folder of static files, for any static host

A host of one's own should send the two headers below: without them the page runs on one thread.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import subprocess
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from datasets.files import checksum
from engine.config import shipped_weights

WEB = Path(__file__).resolve().parent
RUNTIME = (
    *("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    *("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
)
HEADERS = {
    # Together they give the page memory that its threads share.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-cache",
}


class Handler(SimpleHTTPRequestHandler):
    """Static files with the headers that threads need."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm"}

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *arguments) -> None:
        """Requests are not logged."""


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        prepare(arguments.weights)
    except subprocess.CalledProcessError as error:
        return error.returncode  # it has said why
    except OSError as error:
        print(f"error: the page could not be prepared: {error}", file=sys.stderr)
        return 2
    if arguments.prepare_only:
        print(f"ready: {WEB}")
        return 0
    try:
        server = make_server(arguments.port)
    except OSError as error:
        print(
            f"error: port {arguments.port}: {error.strerror}; choose another with --port, or 0 for any", file=sys.stderr
        )
        return 2
    with server:
        print(f"http://127.0.0.1:{server.server_port}  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000, help="default %(default)s; 0: any that is free")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of the network to export (default: the shipped)")
    parser.add_argument("--prepare_only", action="store_true", help="serve nothing")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.port < 2**16:
        parser.error(f"--port: must be from 0 to 65535, not {arguments.port}")
    return arguments


def prepare(weights: Path | None = None) -> None:
    """Fill web/vendor, and web/model.onnx with the network of ``weights``; what is there and up to date stays."""
    from engine.provenance import network_code  # imported here: it needs PyTorch, --help does not

    vendor, model = WEB / "vendor", WEB / "model.onnx"
    weights = (weights or WEB.parent / shipped_weights("xyscannet_t")).resolve()
    if not all((vendor / name).is_file() for name in RUNTIME):
        if not shutil.which("npm"):
            raise FileNotFoundError("npm is missing: install Node.js, which brings it")
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-fund", "--no-audit"], cwd=WEB, check=True)
        vendor.mkdir(exist_ok=True)
        for name in RUNTIME:
            shutil.copy(WEB / "node_modules" / "onnxruntime-web" / "dist" / name, vendor / name)
    # The model's metadata name the checksums of the weights and of the code in models/ that it was exported from.
    marks = checksum(weights), network_code()
    if not model.is_file() or not all(mark.encode() in model.read_bytes() for mark in marks):
        command = ["-m", "engine.predict.export", "--weights", str(weights), "--output", str(model)]
        subprocess.run([sys.executable, *command], cwd=WEB.parent, check=True)


def make_server(port: int) -> ThreadingHTTPServer:
    """On this machine alone."""
    return ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Handler, directory=WEB))


if __name__ == "__main__":
    sys.exit(main())
