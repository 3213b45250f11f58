"""The page's tiles are the engine's: same places, same weights, same reflection."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from engine.predict.tiling import blending_windows, tile_starts
from tests.workplace import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="Node.js is not installed")


def javascript(expression: str):
    """The value of an expression over web/tiles.js."""
    code = f"import * as t from '{ROOT / 'web' / 'tiles.js'}'; console.log(JSON.stringify({expression}))"
    done = subprocess.run(
        ["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("size", [1, 511, 512, 513, 960, 961, 4000])
def test_places_and_weights(size):
    assert javascript(f"t.starts({size})") == (starts := tile_starts(size, 512, 64))
    found = javascript(f"t.windows({size}, 512, t.starts({size})).map((window) => [...window])")
    for ours, theirs in zip(found, blending_windows(size, 512, starts), strict=True):
        assert np.allclose(ours, theirs.numpy(), atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_reflection(size):
    expected = np.pad(np.arange(size), (0, 7), mode="reflect").tolist()
    assert javascript(f"Array.from({{length: {size + 7}}}, (_, i) => t.reflect(i, {size}))") == expected


def test_small_images_are_one_piece():
    assert javascript("t.cut(720, 1280)") == [{"top": 0, "left": 0, "height": 720, "width": 1280}]
    assert len(javascript("t.cut(3000, 4000)")) == 7 * 9
