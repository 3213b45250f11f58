"""The paper's tables with every scores.json below results/, and the radar figure."""

import json
import re
import sys

import numpy as np
import pytest

from analysis.radar import AXES, normalise, style
from analysis.tables import find_records, main, make_tables
from tests.engine.evaluate.test_table import record

FULL = {
    "kid_over_blurred": 0.05,
    "fid_over_blurred": 0.1,
    "lpips_alex": 0.06,
    "niqe_matlab": 4.0,
    "psnr": 35.0,
    "ssim_matlab_rgb": 0.98,
}


@pytest.fixture
def results(tmp_path):
    """Two jobs on GoPro, one of them in both profiles, and files that are none of ours."""
    for folder, content in (
        ("a/images_scores", record(**FULL)),
        ("b/images_scores", record(images=7, psnr=40.0)),
        ("a/images_scores_whang", record(profile="whang", psnr=35.0)),
        ("a/images_rwbi_scores", record(dataset="rwbi", images=9, niqe_live=3.0)),
        ("c/images_scores", record(psnr=1.0) | {"complete": False}),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "scores.json").write_text(json.dumps({"complete": True} | content))
    for folder, text in (("notes", "[1, 2"), ("deep", "[" * 100_000), ("list", "[]")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "scores.json").write_text(text)
    return tmp_path


def test_every_finished_record_is_found_and_the_others_are_named(results, capsys):
    assert list(find_records(results)) == ["a/images_rwbi", "a/images", "a/images_scores_whang", "b/images"]
    error = capsys.readouterr().err
    assert "notes/scores.json: no record" in error and "deep/scores.json: no record" in error
    assert "list/scores.json: no record" in error and "c/images_scores/scores.json: not finished" in error


def test_a_job_s_name_is_never_cut(tmp_path):
    for folder in ("no_scores_yet/images_scores", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "scores.json").write_text(json.dumps({"complete": True} | record(psnr=1.0)))
    assert list(find_records(tmp_path)) == ["elsewhere", "no_scores_yet/images"]


def test_profiles_never_share_a_table(results):
    tables = make_tables(find_records(results))
    assert [table.title for table in tables] == [
        "Table 1. GoPro, profile paper",
        "Table 1. GoPro, profile paper, not comparable with the paper",
        "Table 2. HIDE, profile paper",
        "Table 3. RWBI, profile paper",
        "Table 4. RealBlur-J, profile paper",
        "Table 4. RealBlur-R, profile paper",
        "Table 1. GoPro, profile whang",
    ]
    own = [[line.label for line in table.lines if not line.label.endswith("(paper)")] for table in tables]
    assert own == [["a/images"], ["b/images"], [], ["a/images_rwbi"], [], [], ["a/images_scores_whang"]]
    for table in (tables[1], tables[-1]):
        assert not any("(paper)" in text for text in [*(line.label for line in table.lines), *table.notes])


def test_latex_captions_are_short_and_notes_are_comments(results):
    table = make_tables(find_records(results))[0]
    latex = table.render("latex")
    assert r"\caption{a/images on GoPro, 1111 images.}" in latex
    assert table.notes and all(f"% {note}" in latex.splitlines() for note in table.notes)


@pytest.mark.parametrize(
    "form, file, cell",
    [
        ("text", "tables.txt", "*35.00*"),
        ("markdown", "tables.md", "**35.00**"),
        ("latex", "tables.tex", r"\textbf{35.00}"),
    ],
)
def test_the_command_prints_and_writes_tables_and_draws(results, capsys, form, file, cell):
    assert main(["--results", str(results), "--format", form, "--output", str(results / "out")]) == 0
    printed = capsys.readouterr()
    written = (results / "out" / file).read_text()
    assert cell in printed.out and cell in written and "40.00" in written
    assert "not in the figure: b/images: over 7 images" in printed.err
    radar = (results / "out" / ("radar.pdf" if form == "latex" else "radar.png")).read_bytes()
    assert len(radar) > 10_000 and radar.startswith(b"%PDF" if form == "latex" else b"\x89PNG")
    assert not list((results / "out").glob(".*"))


def test_without_any_result_the_papers_own_tables_are_made():
    assert [len(table.lines) for table in make_tables({})] == [11, 11, 8, 7, 7]


def test_without_matplotlib_the_tables_are_made_and_the_message_says_what_to_install(results, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["--results", str(results)]) == 2
    printed = capsys.readouterr()
    assert "pip install -e .[metrics]" in printed.err and "Table 4. RealBlur-R" in printed.out
    assert (results / "tables" / "tables.txt").is_file() and not (results / "tables" / "radar.png").exists()


def test_the_radar_is_0_for_the_worst_and_1_for_the_best_on_every_axis():
    drawn = normalise(
        {"a": [0.1, 0.2, 0.3, 4.0, 0.9], "b": [0.2, 0.1, 0.2, 4.0, 0.8], "c": [0.15, 0.15, 0.1, 4.0, 0.7]}
    )
    values = np.array(list(drawn.values()))
    assert AXES == ("KID", "FID", "LPIPS", "NIQE", "SSIM")
    np.testing.assert_allclose(values, [[1, 0, 0, 1, 1], [0, 1, 0.5, 1, 0.5], [0.5, 0.5, 1, 1, 0]], atol=1e-12)


def test_lines_of_the_radar_differ_in_colour_and_marker():
    styles = [style(f"{k} (paper)", k) for k in range(7)] + [style("XYScanNet (paper)", 7), style("mine", 8)]
    assert len({one["color"] for one in styles}) == len({one["marker"] for one in styles}) == 9
    assert all(re.fullmatch("#[0-9A-F]{6}", one["color"]) for one in styles)


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--results", str(tmp_path / "typo")])
    assert "typo: no such folder" in capsys.readouterr().err and not list(tmp_path.iterdir())
