"""The paper's figures, as printed beside what is measured."""

import math

from metrics.paper import _tables, paper_table


def test_rows_of_the_main_tables():
    gopro = {"KID": 0.073, "FID": 0.138, "LPIPS": 0.067, "NIQE": 4.05, "PSNR": 33.91, "SSIM": 0.968}
    assert paper_table("gopro")["XYScanNet"] == gopro
    assert paper_table("hide")["XYScanNet"]["PSNR"] == 31.74
    assert paper_table("rwbi")["Blurred"] == {"NIQE": 3.546}
    assert paper_table("realblur_j")["XYScanNet"] == {"ST-LPIPS": 0.041, "NIQE": 3.71}
    assert paper_table("gopro")["MISC"]["KID"] is None
    assert paper_table("gopro")["Ground Truth"]["PSNR"] == math.inf


def test_every_row_has_a_figure_for_every_column():
    tables = _tables()
    assert set(tables) >= {"gopro", "hide", "rwbi", "realblur_j", "realblur_r"}
    for dataset, table in tables.items():
        for method in table.keys() - {"columns"}:
            figures = paper_table(dataset)[method].values()
            assert all(figure is None or isinstance(figure, (int, float)) for figure in figures), (dataset, method)
