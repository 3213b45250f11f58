"""Notebooks: every cell runs, and prints what is stored with it."""

import json
import re

import pytest

from tests.workplace import ROOT, run

NUMBER = re.compile(r"\d[\d,.]*")
HEADER = "import sys; sys.path[0] = ''; import matplotlib; matplotlib.use('Agg')\n"  # modules are found as in Jupyter


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_cell_runs_and_prints_what_is_stored(path, tmp_path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    program = tmp_path / "cells.py"
    program.write_text(HEADER + "\n".join("".join(cell["source"]) for cell in cells))
    printed = run(path.parent, str(program))
    stored = "".join(text for cell in cells for output in cell["outputs"] for text in output.get("text", []))
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", stored)
    found, expected = ([float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (printed, stored))
    assert found == pytest.approx(expected, rel=2e-3)  # processors round differently
    assert sum("image/jpeg" in output.get("data", {}) for cell in cells for output in cell["outputs"]) == 3
