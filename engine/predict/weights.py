"""Find the weights that a command uses, and what a weights file does not say of its network."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from models import XYScanNet
from models.ops.selective_scan import why_not
from models.weights import WeightsError, load_network, read_torch_file

from ..config import config_dir, config_path, model_options, models_dir, shipped_weights
from .peers import Peer, has_spandrel, load_peer

logger = logging.getLogger(__name__)


class MissingWeights(FileNotFoundError):
    """The weights that a command asks for do not exist."""


def find_weights(weights: Path | None, job_name: str, which: str) -> Path:
    """The file to load: ``weights`` if given, else the job's own ``which`` (best or final), else those shipped with it.

    Raises:
        MissingWeights: names the missing file, what lies in its folder instead, and how to get it.
        ConfigError: there is no job of that name.
    """
    path = weights or models_dir(job_name) / f"{which}_XYScanNet_stage2.pth"
    if path.is_file():
        return path
    if not weights and shipped_weights(job_name).is_file():
        return shipped_weights(job_name)
    others = ", ".join(sorted(found.name for found in path.parent.glob("*.pth")))
    there = f"{path.parent} holds {others or 'no weights'}"
    if weights:
        raise MissingWeights(f"no weights at {path}, the file given with --weights; {there}")
    if not path.parent.is_dir():
        config_path(job_name, stage=2)  # raises ConfigError: a mistyped job name is the likelier mistake
    training = "".join(
        f"    python train_XYScanNet_stage{stage}.py --job_name {job_name}\n"
        for stage in (1, 2)
        if (config_dir(job_name) / f"config_stage{stage}.yaml").is_file()
    )
    raise MissingWeights(
        f"no weights at {path}; {there}. Put a released checkpoint there under that name, or train it:\n"
        f"{training}or choose another file with --weights FILE"
    )


def load_any_network(weights: Path, job_name: str, device: torch.device) -> XYScanNet | Peer:
    """The network that a file's weights are of, XYScanNet or another that spandrel knows, for evaluation, on the CPU.

    What released weights do not say comes from the job's recipe, as far as ``device``, where it will run, can run it.

    Raises:
        WeightsError: the file is damaged, or of an XYScanNet that cannot be built, or spandrel is missing.
        PeerWeightsError: the file is of no network known here.
    """
    try:
        return load_network(weights, **network_options(weights, job_name, device))
    except WeightsError as error:
        if not _is_of_another_network(weights):
            raise
        if not has_spandrel():
            reason = f"{error.reason}; other networks need spandrel: pip install -e .[peers]"
            raise WeightsError(weights, reason) from error
    return load_peer(weights)


def _is_of_another_network(weights: Path) -> bool:
    """Whether a file that does not load is whole, and no XYScanNet's by its names."""
    if weights.suffix == ".safetensors":
        return True
    try:
        content = read_torch_file(weights)
    except WeightsError:
        return False
    inner = content.values() if isinstance(content, dict) else ()
    names = {name for part in (content, *inner) if isinstance(part, dict) for name in part if isinstance(name, str)}
    # Restormer has patch_embed and decoder_level1 too, but no scans.
    return bool(names) and not any(".intra." in name or ".inter." in name for name in names)


def network_options(weights: Path, job_name: str, device: torch.device) -> dict:
    """Arguments for `models.weights.load_network`: what released weights do not say, from the job's recipe.

    A scan backend that the recipe asks for and this device cannot run is replaced by "auto", with a warning: backends
    differ in speed, not in what they compute.
    """
    options = model_options(weights, job_name)
    reason = why_not(options.get("scan_backend", "auto"), device.type)
    if reason is None:
        return options
    logger.warning(
        "the job's scan backend %s cannot run on %s (%s): auto is used", options["scan_backend"], device, reason
    )
    return {**options, "scan_backend": "auto"}
