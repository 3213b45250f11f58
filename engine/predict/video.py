"""Videos: every frame restored by itself, sound and metadata kept, written as H.264. Needs PyAV (extra ``video``)."""

from __future__ import annotations

import errno
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets.files import atomic
from datasets.images import VIDEO_SUFFIXES

KEPT_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv")  # containers that hold H.264; others become .mp4
QUALITY = "16"  # x264's constant rate factor: visually close to lossless
MAKER = "comment"  # the metadata field for what made the video


class VideoError(RuntimeError):
    """A video that cannot be read or written; the message names it and says what to do."""


@dataclass
class Statistics:
    """Seconds that each frame took, and how much consecutive frames change, in 8-bit levels.

    Flicker is the mean change of the residual (restored minus input) from frame to frame: what the network adds to the
    input's own change.
    """

    seconds: list[float] = field(default_factory=list)
    flicker: list[float] = field(default_factory=list)
    motion: list[float] = field(default_factory=list)
    missing: float = 0.0  # seconds between the last frame and the length that the file states
    _before: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, image: np.ndarray, restored: np.ndarray, seconds: float) -> None:
        """One frame, uint8 (H, W, 3), before and after."""
        image = image.astype(np.int16)
        residual = restored.astype(np.int16) - image
        if self._before:
            self.motion.append(float(np.abs(image - self._before[0]).mean()))
            self.flicker.append(float(np.abs(residual - self._before[1]).mean()))
        self.seconds.append(seconds)
        self._before = image, residual

    def __str__(self) -> str:
        text = f"{len(self.seconds)} frames, {statistics.fmean(self.seconds):.2f} s each"
        if self.flicker:
            flicker, motion = statistics.fmean(self.flicker), statistics.fmean(self.motion)
            text += f"; from frame to frame the residual changes by {flicker:.2f} levels, the input by {motion:.2f}"
        if self.missing > 1:
            text += f"; the file ends {self.missing:.1f} s before the length that it states: it may be cut short"
        return text


def is_video(path: Path) -> bool:
    return path.name.lower().endswith(VIDEO_SUFFIXES)


def target_suffix(source: Path) -> str:
    """Of the restored video."""
    return source.suffix.lower() if source.suffix.lower() in KEPT_SUFFIXES else ".mp4"


def restore_video(
    restore: Callable[[np.ndarray], tuple[np.ndarray, float]],
    source: Path,
    target: Path,
    frames: slice = slice(None),
    made_by: dict[str, object] | None = None,
) -> Statistics:
    """Restore the frames ``frames`` of a video, one after another; ``target`` appears when it is whole.

    Args:
        restore: uint8 RGB (H, W, 3) -> (the restored image, seconds).
        frames: numbers of the first frame and of the one after the last, from 0. Sound is cut to the same time.
        made_by: written into the metadata, as JSON.

    Raises:
        VideoError: PyAV is missing, the file is no video or damaged, or it has no such frames.
    """
    av = import_av()
    statistics_ = Statistics()
    try:
        with av.open(str(source)) as reader, atomic(target) as temporary:
            if not reader.streams.video:
                raise VideoError(f"{source}: contains no video stream")
            container = {".m4v": "mp4", ".mkv": "matroska"}.get(target.suffix, target.suffix[1:])
            with av.open(str(temporary), "w", format=container) as writer:
                writer.metadata.update(reader.metadata)
                if made_by:
                    writer.metadata[MAKER] = json.dumps(made_by)
                _Copy(reader, writer, restore, frames, statistics_).run(source)
            if not statistics_.seconds:
                raise VideoError(f"{source}: has no frames {frames.start or 0} to {frames.stop}; see --frames")
    except av.error.FFmpegError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise VideoError(f"{target}: {error.strerror}") from error
        done = len(statistics_.seconds)
        ways = f"; --frames {frames.start or 0}:{(frames.start or 0) + done} restores what comes before" if done else ""
        raise VideoError(f"{source}: cannot be read as a video, or is damaged ({error.strerror}){ways}") from error
    return statistics_


def read_maker(path: Path) -> dict[str, object] | None:
    """What made a video, as `restore_video` wrote it; None where it is not one of its results.

    Raises:
        VideoError: PyAV is missing.
    """
    av = import_av()
    try:
        with av.open(str(path)) as reader:
            metadata = {name.lower(): text for name, text in reader.metadata.items()}  # Matroska's are upper case
        return dict(json.loads(metadata.get(MAKER, "")))
    except (av.error.FFmpegError, ValueError, TypeError):
        return None


