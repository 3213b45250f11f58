"""Every folder layout that people have, and the errors for those that are broken or unknown."""

import itertools
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from datasets.headers import check_headers
from datasets.images import ImageError
from datasets.layouts import AmbiguityError, LayoutError, Pair, find_pairs
from tests.datasets.conftest import touch
from tests.workplace import forbid_reading


def relative(pairs: list[Pair], root: Path) -> list[tuple[str, str, str | None]]:
    return [
        (
            pair.name,
            pair.blurred.relative_to(root).as_posix(),
            None if pair.sharp is None else pair.sharp.relative_to(root).as_posix(),
        )
        for pair in pairs
    ]


def test_gopro_as_downloaded(tmp_path: Path) -> None:
    for kind in ("blur", "blur_gamma", "sharp"):
        touch(
            tmp_path,
            f"train/GOPR0372_07_00/{kind}/000047.png",
            f"train/GOPR0372_07_00/{kind}/000048.png",
            f"train/GOPR0378_13_00/{kind}/000047.png",
            f"test/GOPR0384_11_00/{kind}/000001.png",
        )
    assert relative(find_pairs(tmp_path, "train"), tmp_path) == [
        (f"{scene}/{number}", f"train/{scene}/blur/{number}.png", f"train/{scene}/sharp/{number}.png")
        for scene, number in [("GOPR0372_07_00", "000047"), ("GOPR0372_07_00", "000048"), ("GOPR0378_13_00", "000047")]
    ]
    assert find_pairs(tmp_path, "test")[0].name == "GOPR0384_11_00/000001"
    # A split's folder, and one scene's, are found as well as the root.
    assert find_pairs(tmp_path / "train", "train") == find_pairs(tmp_path, "train") == find_pairs(tmp_path / "train")
    assert [pair.name for pair in find_pairs(tmp_path / "train" / "GOPR0372_07_00")] == ["000047", "000048"]


@pytest.mark.parametrize("blurred,sharp", [("blur", "sharp"), ("trainA", "trainB"), ("testA", "testB")])
@pytest.mark.parametrize("inside", ["", "GOPR0384_11_00/"])
def test_sorted_by_kind(tmp_path: Path, blurred: str, sharp: str, inside: str) -> None:
    touch(tmp_path, f"test/{blurred}/{inside}000001.png", f"test/{sharp}/{inside}000001.png")
    assert relative(find_pairs(tmp_path, "test"), tmp_path) == [
        (f"{inside}000001", f"test/{blurred}/{inside}000001.png", f"test/{sharp}/{inside}000001.png")
    ]
    assert find_pairs(tmp_path) == find_pairs(tmp_path / "test") == find_pairs(tmp_path, "test")


def test_a_b_folders_of_both_splits_side_by_side(tmp_path: Path) -> None:
    touch(tmp_path, "trainA/1.png", "trainB/1.png", "testA/2.png", "testB/2.png")
    assert [pair.name for pair in find_pairs(tmp_path, "train")] == ["1"]
    assert [pair.name for pair in find_pairs(tmp_path, "test")] == ["2"]
    with pytest.raises(AmbiguityError) as error:
        find_pairs(tmp_path)
    assert (error.value.what, error.value.choices) == ("split", ["test", "train"])


@pytest.mark.parametrize("gt", ["GT", "test/GT", "GT/nested", "test/GT/nested"])
def test_hide(tmp_path: Path, gt: str) -> None:
    folder = gt.removesuffix("/nested")
    close, long = ("/test-close-ups", "/test-long-shot") if gt != folder else ("", "")
    touch(
        tmp_path,
        "test/test-close-ups/1fromGOPR0950.png",
        "test/test-long-shot/100fromGOPR1029.png",
        f"{folder}{close}/1fromGOPR0950.png",
        f"{folder}{long}/100fromGOPR1029.png",
    )
    expected = [
        ("test-close-ups/1fromGOPR0950", "test/test-close-ups/1fromGOPR0950.png", f"{folder}{close}/1fromGOPR0950.png"),
        (
            "test-long-shot/100fromGOPR1029",
            "test/test-long-shot/100fromGOPR1029.png",
            f"{folder}{long}/100fromGOPR1029.png",
        ),
    ]
    assert relative(find_pairs(tmp_path, "test"), tmp_path) == expected
    assert relative(find_pairs(tmp_path / "test"), tmp_path) == expected


def test_hide_shares_gt_between_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.png", "test/test-close-ups/b.png", "GT/a.png", "GT/b.png")
    assert relative(find_pairs(tmp_path, "train"), tmp_path) == [("a", "train/a.png", "GT/a.png")]
    assert relative(find_pairs(tmp_path, "test"), tmp_path) == [
        ("test-close-ups/b", "test/test-close-ups/b.png", "GT/b.png")
    ]


