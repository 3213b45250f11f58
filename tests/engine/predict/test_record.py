"""The table beside the images: resumed, merged, guarded against another run's results."""

import json
import math

import pytest

from engine.predict.record import COLUMNS, Row, ScoreSheet, ScoreSheetError

RECORD = {"weights_sha256": "abc", "tile": None, "device": "CPU"}
DECISIVE = ("weights_sha256", "tile")


def row(name: str, score: float | None = 30.5) -> Row:
    return Row(name, score, score and 0.9, score and 0.8, score and 25.25, 0.125)


def add(sheet: ScoreSheet, *names: str) -> None:
    """What a prediction does: the image first, then its row."""
    for name in names:
        sheet.image(name).parent.mkdir(parents=True, exist_ok=True)
        sheet.image(name).write_bytes(b"png")
        sheet.append(row(name))


@pytest.fixture
def sheet(tmp_path):
    sheet = ScoreSheet(tmp_path / "images")
    sheet.begin(RECORD, DECISIVE, overwrite=False)
    return sheet


def test_rows_come_back_sorted_and_whole(sheet):
    rows = [row("b/2", math.inf), row('a,"1"'), row("c", None)]
    for one in rows:
        sheet.append(one)
    sheet.merge()
    assert sheet.rows() == {one.name: one for one in rows}
    lines = sheet.table.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS) and [line.split(",")[0] for line in lines[1:]] == ['"a', "b/2", "c"]
    assert lines[3].startswith("c,,,,,0.125000,")


def test_all_processes_rows_are_merged_once(tmp_path, sheet):
    for rank in range(3):
        add(ScoreSheet(tmp_path / "images", rank), f"image{rank}")
    sheet.merge()
    sheet.merge()
    assert list(sheet.rows()) == ["image0", "image1", "image2"]
    assert {path.name for path in tmp_path.iterdir()} == {"images", "images.csv", "images.json"}


def test_a_stopped_run_goes_on(tmp_path, sheet):
    add(sheet, "a", "b", "c")
    sheet.append(row("row without image"))
    sheet.image("image without row").write_bytes(b"png")
    with sheet.journal.open("a") as file:
        file.write("d,30.1")  # the kill came here
    again = ScoreSheet(tmp_path / "images", rank=1)
    again.begin(RECORD | {"device": "another"}, DECISIVE, overwrite=False)
    assert again.done() == {"a", "b", "c"}


@pytest.mark.parametrize("change", [{"weights_sha256": "def"}, {"tile": 256}])
def test_another_runs_results_are_left_alone(tmp_path, sheet, change):
    add(sheet, "a")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ScoreSheetError, match=f"(?s){next(iter(change))}: .*Use --overwrite .* another --output"):
        ScoreSheet(tmp_path / "images").begin(RECORD | change, DECISIVE, overwrite=False)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_overwrite_removes_the_earlier_results_and_nothing_else(tmp_path, sheet):
    add(sheet, "a")
    sheet.merge()
    add(sheet, "b")
    (sheet.images / "notes.txt").write_text("mine")
    sheet.begin(RECORD | {"tile": 256}, DECISIVE, overwrite=True)
    assert [path.name for path in sheet.images.iterdir()] == ["notes.txt"]
    assert sheet.rows() == {} and json.loads(sheet.record.read_text())["tile"] == 256


def test_images_of_unknown_origin_are_not_counted_in(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"png")
    with pytest.raises(ScoreSheetError, match="images.json to say what made them"):
        ScoreSheet(tmp_path / "images").begin(RECORD, DECISIVE, overwrite=False)


def test_a_row_that_was_edited_or_cut_is_not_believed(sheet, caplog):
    add(sheet, "a", "b", "c")
    sheet.merge()
    lines = sheet.table.read_text().replace("\nb,30.5", "\nb,448.0").splitlines()
    sheet.table.write_text("\n".join(line.rpartition(",")[0] if line[0] == "c" else line for line in lines) + "\n")
    assert list(sheet.rows()) == ["a"] == list(sheet.done()) and "2 rows" in caplog.text
    sheet.merge()
    assert list(sheet.rows()) == ["a"]


@pytest.mark.parametrize("content", [b"", b"pn", b"another"])
def test_an_image_of_another_size_than_its_row_says_is_not_done(sheet, content):
    add(sheet, "a", "b")
    sheet.merge()
    sheet.image("a").write_bytes(content)
    assert sheet.done() == {"b"}


def test_a_table_without_checks_is_made_anew(sheet):
    sheet.table.write_text("name,psnr,ssim_matlab_rgb,ssim_per_channel,blurred_psnr,seconds\na,30.5,0.9,0.8,25.2,0.1\n")
    assert sheet.rows() == {}


def test_a_damaged_table_or_record_is_named(tmp_path, sheet):
    add(sheet, "a")
    sheet.table.write_bytes(b"name,\xff\xfe\n")
    with pytest.raises(ScoreSheetError, match="images.csv: not a table"):
        sheet.merge()
    sheet.table.unlink()
    sheet.record.write_text("[1, 2")
    with pytest.raises(ScoreSheetError, match="images.json: not a record"):
        sheet.begin(RECORD, DECISIVE, overwrite=False)
    sheet.begin(RECORD, DECISIVE, overwrite=True)


def test_the_conclusion_joins_the_record(sheet):
    sheet.conclude({"psnr": 30.5})
    assert json.loads(sheet.record.read_text()) == RECORD | {"results": {"psnr": 30.5}}


def test_a_dot_in_the_folders_name_stays(tmp_path):
    sheet = ScoreSheet(tmp_path / "run.v2")
    assert sheet.table.name == "run.v2.csv" and sheet.record.name == "run.v2.json"


@pytest.mark.parametrize("name", ["../mine", "{folder}/mine"])
def test_overwrite_removes_nothing_outside_its_folder(tmp_path, sheet, name):
    (tmp_path / "mine.png").write_bytes(b"png")
    sheet.table.write_text(f"{name.format(folder=tmp_path)},1,1,1,1,1\n")
    sheet.begin(RECORD, DECISIVE, overwrite=True)
    assert (tmp_path / "mine.png").is_file()
