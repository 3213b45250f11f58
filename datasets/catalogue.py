"""Every known data set, once: where it lies, how many pairs it has, how it is predicted and scored.

A new test set is one entry of DATA_SETS. It is then a choice of `evaluate.py --dataset` and of
`predict_test_results.py --dataset`; `python -m datasets.check` and `python -m engine.doctor` count its images, and
`python -m analysis.tables` makes its table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FULL = ("psnr", "ssim_matlab_rgb", "ssim_per_channel", "niqe", "lpips", "fid", "kid")
REALBLUR = ("aligned", "stlpips", "niqe")
NOT_ALIGNED = (
    "These scores compare the images as they are. RealBlur's own protocol aligns them first, and its figures are "
    "not interchangeable with these."
)


@dataclass(frozen=True)
class DataSet:
    """A data set of blurred images, most often with their sharp ones.

    Attributes:
        key: its name on command lines, in scores.json and in metrics/paper_numbers.yaml; None outside the catalogue.
        name: as the paper writes it, without the variant.
        folder: where it lies by default, relative to the repository.
        pairs: split -> number of pairs, None where the number is not known.
        images: folder of its restored images in results/JOB_NAME.
        weights: which of a job's stage-2 weights restore it: best or final.
        metrics: what evaluate.py measures by default, as flags of metrics/catalogue.py.
        table: number of the paper's table; None for a data set that the paper does not report.
        variant: "J" or "R", for RealBlur.
        has_sharp: whether it has sharp images.
        photographed: whether the blur was photographed; otherwise it is an average of video frames.
        has_gamma: whether it also comes as `blur_gamma`, which is not the standard.
        test_scenes: names of the test split's scenes in paths of images, none of which may be trained on.
        path_words: lower-case text by which paths of its images are recognised; by default its folder's name.
        note: printed under the scores of its predictions.
    """

    key: str | None
    name: str
    folder: str
    pairs: Mapping[str, int | None]
    images: str
    weights: str = "best"
    metrics: tuple[str, ...] = FULL
    table: int | None = None
    variant: str | None = None
    has_sharp: bool = True
    photographed: bool = False
    has_gamma: bool = False
    test_scenes: tuple[str, ...] = ()
    path_words: tuple[str, ...] = ()
    note: str = ""

    @property
    def title(self) -> str:
        """The name with the variant: RealBlur-J."""
        return f"{self.name}-{self.variant}" if self.variant else self.name

    @property
    def count(self) -> int | None:
        """Number of test images, None where it is not known."""
        return self.pairs.get("test")

    def match(self, path: str) -> int:
        """Length of the longest of its words in a path, in lower case and with slashes; 0 for another data set's."""
        words = self.path_words or (f"/{Path(self.folder).name.lower()}/",)
        return max((len(word) for word in words if word in path), default=0)


OWN = DataSet(None, "Images", "", {}, "images")  # the user's own
# fmt: off
DATA_SETS: dict[str, DataSet] = {data_set.key: data_set for data_set in (  # type: ignore[misc]  # all have keys
    DataSet("gopro", "GoPro", "datasets/GoPro", {"train": 2103, "test": 1111}, "images", table=1, has_gamma=True,
            test_scenes=("GOPR0384_11_00", "GOPR0384_11_05", "GOPR0385_11_01", "GOPR0396_11_00", "GOPR0410_11_00",
                         "GOPR0854_11_00", "GOPR0862_11_00", "GOPR0868_11_00", "GOPR0869_11_00", "GOPR0871_11_00",
                         "GOPR0881_11_01"),
            path_words=("gopr",)),
    DataSet("hide", "HIDE", "datasets/HIDE", {"test": 2025}, "images_hide", table=2,
            path_words=("/hide", "fromgopr", "/test-close-ups/", "/test-long-shot/")),  # a file: 1fromGOPR0950.png
    DataSet("rwbi", "RWBI", "datasets/RWBI", {"test": None}, "images_rwbi", table=3, metrics=("niqe",),
            has_sharp=False, photographed=True),
    DataSet("realblur_j", "RealBlur", "datasets/RealBlur_J", {"train": 3758, "test": 980}, "images_realj", "final",
            REALBLUR, table=4, variant="J", photographed=True, path_words=("realblur",), note=NOT_ALIGNED),
    DataSet("realblur_r", "RealBlur", "datasets/RealBlur_R", {"train": 3758, "test": 980}, "images_realr", "final",
            REALBLUR, table=4, variant="R", photographed=True, path_words=("realblur",), note=NOT_ALIGNED),
)}
# fmt: on


def data_set(key: str | None) -> DataSet:
    """The entry of a key; None stands for the user's own images."""
    return OWN if key is None else DATA_SETS[key]
