"""Notebooks: every cell runs, and prints what is stored with it."""

import json
import re
import subprocess
import sys

import pytest

from tests.workplace import ROOT

NUMBER = re.compile(r"\d[\d,.]*")
HEADER = "import matplotlib; matplotlib.use('Agg')\n"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_cell_runs_and_prints_what_is_stored(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    code = HEADER + "\n".join("".join(cell["source"]) for cell in cells)
    done = subprocess.run([sys.executable, "-c", code], cwd=path.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stored = "".join(text for cell in cells for output in cell["outputs"] for text in output.get("text", []))
    assert NUMBER.sub("#", done.stdout) == NUMBER.sub("#", stored)
    found, expected = ([float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (done.stdout, stored))
    assert found == pytest.approx(expected, rel=2e-3)  # processors round differently
    assert sum("image/jpeg" in output.get("data", {}) for cell in cells for output in cell["outputs"]) == 3
