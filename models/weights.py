"""Read weights safely and check them strictly: the released checkpoints' formats and ours."""

import logging
import math
import re
import threading
import zipfile
from pathlib import Path
from typing import TypeVar

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from .xyscannet import XYScanNet

logger = logging.getLogger(__name__)

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
ZIP_START = b"PK\x03\x04"
DESCRIPTION = "xyscannet"  # key in the metadata of a state dict
Network = TypeVar("Network", bound=XYScanNet)


class WeightsError(ValueError):
    """The file cannot be read, holds no XYScanNet weights, or holds those of another network.

    Attributes:
        path: the file.
        reason: what is wrong with it, in one line.
    """

    def __init__(self, path: str | Path, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = Path(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_torch_file(path: str | Path) -> object:
    """Load a file written by ``torch.save`` to the CPU without running any code in it.

    All records' checksums are verified first, which torch.load does not do, so that a single flipped bit is noticed.
    Files of PyTorch before 1.6 and those written with ``set_crc32_options(False)`` have no checksums.

    Raises:
        WeightsError: the file is missing, damaged, of another format, or contains code objects.
    """
    path = Path(path)
    try:
        _check_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (WeightsError, MemoryError):
        raise
    except OSError as error:
        raise WeightsError(path, error.strerror or str(error)) from error
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError on a damaged file
        if "allocate memory" in str(error):  # out of memory: not the file's fault
            raise
        raise WeightsError(path, _why_unreadable(path, error)) from error


def _check_file(path: Path) -> None:
    """Raise WeightsError unless ``path`` is a complete file; checksums are verified where there are any."""
    if not path.is_file():
        if path.is_dir():
            raise WeightsError(path, "a folder, not a weights file")
        raise WeightsError(path, "not a regular file" if path.exists() else "no such weights file")
    with open(path, "rb") as file:
        start = file.read(len(ZIP_START))
    if not start:
        raise WeightsError(path, "the file is empty")
    if start == ZIP_START:
        try:
            _check_records(path)
        except zipfile.BadZipFile as error:
            raise WeightsError(path, f"cut short or damaged ({error})") from error


def _check_records(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        records = [record for record in archive.infolist() if record.file_size]
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise WeightsError(path, "claims to hold more than the file's size")
        if records and not any(record.CRC for record in records):
            logger.warning("%s: written without checksums, so damage to it would go unnoticed", path)
        elif damaged := archive.testzip():
            raise WeightsError(path, f"damaged (the checksum of {damaged} is wrong)")


def _why_unreadable(path: Path, error: Exception) -> str:
    if named := re.search(r"GLOBAL (\S+)", str(error)):
        return f"holds code objects ({named[1]}), which are never loaded; expected a state dict"
    if "TorchScript" in str(error):
        return "holds a TorchScript program, which is never loaded; expected a state dict"
    with open(path, "rb") as file:
        if file.read(len(ZIP_START)) == ZIP_START:
            return f"damaged, or a zip archive that PyTorch did not write ({type(error).__name__})"
    return f"not a PyTorch file, or damaged ({type(error).__name__})"


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in ``path``: bare or in a training state, with or without DataParallel's ``module.`` prefix.

    Raises:
        WeightsError: as ``read_torch_file``, or the file holds no state dict of finite floating-point tensors.
    """
    return _read(path)[0]


def described_state(network: XYScanNet) -> dict[str, torch.Tensor]:
    """``network``'s state dict with a description from which `load_network` rebuilds the network.

    It remains a bare state dict that the released code can load: the description is in its ``_metadata``, which PyTorch
    saves with every state dict and other programs ignore.
    """
    state = network.state_dict()
    state._metadata[""][DESCRIPTION] = network.description
    return state


def _read(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The weights and their network's description, empty where the file has none."""
    content = read_torch_file(path)
    if isinstance(content, dict) and isinstance(content.get("model_state"), dict):
        content = content["model_state"]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(name, str) and torch.is_tensor(value) for name, value in content.items())
    ):
        keys = f", its keys: {', '.join(map(str, list(content)[:5]))}" if isinstance(content, dict) and content else ""
        raise WeightsError(
            path, f"holds no state dict{keys}; expected one, names to tensors, bare or under the key 'model_state'"
        )
    for name, value in content.items():
        if problem := _unfit(value):
            raise WeightsError(path, f"{name} {problem}")
    # A tensor can be expanded from a single number, so that its shape exceeds the file's size.
    if sum(value.numel() * value.element_size() for value in content.values()) > Path(path).stat().st_size:
        raise WeightsError(path, "its tensors' shapes claim more than the file's size")
    check_finite(content, path)
    state = {name.removeprefix("module."): value for name, value in content.items()}
    if len(state) < len(content):
        raise WeightsError(path, "holds the same names with and without 'module.'")
    return state, getattr(content, "_metadata", {}).get("", {}).get(DESCRIPTION, {})


def _unfit(value: torch.Tensor) -> str | None:
    """Why a tensor cannot be a weight, judged by its device, layout and dtype; None where it can."""
    if value.is_meta:
        return "has a shape and no values (a tensor of the meta device)"
    if value.layout != torch.strided:
        return f"is sparse ({value.layout}); expected a dense tensor"
    if value.dtype not in FLOATS:
        return f"is of {value.dtype}; expected one of {', '.join(map(str, FLOATS))}"
    return None


def check_finite(state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Raise WeightsError that names the first of ``path``'s tensors with a NaN or an infinity."""
    for name, value in state.items():
        # The extremes, to which NaN propagates, are found much faster than isfinite checks each value.
        if value.numel() and not all(map(math.isfinite, map(float, value.float().aminmax()))):
            raise WeightsError(path, f"{name} is not finite: it holds values that are NaN or infinite in float32")


def load_weights(network: torch.nn.Module, path: str | Path) -> None:
    """Load ``path`` into ``network``, strictly.

    Raises:
        WeightsError: as ``read_weights``, or keys are missing, unexpected or of the wrong shape; names the first.
    """
    state = read_weights(path)
    _compare(state, network, path)
    network.load_state_dict(state)


def _compare(state: dict[str, torch.Tensor], network: torch.nn.Module, path: str | Path) -> None:
    expected = network.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    differing = {"missing": missing, "unexpected": unexpected}
    problems = [f"{len(names)} {what}, the first {names[0]}" for what, names in differing.items() if names]
    wrong = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if wrong:
        name = wrong[0]
        problems.append(
            f"{len(wrong)} of the wrong shape, the first {name}: {tuple(state[name].shape)} in the file, "
            f"{tuple(expected[name].shape)} in the network"
        )
    if problems:
        raise WeightsError(path, "these weights belong to another network: keys " + "; ".join(problems))


def load_network(path: str | Path, **options) -> XYScanNet:
    """Build the network whose weights are in ``path``, in evaluation mode on the CPU.

    Its size and modules come from the description saved with the weights; for files without one, such as the released
    checkpoints, they are inferred from names and shapes.

    Args:
        options: ``scan_backend``, and what cannot be inferred for weights without a description: ``kl_gate``, ``scan``,
            ``slices``; see ``XYScanNet``.
    Raises:
        WeightsError: as ``load_weights``, or the network cannot be built here.
    """
    state, description = _read(path)
    return build(XYScanNet, {**options, **(description or _architecture(state, path))}, state, path)


def build(kind: type[Network], options: dict, state: dict[str, torch.Tensor], path: str | Path) -> Network:
    """The network ``kind(**options)`` with the weights ``state``, which ``path`` held, in evaluation mode.

    Raises:
        WeightsError: options that make no network, or the first key that does not fit.
    """
    network = _no_larger(kind, options, sum(value.numel() for value in state.values()))
    try:
        if network is None:
            with torch.device("meta"):
                _compare(state, kind(**options), path)
            network = kind(**options)
        else:
            _compare(state, network, path)
    except WeightsError:
        raise
    except (TypeError, KeyError, ValueError) as error:
        raise WeightsError(path, f"of a network that cannot be built here: {error}") from error
    network.load_state_dict(state)
    return network.eval()


def _no_larger(kind: type[Network], options: dict, most: int) -> Network | None:
    """``kind(**options)``; None where it fails or has more than ``most`` parameters, without initialising more.

    One small tensor in a file can claim any width.
    """
    _budget.left = most
    try:
        return kind(**options)
    except (TypeError, KeyError, ValueError, RuntimeError):  # the last: no memory for it
        return None
    finally:
        vars(_budget).pop("left", None)  # a network may have loaded another one meanwhile


_budget = threading.local()  # parameters that this thread may still add to modules; without a limit by default


def _spend(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
    if hasattr(_budget, "left"):
        _budget.left -= parameter.numel()
        if _budget.left < 0:
            raise ValueError("more parameters than in the file")


# Once for all: adding or removing a hook would disturb modules under construction in other threads.
register_module_parameter_registration_hook(_spend)


def _architecture(state: dict[str, torch.Tensor], path: str | Path) -> dict:
    """Infer XYScanNet's arguments from a state dict."""
    embedding = state.get("patch_embed.proj.weight")
    depths = [
        len({name.split(".")[1] for name in state if name.startswith(f"decoder_level{level}.")}) for level in (1, 2, 3)
    ]
    if embedding is None or not any(depths):
        raise WeightsError(
            path,
            f"not XYScanNet weights; its first key is {next(iter(state))}, "
            "and patch_embed.proj.weight or every decoder level is missing",
        )
    if embedding.dim() != 4 or len(embedding) < 2 or len(embedding) % 2:
        raise WeightsError(
            path,
            f"not XYScanNet weights; patch_embed.proj.weight is {tuple(embedding.shape)}; "
            "expected (dim, 3 or 12, 3, 3) with an even dim",
        )
    vssm = "ss2d" if any(name.endswith(".0.intra.in_proj.weight") for name in state) else "xyscan"
    fusion = "klff" if "clff_level1.conv.weight" in state else "aff" if "clff_level1.conv1.weight" in state else "none"
    return {
        "dim": len(embedding),
        "num_blocks": depths,
        "vssm": vssm,
        "fusion": fusion,
        "unshuffle": 2 if embedding.shape[1] == 12 else 1,
    }
