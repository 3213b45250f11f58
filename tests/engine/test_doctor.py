"""The doctor names what is here."""

import shutil

from engine import doctor
from engine.config import shipped_weights


def test_the_weights_of_the_repository_and_of_jobs_are_listed(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    trained = tmp_path / "results" / "tiny" / "models" / "final_XYScanNet_stage1.pth"
    for path in (tmp_path / shipped_weights("tiny"), trained):
        path.parent.mkdir(parents=True)
    assert [line.startswith("none") for line in doctor._weights()] == [True, False]
    for path in (tmp_path / shipped_weights("tiny"), trained):
        shutil.copy(weights, path)
    listed = [line.split()[0] for line in doctor._weights()[:-1]]
    assert listed == [str(shipped_weights("tiny")), str(trained.relative_to(tmp_path))]
