"""The shipped photographs: readable, small, and each with author, licence and source in the list."""

from pathlib import Path

import pytest

from datasets.images import read_rgb
from datasets.synthesize import synthesize_photos


@pytest.mark.parametrize("name", ["samples", "samples_blurred"])
def test_every_sample_is_listed_with_a_free_licence(repository: Path, name: str) -> None:
    folder = repository / "datasets" / name
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (folder / "README.md").read_text().splitlines()
        if line.startswith("| ")
    ][1:]
    assert {row[0] for row in rows} == {path.name for path in folder.glob("*.*")} - {"README.md"}
    for name, subject, author, licence, source in rows:
        assert subject and author and source, name
        assert licence in ("CC0", "CC BY 2.0", "CC BY 4.0", "public domain", "Apache 2.0"), name


def test_samples_are_small_colour_photographs(repository: Path) -> None:
    photos = sorted((repository / "datasets" / "samples").glob("*.jpg"))
    assert 8 <= len(photos) <= 20 and sum(path.stat().st_size for path in photos) < 4_000_000
    for path in photos:
        image = read_rgb(path)
        assert min(image.shape[:2]) >= 256 and max(image.shape[:2]) <= 800
        assert image.astype(int).std(axis=2).mean() > 2


def test_samples_make_pairs(repository: Path, tmp_path: Path) -> None:
    counts = synthesize_photos(
        repository / "datasets" / "samples",
        tmp_path / "out",
        pairs_per_photo=1,
        size=64,
        test_photos=["astronaut", "bridge", "citrus", "pagoda"],
    )
    assert counts == {"train": 10, "test": 4}
