"""What several tests of the engine share."""

import pytest
import torch

from models import XYScanNet


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The file of a small, untrained network's weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(XYScanNet(dim=8, num_blocks=(1, 1, 1)).state_dict(), path)
    return path