def realblur(root: Path, *variants: str) -> None:
    """RealBlur as its authors ship it: scenes of both splits together, and lists with the sharp path first."""
    for variant in variants:
        folder = f"RealBlur-{variant}_ECC"
        for split, scenes in (("train", [1, 2]), ("test", [3])):
            lines = []
            for scene in scenes:
                for number in (1, 10, 2):
                    place = f"{folder}/scene{scene:03d}"
                    sharp, blurred = f"{place}/gt/gt_{number}.png", f"{place}/blur/blur_{number}.png"
                    touch(root, sharp, blurred)
                    lines.append(f"{sharp} {blurred}\n")
            (root / f"RealBlur_{variant}_{split}_list.txt").write_text("".join(lines))


def test_realblur_lists(tmp_path: Path) -> None:
    realblur(tmp_path, "J")
    pairs = find_pairs(tmp_path, "test")
    assert relative(pairs, tmp_path) == [
        (
            f"scene003/blur_{number}",
            f"RealBlur-J_ECC/scene003/blur/blur_{number}.png",
            f"RealBlur-J_ECC/scene003/gt/gt_{number}.png",
        )
        for number in (1, 10, 2)
    ]
    assert [pair.name for pair in find_pairs(tmp_path, "train")][:2] == ["scene001/blur_1", "scene001/blur_10"]
    assert len(find_pairs(tmp_path, "train")) == 6


def test_realblur_variants_in_one_folder(tmp_path: Path) -> None:
    realblur(tmp_path, "J", "R")
    for variant in "JR":
        pairs = find_pairs(tmp_path, "test", variant=variant)
        assert len(pairs) == 3 and all(f"RealBlur-{variant}" in str(pair.sharp) for pair in pairs)
    with pytest.raises(AmbiguityError) as error:
        find_pairs(tmp_path, "test")
    assert (error.value.what, error.value.choices) == ("variant", ["J", "R"])
    with pytest.raises(AmbiguityError) as error:
        find_pairs(tmp_path, variant="J")
    assert (error.value.what, error.value.choices) == ("split", ["test", "train"])


def test_realblur_list_of_missing_images(tmp_path: Path) -> None:
    realblur(tmp_path, "J")
    (tmp_path / "RealBlur-J_ECC/scene003/gt/gt_10.png").unlink()
    with pytest.raises(LayoutError, match=r"test_list.txt: 1 .*scene003/gt/gt_10.png"):
        find_pairs(tmp_path, "test")
    (tmp_path / "RealBlur_J_test_list.txt").write_text("one two three\n")
    with pytest.raises(LayoutError, match="'one two three'"):
        find_pairs(tmp_path, "test")


def test_realblur_scenes_without_lists(tmp_path: Path) -> None:
    realblur(tmp_path, "J", "R")
    for file in tmp_path.glob("*.txt"):
        file.unlink()
    pairs = find_pairs(tmp_path, variant="R")
    assert len(pairs) == 9
    assert relative(pairs[:2], tmp_path / "RealBlur-R_ECC") == [
        ("scene001/blur_1", "scene001/blur/blur_1.png", "scene001/gt/gt_1.png"),
        ("scene001/blur_10", "scene001/blur/blur_10.png", "scene001/gt/gt_10.png"),
    ]
    assert find_pairs(tmp_path / "RealBlur-R_ECC") == pairs


def test_realblur_a_b_with_its_names(tmp_path: Path) -> None:
    touch(tmp_path, *(f"test/testA/blur_{n}.png" for n in (1, 2, 10)), *(f"test/testB/gt_{n}.png" for n in (1, 2, 10)))
    assert relative(find_pairs(tmp_path, "test"), tmp_path) == [
        (f"blur_{n}", f"test/testA/blur_{n}.png", f"test/testB/gt_{n}.png") for n in (1, 10, 2)
    ]


def test_blurred_only(tmp_path: Path) -> None:
    touch(tmp_path, "RWBI/test/testA/b.png", "RWBI/test/testA/a.jpg")
    expected = [("a", "a.jpg", None), ("b", "b.png", None)]
    for source in ("RWBI", "RWBI/test", "RWBI/test/testA"):
        assert relative(find_pairs(tmp_path / source), tmp_path / "RWBI/test/testA") == expected
    touch(tmp_path, "mine/2019/a.PNG", "mine/b.jpeg", "mine/b.webp", "mine/._b.webp", "mine/__MACOSX/b.webp")
    assert relative(find_pairs(tmp_path / "mine"), tmp_path / "mine") == [
        ("2019/a", "2019/a.PNG", None),
        ("b.jpeg", "b.jpeg", None),
        ("b.webp", "b.webp", None),
    ]


