"""The paper's figures, as printed beside what is measured."""

import math

import pytest

from metrics.paper import _tables, paper_row


def test_rows_of_the_main_tables():
    gopro = {"KID": 0.073, "FID": 0.138, "LPIPS": 0.067, "NIQE": 4.05, "PSNR": 33.91, "SSIM": 0.968}
    assert paper_row("gopro") == gopro
    assert paper_row("hide")["PSNR"] == 31.74
    assert paper_row("rwbi", "Blurred") == {"NIQE": 3.546}
    assert paper_row("realblur_j") == {"ST-LPIPS": 0.041, "NIQE": 3.71}
    assert paper_row("gopro", "MISC")["KID"] is None
    assert paper_row("gopro", "Ground Truth")["PSNR"] == math.inf


def test_every_row_has_a_figure_for_every_column():
    tables = _tables()
    assert set(tables) >= {"gopro", "hide", "rwbi", "realblur_j", "realblur_r"}
    for dataset, table in tables.items():
        for method in table.keys() - {"columns"}:
            row = paper_row(dataset, method)
            assert all(figure is None or isinstance(figure, (int, float)) for figure in row.values()), (dataset, method)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(KeyError, match="no table 'GoPro'; known: gopro, hide"):
        paper_row("GoPro")
    with pytest.raises(KeyError, match="no method 'DeblurGAN'; known: .*XYScanNet"):
        paper_row("hide", "DeblurGAN")
