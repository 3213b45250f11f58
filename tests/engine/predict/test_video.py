"""Videos: frames, times, sound, rotation and colours go through; what is damaged gets a line and leaves nothing."""

import errno
import struct

import numpy as np
import pytest

from engine.predict.video import Statistics, VideoError, restore_video, target_suffix

try:
    import av
except ImportError:
    av = None
pytestmark = pytest.mark.skipif(av is None, reason="PyAV is not installed")


def unchanged(image):
    return image, 0.01


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth ramp that moves, with a red top left corner."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 3 + number, y * 4, (x + y) * 2], axis=2).astype(np.uint8)
    image[:16, :16] = 220, 20, 20
    return image


def make_video(path, frames: int = 12, size: tuple[int, int] = (48, 64), times=None, sound: bool = True) -> None:
    with av.open(str(path), "w") as writer:
        writer.metadata["title"] = "a title"
        video = writer.add_stream("libx264", rate=25, options={"crf": "5"})
        video.height, video.width = size
        video.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        audio = writer.add_stream("aac", rate=16000, layout="mono") if sound else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            if times:
                frame.pts = times[number]
            writer.mux(video.encode(frame))
        writer.mux(video.encode())
        if audio:
            wave = (np.sin(np.arange(16000 * frames // 25) / 20) * 8000).astype(np.int16)[None]
            heard = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            heard.sample_rate = 16000
            writer.mux(audio.encode(heard))
            writer.mux(audio.encode())


def read_video(path):
    """(frames RGB, times in seconds, seconds of sound, metadata)."""
    with av.open(str(path)) as reader:
        decoded = list(reader.decode(video=0))
        frames = [frame.to_ndarray(format="rgb24") for frame in decoded]
        times, metadata = [frame.time for frame in decoded], dict(reader.metadata)
    with av.open(str(path)) as reader:
        heard = sum(f.samples / f.sample_rate for f in reader.decode(audio=0)) if reader.streams.audio else 0
    return frames, times, heard, metadata


def test_frames_times_sound_and_title_go_through(tmp_path):
    source, target = tmp_path / "clip.mp4", tmp_path / "out" / "clip.mp4"
    make_video(source)
    result = restore_video(lambda image: (255 - image, 0.5), source, target, made_by={"weights": "abc"})
    before, after = read_video(source), read_video(target)
    assert len(after[0]) == 12 and len(result.seconds) == 12
    assert after[1] == pytest.approx(before[1], abs=1e-3)
    assert after[2] == pytest.approx(before[2], abs=0.1)
    assert after[3]["title"] == "a title" and "abc" in after[3]["comment"]
    for a, b in zip(before[0], after[0], strict=True):
        assert np.abs(255 - a.astype(int) - b).mean() < 3
    assert [path.name for path in target.parent.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize("size", [(47, 64), (48, 63), (33, 35)])
def test_odd_sizes(tmp_path, size):
    make_video(tmp_path / "odd.mkv", 3, size)
    restore_video(unchanged, tmp_path / "odd.mkv", tmp_path / "out.mkv")
    assert [frame.shape for frame in read_video(tmp_path / "out.mkv")[0]] == [(*size, 3)] * 3


def test_variable_frame_rate(tmp_path):
    make_video(tmp_path / "vfr.mkv", 5, times=[0, 1, 5, 6, 20])
    restore_video(unchanged, tmp_path / "vfr.mkv", tmp_path / "out.mkv")
    assert read_video(tmp_path / "out.mkv")[1] == pytest.approx(read_video(tmp_path / "vfr.mkv")[1], abs=2e-3)


def test_some_frames_with_their_sound(tmp_path):
    make_video(tmp_path / "clip.mp4", 50)
    restore_video(unchanged, tmp_path / "clip.mp4", tmp_path / "o.mp4", slice(25, 40))
    frames, times, heard, _ = read_video(tmp_path / "o.mp4")
    assert (
        len(frames) == 15 and times[0] == pytest.approx(0, abs=1e-3) and times[-1] == pytest.approx(14 / 25, abs=1e-3)
    )
    assert heard == pytest.approx(15 / 25, abs=0.2)
    with pytest.raises(VideoError, match="has no frames 60"):
        restore_video(unchanged, tmp_path / "clip.mp4", tmp_path / "none.mp4", slice(60, 70))
    assert not (tmp_path / "none.mp4").exists()


def test_a_rotation_flag_turns_the_frames_themselves(tmp_path):
    """The matrix of a camera held upright: what is stored top left is seen top right."""
    source = tmp_path / "turned.mp4"
    make_video(source, 3, sound=False)
    data = bytearray(source.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 4 + 20 + 16
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    source.write_bytes(data)
    restore_video(unchanged, source, tmp_path / "upright.mp4")
    frame = read_video(tmp_path / "upright.mp4")[0][0].astype(int)
    assert frame.shape == (64, 48, 3)
    assert frame[4, -4, 0] > 150 > frame[4, -4, 1] and frame[4, 4, 0] < 150


def test_a_video_cut_short_gets_a_line_and_leaves_nothing(tmp_path):
    for name, content in (("no.mp4", b"no video at all"), ("empty.mp4", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoError, match=f"{name}: cannot be read as a video"):
            restore_video(unchanged, tmp_path / name, tmp_path / "out" / name)
    make_video(tmp_path / "clip.mp4", 40)
    data = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])  # its index, at the end, is gone
    with pytest.raises(VideoError, match="cut.mp4: cannot be read as a video"):
        restore_video(unchanged, tmp_path / "cut.mp4", tmp_path / "out" / "cut.mp4")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_container_without_an_index_is_restored_to_its_end_and_says_so(tmp_path):
    make_video(tmp_path / "clip.mkv", 100)
    data = (tmp_path / "clip.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 3])
    whole = restore_video(unchanged, tmp_path / "clip.mkv", tmp_path / "whole.mkv")
    short = restore_video(unchanged, tmp_path / "cut.mkv", tmp_path / "short.mkv")
    assert whole.missing < 1 < short.missing and "cut short" in str(short) and len(short.seconds) < 100


def test_a_full_disk_is_not_the_videos_fault(tmp_path):
    make_video(tmp_path / "clip.mp4")

    def full(image):
        raise av.error.FFmpegError(errno.ENOSPC, "No space left on device")

    with pytest.raises(VideoError, match="out.mp4: No space left on device"):
        restore_video(full, tmp_path / "clip.mp4", tmp_path / "out.mp4")


def test_an_error_half_way_leaves_what_was_there(tmp_path):
    make_video(tmp_path / "clip.mp4")
    (tmp_path / "out.mp4").write_bytes(b"before")
    count = iter(range(100))

    def fail(image):
        if next(count) == 5:
            raise KeyboardInterrupt
        return image, 0.1

    with pytest.raises(KeyboardInterrupt):
        restore_video(fail, tmp_path / "clip.mp4", tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 2


def test_flicker_is_the_residuals_change():
    found = Statistics()
    still = np.full((4, 4, 3), 100, np.uint8)
    for offset in (0, 3, 1):
        found.add(still, still + np.uint8(offset), 0.5)
    assert found.flicker == [3, 2] and found.motion == [0, 0]
    assert "3 frames, 0.50 s each" in str(found)


@pytest.mark.parametrize("name, suffix", [("a.MP4", ".mp4"), ("b.webm", ".mp4"), ("c.mkv", ".mkv")])
def test_containers(tmp_path, name, suffix):
    assert target_suffix(tmp_path / name) == suffix