def test_two_folders(tmp_path: Path) -> None:
    touch(tmp_path, "input/x/1.png", "target/x/1.jpg")
    for source in ([tmp_path / "input", tmp_path / "target"], (str(tmp_path / "input"), str(tmp_path / "target"))):
        assert relative(find_pairs(source), tmp_path) == [("x/1", "input/x/1.png", "target/x/1.jpg")]
    with pytest.raises(LayoutError, match="3 folders"):
        find_pairs([tmp_path, tmp_path, tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(LayoutError, match="empty: no images found"):
        find_pairs([tmp_path / "empty", tmp_path / "empty"])


def test_blurred_images_alone_where_sharp_ones_are_needed(tmp_path: Path) -> None:
    touch(tmp_path, "a/blur/1.png", "b/blur/2.png")
    assert len(find_pairs(tmp_path)) == 2
    with pytest.raises(LayoutError, match="2 blurred images have no sharp image, the first is .*a/blur/1.png"):
        find_pairs(tmp_path, need_sharp=True)


def test_pairs_by_name_and_not_by_order(tmp_path: Path) -> None:
    """As many on either side, in the same order, but not of the same name: an error that says which."""
    touch(tmp_path, *(f"blur/{n}.png" for n in (1, 2, 3, 4)), *(f"sharp/{n}.png" for n in (2, 3, 4, 5)))
    with pytest.raises(LayoutError) as error:
        find_pairs(tmp_path)
    assert "1 of 4 blurred images have no sharp partner: " + str(tmp_path / "blur/1.png") in str(error.value)
    assert "1 of 4 sharp images have no blurred partner: " + str(tmp_path / "sharp/5.png") in str(error.value)


def test_only_the_first_of_many_missing_are_named(tmp_path: Path) -> None:
    touch(tmp_path, *(f"blur/{n}.png" for n in range(10)), "sharp/0.png")
    with pytest.raises(LayoutError, match="9 of 10 blurred.*1.png.*2.png.*3.png, …$"):
        find_pairs(tmp_path)


def test_a_scene_without_its_sharp_folder_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "a/blur/1.png", "a/sharp/1.png", "b/blur/1.png")
    with pytest.raises(LayoutError, match="no sharp partner.*b/blur/1.png"):
        find_pairs(tmp_path)


def test_ambiguous_names_are_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "blur/1.png", "blur/1.jpg", "sharp/1.png")
    with pytest.raises(LayoutError, match="1.jpg and 1.png have the same name"):
        find_pairs(tmp_path)
    touch(tmp_path, "ab/testA/blur_1.png", "ab/testA/1.png", "ab/testB/gt_1.png")
    with pytest.raises(LayoutError, match="same name"):
        find_pairs(tmp_path / "ab")


def test_split_is_asked_for(tmp_path: Path) -> None:
    touch(tmp_path, "train/blur/1.png", "train/sharp/1.png")
    assert len(find_pairs(tmp_path)) == 1
    with pytest.raises(LayoutError, match="no split 'test', only train"):
        find_pairs(tmp_path, "test")
    touch(tmp_path, "test/blur/1.png", "test/sharp/1.png")
    with pytest.raises(AmbiguityError) as error:
        find_pairs(tmp_path)
    assert (error.value.what, error.value.choices) == ("split", ["train", "test"])
    with pytest.raises(ValueError, match="'val'"):
        find_pairs(tmp_path, "val")


@pytest.mark.parametrize(
    "paths", [["input/1.png", "target/1.png"], ["train/a/blur_gamma/1.png", "train/a/sharp/1.png"], ["notes.txt"], []]
)
def test_unknown_layout_lists_what_was_looked_for_and_found(tmp_path: Path, paths: list[str]) -> None:
    touch(tmp_path, *(path for path in paths if path.endswith("png")))
    for path in paths:
        if path.endswith("txt"):
            (tmp_path / path).write_text("hello")
    with pytest.raises(LayoutError) as error:
        find_pairs(tmp_path)
    message = str(error.value)
    assert "<scene>/{blur,sharp}" in message and "test-close-ups" in message and "two folders" in message
    for part in (part for path in paths for part in path.split("/")):
        assert part in message
    assert paths or "nothing" in message


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="gone: no such folder"):
        find_pairs(tmp_path / "gone")


def test_archive_unpacked_into_a_folder_of_its_own(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "GOPRO_Large/train/s/blur/1.png",
        "GOPRO_Large/train/s/sharp/1.png",
        "GOPRO_Large/test/s/blur/2.png",
        "GOPRO_Large/test/s/sharp/2.png",
    )
    assert [pair.name for pair in find_pairs(tmp_path, "test")] == ["s/2"]


