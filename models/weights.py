"""Weights from files: the released checkpoints' forms and ours, read safely, checked strictly."""
from pathlib import Path

import torch

from .xyscannet import XYScanNet

DESCRIPTION = "xyscannet"        # key in the metadata of a state dict


class WeightsError(ValueError):
    """A file that holds no XYScanNet weights, or another network's."""


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in ``path``: bare or inside a training state, with or without DataParallel's ``module.``.

    Raises:
        WeightsError: missing, damaged, or not a state dict.
    """
    content = _read(path)
    return {name.removeprefix("module."): value for name, value in content.items()}


def _read(path: str | Path) -> dict[str, torch.Tensor]:
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:      # torch.load raises anything from EOFError to UnpicklingError on a damaged file
        raise WeightsError(f"{path}: cannot be read as PyTorch weights ({type(error).__name__}): it is damaged, or no "
                           "weights file, or holds code, which is never loaded") from error
    if isinstance(content, dict) and isinstance(content.get("model_state"), dict):
        content = content["model_state"]
    if not isinstance(content, dict) or not content or not all(torch.is_tensor(value) for value in content.values()):
        raise WeightsError(f"{path}: holds no state dict; expected one, bare or under the key 'model_state'")
    return content


def load_weights(network: torch.nn.Module, path: str | Path) -> None:
    """Load ``path`` into ``network``, every name and shape as they must be.

    Raises:
        WeightsError: with the first missing, unexpected and misshapen key.
    """
    state, expected = read_weights(path), network.state_dict()
    problems = []
    for what, names in (("missing", [name for name in expected if name not in state]),
                        ("unexpected", [name for name in state if name not in expected])):
        if names:
            problems.append(f"{len(names)} {what}, the first {names[0]}")
    misshapen = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if misshapen:
        name = misshapen[0]
        problems.append(f"{len(misshapen)} misshapen, the first {name}: {tuple(state[name].shape)} in the file, "
                        f"{tuple(expected[name].shape)} in the network")
    if problems:
        raise WeightsError(f"{path}: these weights are another network's; keys " + "; ".join(problems))
    network.load_state_dict(state)


def save_weights(network: torch.nn.Module, path: str | Path) -> None:
    """Write ``network``'s state dict, its description inside.

    The file is a bare state dict, as the released code reads it: the description lies in its ``_metadata``, which
    PyTorch writes with every state dict and other programs ignore.
    """
    torch.save(described_state(network), path)


def described_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """``network.state_dict()`` with the description in its metadata, see `save_weights`."""
    state = network.state_dict()
    state._metadata[""][DESCRIPTION] = network.description
    return state


def read_description(path: str | Path) -> dict:
    """The arguments of ``XYScanNet`` that `save_weights` put into the file; empty for other files."""
    return getattr(_read(path), "_metadata", {}).get("", {}).get(DESCRIPTION, {})


def load_network(path: str | Path, **options) -> XYScanNet:
    """The network whose weights ``path`` holds, in evaluation mode on the CPU.

    Its size and modules are those of the description in the file; of a file without one (the released ones), they are
    read off the weights.

    Args:
        options: what weights without a description do not tell: ``kl_gate``, ``scan``, ``slices``; and
            ``scan_backend``; see ``XYScanNet``.
    Raises:
        WeightsError: as ``load_weights``, and where the file is of no XYScanNet at all.
    """
    described = read_description(path) or _guess(path)
    try:
        network = XYScanNet(**{**options, **described})
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: weights of a network that cannot be built here ({error})") from error
    load_weights(network, path)
    return network.eval()


def _guess(path: str | Path) -> dict:
    """Size and modules by the names and shapes of the weights."""
    state = read_weights(path)
    embedding = state.get("patch_embed.proj.weight")
    depths = [len({name.split(".")[1] for name in state if name.startswith(f"decoder_level{level}.")})
              for level in (1, 2, 3)]
    if embedding is None or not all(depths):
        raise WeightsError(f"{path}: not XYScanNet weights; its first key is {next(iter(state))}, "
                           "and patch_embed.proj.weight or a decoder level is missing")
    fusion = "klff" if "clff_level1.conv.weight" in state else "aff" if "clff_level1.conv1.weight" in state else "none"
    return {"dim": len(embedding), "num_blocks": depths, "fusion": fusion,
            "vssm": "ss2d" if "decoder_level1.0.intra.in_proj.weight" in state else "xyscan",
            "unshuffle": 2 if embedding.shape[1] == 12 else 1}
