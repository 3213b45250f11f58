"""Tables: the best in bold, the paper's rows marked, no two profiles in one."""

import math
import re

import pytest

from engine.evaluate.comparison import compare
from engine.evaluate.table import Column, Line, Table
from metrics.catalogue import METRICS

COLUMNS = [Column("psnr", 2, True), Column("kid_over_blurred", 3, False)]
LINES = [
    Line("Ground Truth (paper)", {"psnr": math.inf, "kid_over_blurred": 0.0}, competes=False),
    Line("A_1 (paper)", {"psnr": 33.9149, "kid_over_blurred": None}),
    Line("B", {"psnr": 33.9101, "kid_over_blurred": 0.073}),
    Line("C", {"psnr": 30.0, "kid_over_blurred": 0.09}),
    Line("D", {"psnr": "not measured", "kid_over_blurred": 0.01}, competes=False),
]


def record(dataset="gopro", profile="paper", images=1111, **metrics):
    return {
        "dataset": dataset,
        "profile": profile,
        "images": {"scored": images, "data_set": images},
        "metrics": {name: {"value": value, "images": images, "failed": {}} for name, value in metrics.items()},
    }


def test_text_marks_the_best_by_what_is_printed():
    lines = Table("T", COLUMNS, LINES, ["A note."]).render("text").splitlines()
    assert lines[0] == "T" and lines[-1] == "A note."
    assert [line.split() for line in lines[2:4]] == [["kid_over_"], ["psnr", "↑", "blurred", "↓"]]
    body = [re.split(r"\s{2,}", line) for line in lines[4:9]]
    assert body == [
        ["Ground Truth (paper)", "inf", "0.000"],
        ["A_1 (paper)", "*33.91*", "–"],
        ["B", "*33.91*", "*0.073*"],
        ["C", "30.00", "0.090"],
        ["D", "not measured", "0.010"],
    ]
    assert len({len(line) for line in lines[4:9]}) == 1


def test_a_terminal_gets_bold_letters_and_the_same_columns():
    table = Table("T", COLUMNS, LINES)
    bold = table.render("text", colours=True)
    assert "\033[1m 33.91\033[0m" in bold or "\033[1m       33.91\033[0m" in bold
    plain = re.sub(r"\033\[\dm|\033\[0m", "", bold)
    assert plain.replace(" ", "") == table.render("text").replace("*", "").replace(" ", "")
    assert len({len(line) for line in plain.splitlines()[4:]}) == 1


def test_markdown_and_latex():
    markdown = Table("T", COLUMNS, LINES, ["A note."]).render("markdown").splitlines()
    assert markdown[2] == r"|  | psnr ↑ | kid\_over\_blurred ↓ |" and markdown[3] == "|---|---:|---:|"
    assert r"| A\_1 (paper) | **33.91** | – |" in markdown and "| B | **33.91** | **0.073** |" in markdown
    latex = Table("100 %", COLUMNS, LINES, ["A note."]).render("latex")
    assert (
        latex.startswith("% A note.\n")
        and r"\caption{100 \%.}" in latex
        and r"A\_1 (paper) & \textbf{33.91} & -- \\" in latex
    )
    assert all(line.count(" & ") == 2 for line in latex.splitlines() if line.endswith(r"\\"))


def test_one_figure_is_not_the_best_of_anything():
    assert "*" not in Table("T", COLUMNS[:1], LINES[3:]).render("text")


@pytest.mark.parametrize(
    "dataset, xyscannet",
    [
        ("gopro", {"psnr": 33.91, "ssim_matlab_rgb": 0.968, "lpips_alex": 0.067, "niqe_matlab": 4.05}),
        ("hide", {"psnr": 31.74, "fid_over_blurred": 0.118}),
        ("rwbi", {"niqe_matlab": 3.383}),
        ("realblur_j", {"stlpips_alex": 0.041, "niqe_matlab": 3.71}),
        ("realblur_r", {"stlpips_alex": 0.012}),
    ],
)
def test_the_papers_rows_stand_under_exact_names_and_are_marked(dataset, xyscannet):
    table = compare(dataset, "paper", {})
    assert all(line.label.endswith(" (paper)") for line in table.lines)
    row = next(line for line in table.lines if line.label == "XYScanNet (paper)")
    assert xyscannet.items() <= row.figures.items()
    assert {column.name for column in table.columns} <= METRICS.keys()


def test_a_better_run_is_best_and_a_partial_one_never():
    full = compare("gopro", "paper", {"mine": record(psnr=35.0)}).render("text")
    assert re.search(r"mine +\S+ +.*\*35.00\*", full) and "*34.21*" not in full
    partial = compare("gopro", "paper", {"mine": record(psnr=35.0, images=7)}).render("text")
    assert "*35.00*" not in partial and "*34.21*" in partial
    assert "mine: not comparable with the paper's rows: over 7 images, the test set has 1111." in partial
    tiled = compare("gopro", "paper", {"mine": record(psnr=35.0) | {"made_by": {"tile": 512}}}).render("text")
    assert "*35.00*" not in tiled and "restored by tiles" in tiled


def test_profiles_and_data_sets_never_share_a_table():
    with pytest.raises(ValueError, match="mine is gopro, profile whang"):
        compare("gopro", "paper", {"mine": record(profile="whang")})
    with pytest.raises(ValueError, match="mine is hide"):
        compare("gopro", "paper", {"mine": record(dataset="hide")})
    whang = compare("gopro", "whang", {"mine": record(profile="whang", psnr=35.0)})
    assert [line.label for line in whang.lines] == ["mine"] and "(paper)" not in whang.render("text")


def test_what_was_not_measured_or_left_out_is_said_once():
    mine = record(psnr=35.0)
    mine["metrics"] |= {name: {"not_measured": "no weights at X"} for name in ("fid", "kid")}
    mine["metrics"]["psnr"] |= {"images": 1110, "failed": {"a/1": "too dark"}}
    text = compare("gopro", "paper", {"mine": mine}).render("text")
    assert text.count("no weights at X") == 1 and "mine: fid, kid not measured: no weights at X" in text
    assert text.count("not measured") >= 3
    assert "psnr leaves out 1 of 1111 images that cannot be scored:\n    a/1: too dark" in text
