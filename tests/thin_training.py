"""Stage 1's script, but of a thin network: for what is done to a training from outside."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

import train_XYScanNet_stage1  # noqa: E402
from engine.train import run  # noqa: E402
from tests.thin import Thin  # noqa: E402

run.XYScanNet = Thin
train_XYScanNet_stage1.main()