def test_links_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/blur/1.png", "elsewhere/sharp/1.png")
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "test")
    assert [pair.name for pair in find_pairs(tmp_path / "set", "test")] == ["1"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="pathlib of Python 3.10 keeps os.stat of its own")
def test_files_are_listed_and_not_looked_at_one_by_one(tmp_path: Path, monkeypatch) -> None:
    """On a network drive each of these calls takes milliseconds, and a data set has thousands of files."""
    calls = Counter()

    def count_calls(files: int) -> Counter:
        for scene, kind, number in itertools.product("abc", ("blur", "sharp"), range(files)):
            touch(tmp_path / f"{files} files", f"train/{scene}/{kind}/{number:06d}.png")
        calls.clear()
        pairs = find_pairs(tmp_path / f"{files} files", "train")
        assert len({pair.name for pair in pairs}) == 3 * files and pairs == sorted(pairs, key=lambda pair: pair.name)
        return calls.copy()

    for name in ("scandir", "listdir", "stat", "lstat"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *given, name=name, real=real, **how: calls.update([name]) or real(*given, **how)
        )
    assert count_calls(10) == count_calls(50)


@pytest.mark.timeout(20)
def test_links_that_lead_back_and_fifos_bring_nothing_twice_and_hang_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/2.png")
    for link in ("a/up", "b/up"):
        (tmp_path / link).symlink_to(tmp_path)
    os.mkfifo(tmp_path / "a" / "3.png")
    assert [pair.name for pair in find_pairs(tmp_path)] == ["a/1", "b/2"]


def test_names_are_unique_where_files_differ_in_their_suffix_alone(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "a.jpg.png", "b.png")
    names = [pair.name for pair in find_pairs(tmp_path)]
    assert len(set(names)) == 4 and "b" in names


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.png", "b/2.png")
    forbid_reading(monkeypatch, "b")
    with pytest.raises(PermissionError) as caught:
        find_pairs([tmp_path, tmp_path])
    assert caught.value.filename == str(tmp_path / "b")


def test_a_list_that_is_no_text_is_named(tmp_path: Path) -> None:
    realblur(tmp_path, "J")
    path = next(tmp_path.glob("*_test_list.txt"))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LayoutError, match=path.name):
        find_pairs(tmp_path, "test")


def test_a_name_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "blur/a.png", "sharp/a.png")
    try:
        os.close(os.open(os.fsencode(tmp_path) + b"/blur/na\xefve.png", os.O_CREAT))
    except OSError:
        pytest.skip("the file system takes no such names")
    with pytest.raises(LayoutError, match=r"na\\xefve.png' is not UTF-8; rename it"):
        find_pairs(tmp_path)


def test_a_link_that_leads_nowhere_is_not_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "blur/a.png", "sharp/a.png")
    for kind in ("blur", "sharp"):
        (tmp_path / kind / "b.png").symlink_to(tmp_path / "unmounted" / f"{kind}.png")
    pairs = find_pairs(tmp_path)
    assert [pair.name for pair in pairs] == ["a", "b"]
    with pytest.raises(ImageError, match="b.png"):
        check_headers(pairs)


def test_a_test_split_is_not_trained_on(tmp_path: Path) -> None:
    touch(tmp_path, "set/test/blur/1.png", "set/test/sharp/1.png")
    assert len(find_pairs(tmp_path / "set/test", "test")) == 1
    with pytest.raises(LayoutError, match="must not be trained on"):
        find_pairs(tmp_path / "set/test", "train")
    touch(tmp_path, "test/train/blur/1.png", "test/train/sharp/1.png")  # only called so
    assert len(find_pairs(tmp_path / "test", "train")) == 1


def test_a_split_of_blurred_images_is_its_own(tmp_path: Path) -> None:
    touch(tmp_path, "set/train/1.png", "set/test/2.png")
    assert [pair.name for pair in find_pairs(tmp_path / "set", "test")] == ["2"]


def test_a_scene_whose_folders_have_other_names_is_not_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "set/a/blur/1.png", "set/a/sharp/1.png", "set/b/Blurry/1.png", "set/b/Clear/1.png")
    with pytest.raises(LayoutError, match="set/b: has images"):
        find_pairs(tmp_path / "set")


def test_listed_names_do_not_lead_out_of_the_results(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    lines = "../gt/1.png ../blur/1.png", f"{tmp_path}/gt/2.png {tmp_path}/blur/2.png"
    touch(tmp_path, *(f"{kind}/{number}.png" for kind in ("gt", "blur") for number in (1, 2)))
    (tmp_path / "lists/RealBlur_J_test_list.txt").write_text("\n".join(lines))
    assert [pair.name for pair in find_pairs(tmp_path / "lists")] == ["1", f"{str(tmp_path)[1:]}/2"]
