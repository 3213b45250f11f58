"""scores.json: what was measured, of which images, how, and what made them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import torch

from datasets.files import JsonError, read_json, write_atomic
from metrics.catalogue import METRICS

from .. import provenance
from ..config import ConfigError, results_dir
from ..typed_yaml import read_yaml
from .command import Request
from .pairing import Pairing

logger = logging.getLogger(__name__)

FILE = "scores.json"


class EvaluationError(ConfigError):
    """What is asked for cannot be scored; the message says why and what to do."""


def describe(request: Request, pairing: Pairing, device: torch.device) -> dict:
    """What the record says of the run apart from its scores."""
    made_by = what_made(request.restored)
    return {
        "dataset": request.data_set.key,
        "profile": request.profile,
        "restored": str(request.restored.resolve()),
        "truth": [str(folder.resolve()) for folder in request.truth],
        "images": {
            "data_set": len(pairing.samples) + len(pairing.missing) + len(pairing.wrong_shape),
            "scored": len(pairing.samples),
            "missing": pairing.missing,
            "extra": pairing.extra,
            "wrong_shape": pairing.wrong_shape,
            "suffixes": dict(Counter(sample.restored.suffix.lower() for sample in pairing.samples)),
        },
        "made_by": made_by,
        "config": config_of(made_by),
        "scored": "saved 8-bit RGB values, one image at a time, then averaged",
        "device": str(device),
        "git": provenance.git_hash(),
        "versions": provenance.versions(),
    }


def what_made(restored: Path) -> dict | None:
    """The prediction's record of the images, without its results; None where there is none."""
    path = Path(f"{restored}.json")
    if not path.is_file():
        return None
    try:
        record = read_json(path)
    except JsonError as error:
        raise EvaluationError(f"{error}, so not a record of a prediction; remove it, or predict again") from error
    record.pop("results", None)
    return record


def config_of(made_by: dict | None) -> dict | None:
    """The recipe that trained the weights, where the weights lie in the job that the recipe is of."""
    if not made_by or not {"job_name", "weights"} <= made_by.keys():
        return None
    folder, weights = results_dir(made_by["job_name"]), Path(made_by["weights"])
    path = folder / f"config_{weights.stem.rpartition('_')[2]}.yaml"  # best_XYScanNet_stage2 -> config_stage2
    if folder.resolve() not in weights.resolve().parents or not path.is_file():
        return None
    return read_yaml(path)


def write_record(folder: Path, record: dict, metrics: dict[str, dict], complete: bool) -> dict:
    """Writes scores.json, the metrics in the order of the tables; returns what it holds."""
    record = record | {"complete": complete, "metrics": {name: metrics[name] for name in METRICS if name in metrics}}
    write_atomic(folder / FILE, json.dumps(record, indent=2) + "\n")
    return record


def earlier_record(folder: Path) -> dict:
    """What an earlier run has written; without any metric where there is no record, or a damaged one."""
    path = folder / FILE
    try:
        record = read_json(path)
        if all(isinstance(entry, dict) for entry in record["metrics"].values()):
            return record
    except FileNotFoundError:
        return {"metrics": {}}
    except (JsonError, AttributeError, KeyError):
        pass
    logger.warning("%s: no record of an evaluation; everything is scored again", path)
    return {"metrics": {}}


def other_metrics(earlier: dict, columns: list[str], same: bool) -> dict[str, dict]:
    """Metrics in the earlier record that were not requested now. If the files are unchanged (`same`), they are kept;
    otherwise only their `how`, so that the scores of unchanged images can be reused."""
    entries = {name: entry for name, entry in earlier["metrics"].items() if name in METRICS and name not in columns}
    return {name: entry if same else {"how": entry["how"]} for name, entry in entries.items() if entry.get("how")}
