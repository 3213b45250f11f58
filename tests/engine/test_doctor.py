"""The doctor names what is here."""

import shutil

from engine import doctor
from engine.config import CONFIGS, shipped_weights


def test_the_weights_of_the_repository_and_of_jobs_are_listed(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    (tmp_path / CONFIGS).mkdir()
    jobs = [tmp_path / "results" / job / "models" for job in ("group/tiny@1", "tiny")]
    trained = [folder / "final_XYScanNet_stage1.pth" for folder in jobs]
    for path in (tmp_path / shipped_weights("tiny"), *trained):
        path.parent.mkdir(parents=True)
    assert [line.startswith("none") for line in doctor._weights()] == [True, False]
    for path in (tmp_path / shipped_weights("tiny"), *trained):
        shutil.copy(weights, path)
    listed = [line.split()[0] for line in doctor._weights()[:-1]]
    assert listed == [str(shipped_weights("tiny")), *(str(path.relative_to(tmp_path)) for path in trained)]