def import_av():
    """The module PyAV. Raises VideoError where it is missing."""
    try:
        import av
        import av.error
    except ImportError as error:
        raise VideoError(f"videos need PyAV ({error}): pip install -e .[video]") from error
    return av


class _Copy:
    """One video into another, from packet to packet."""

    def __init__(self, reader, writer, restore, frames: slice, statistics: Statistics):
        self.reader, self.writer, self.restore, self.statistics = reader, writer, restore, statistics
        self.first, self.stop = frames.start or 0, frames.stop
        self.video = reader.streams.video[0]
        self.video.thread_type = "AUTO"
        self.rate = self.video.average_rate or self.video.guessed_rate or Fraction(24)  # unknown for a single frame
        # Made with the first frame: the header goes out with the first packet and needs its size and colours.
        self.encoder: Any = None
        self.sound: dict = {}
        self.begin = Fraction(0)  # time of that frame in seconds
        self.waiting: list = []  # sound that came before it
        self.last = 0.0  # time of the last frame in seconds

    def run(self, source: Path) -> None:
        count = self.video.frames or int((self.video.duration or 0) * self.video.time_base * self.rate)
        count = min(self.stop, count) if self.stop and count else self.stop or count
        bar = tqdm(total=max(count - self.first, 0) or None, desc=source.name, unit="frame", leave=False, disable=None)
        with bar:
            for image, frame in self._frames():
                restored, seconds = self.restore(image)
                self.statistics.add(image, restored, seconds)
                self._write(restored, frame)
                bar.update()
        if self.encoder:
            self.writer.mux(self.encoder.encode())
        if self.stop is None and self.reader.duration:
            self.statistics.missing = self.reader.duration / 1e6 - self.last

    def _frames(self) -> Iterator[tuple[np.ndarray, object]]:
        """Each frame that is asked for, upright, and what it was decoded from; copies the sound on the way."""
        number = 0
        for packet in self.reader.demux(self.video, *self.reader.streams.audio):
            if packet.stream is not self.video:
                self._copy_sound(packet)
                continue
            for frame in packet.decode():
                if number >= self.first:
                    image = frame.reformat(format="rgb24", src_colorspace=frame.colorspace).to_ndarray()
                    image = np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
                    if self.encoder is None:
                        self._begin(image, frame)
                    self.last = frame.time or 0.0
                    yield image, frame
                number += 1
                if self.stop is not None and number >= self.stop:
                    return

    def _begin(self, image: np.ndarray, frame) -> None:
        if self.first:
            self.begin = Fraction(frame.pts or 0) * frame.time_base
        self.encoder = self._make_encoder(image, frame)
        self.sound = {stream: self.writer.add_stream_from_template(stream) for stream in self.reader.streams.audio}
        for packet in self.waiting:
            self._copy_sound(packet)

    def _copy_sound(self, packet) -> None:
        """A packet of sound, its time counted from the first frame; what was heard before that is left out."""
        if packet.pts is None:  # the end of the stream
            return
        if self.encoder is None:
            self.waiting.append(packet)
            return
        stream = packet.stream
        shift = round(self.begin / stream.time_base)
        if packet.pts >= shift:
            packet.pts, packet.dts = packet.pts - shift, None if packet.dts is None else packet.dts - shift
            packet.stream = self.sound[stream]
            self.writer.mux(packet)

    def _write(self, image: np.ndarray, frame) -> None:
        import av

        made = av.VideoFrame.from_ndarray(image, format="rgb24")
        made = made.reformat(format=self.encoder.pix_fmt, dst_colorspace=frame.colorspace)
        # Where frames carry no times, they are as far apart as the rate says.
        made.time_base = self.encoder.codec_context.time_base
        if frame.pts is None:
            made.pts = round((len(self.statistics.seconds) - 1) / self.rate / made.time_base)
        else:
            made.pts = frame.pts - round(self.begin / frame.time_base)
        self.writer.mux(self.encoder.encode(made))

    def _make_encoder(self, image: np.ndarray, frame):
        encoder = self.writer.add_stream("libx264", rate=self.rate, options={"crf": QUALITY})
        encoder.height, encoder.width = image.shape[:2]
        # Odd sides have no half as many colour samples.
        encoder.pix_fmt = "yuv444p" if image.shape[0] % 2 or image.shape[1] % 2 else "yuv420p"
        context = encoder.codec_context
        context.time_base = self.video.time_base
        for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
            setattr(context, name, getattr(frame, name))
        return encoder
