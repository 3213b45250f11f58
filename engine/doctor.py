"""Report versions, devices, usable scan backends, data sets and weights: ``python -m engine.doctor``."""

import argparse
import importlib
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from datasets.catalogue import DATA_SETS
from datasets.layouts import LayoutError, find_pairs
from losses.contrast import find_vgg19
from models.ops.selective_scan import BACKENDS, NATIVE, choose, why_not

from .config import PRETRAINED, RESULTS, find_recipes
from .provenance import git_hash, versions


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser("python -m engine.doctor", description=__doc__).parse_args(argv)
    for title, lines in (
        ("versions", _versions()),
        ("devices", _devices()),
        ("selective scan", _backends()),
        ("data sets in datasets/", _data_sets()),
        ("weights", _weights()),
    ):
        print(f"{title}\n" + "\n".join(f"    {line}" for line in lines))


def _versions() -> list[str]:
    found = {"system": platform.platform(), "git": git_hash(), **versions(), "CUDA of torch": torch.version.cuda}
    for package in ("torchvision", "einops", "tensorboard", "triton", "mamba-ssm"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return [f"{name:<15}{version or 'none'}" for name, version in found.items()]


def _devices() -> list[str]:
    lines = [f"CPU, {torch.get_num_threads()} threads"]
    for k in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(k)
        lines.append(
            f"cuda:{k} {facts.name}, {facts.total_memory / 2**30:.0f} GiB, capability {facts.major}.{facts.minor}"
        )
    return lines if len(lines) > 1 else [*lines, "no CUDA device that PyTorch can use"]


def _backends() -> list[str]:
    lines = []
    for name in BACKENDS:
        device = NATIVE[name][0] if name in NATIVE else "cpu"
        reason = why_not(name, device)
        lines.append(f"{name:<12}{f'cannot run: {reason}' if reason else 'can run'}")
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        name, why = choose(device)
        lines.append(f"auto on {device} picks {name}: {why}")
    return lines


def _data_sets() -> list[str]:
    lines = []
    for data_set in DATA_SETS.values():
        folder, found = Path(data_set.folder), []
        if not folder.is_dir():
            lines.append(f"{data_set.title:<12}not found")
            continue
        for split in data_set.pairs:
            try:
                found.append(f"{split} {len(find_pairs(folder, split, variant=data_set.variant))}")
            except (LayoutError, OSError) as error:
                found.append(f"{split}: {str(error).splitlines()[0]}")
        lines.append(f"{data_set.title:<12}{'; '.join(found)} (python -m datasets.check {folder} gives details)")
    return lines


def _weights() -> list[str]:
    files = [*sorted(PRETRAINED.glob("*.pth")), *sorted(RESULTS.rglob("models/*_XYScanNet_stage*.pth"))]
    lines = [f"{file}  {file.stat().st_size / 2**20:.1f} MiB" for file in files]
    return [
        *(lines or [f"none in {PRETRAINED} and {RESULTS}/JOB/models (jobs: {', '.join(find_recipes())})"]),
        f"VGG19 for the contrast loss: {find_vgg19() or 'not here, 548 MB that the first training downloads'}",
    ]


if __name__ == "__main__":
    main()
