"""Frames one after another: those of the reader, from a file, a pipe or what is like a camera."""

import io
import logging

import av
import numpy as np
import pytest

from vmp.data import DecodeError, VideoReader
from vmp.data.stream import Scaler, open_camera, open_file, open_pipe

FRAMES = 24
CODECS = {"mp4": ("mp4", "libx264"), "avi": ("avi", "mpeg4"), "ts": ("mpegts", "libx264")}
CODECS["mkv"] = ("matroska", "libx264")


def make_video(path, kind="mp4", *, options=None, times=range(FRAMES), sound=""):
    """Write a video in which every frame is another one, 25 a second but where `times` has gaps.

    `sound`: a codec, for 0.8 seconds of a tone of 440 Hz.
    """
    container_format, codec = CODECS[kind]
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", format=container_format, options=options or {}) as container:
        stream = container.add_stream(codec, rate=25, options={"bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        beside = container.add_stream(sound, rate=48000) if sound else None
        for number, time in enumerate(times):
            picture = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            picture[:, : 2 * number] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
            if beside is not None and number < 20:
                container.mux(beside.encode(tone(1920 * number, sound)))
        container.mux(stream.encode())
        if beside is not None:
            container.mux(beside.encode())
    return path


def tone(start, codec):
    """Return 1920 samples for both ears."""
    wave = 0.3 * np.sin(np.arange(start, start + 1920) * 2 * np.pi * 440 / 48000)
    if codec == "aac":
        samples, kind = np.stack([wave, wave]).astype(np.float32), "fltp"
    else:
        samples, kind = (32767 * wave).astype(np.int16).repeat(2)[None], "s16"
    piece = av.AudioFrame.from_ndarray(samples, format=kind, layout="stereo")
    piece.sample_rate, piece.pts = 48000, start
    return piece


class Pipe(io.RawIOBase):
    """Bytes that can't be gone back in."""

    def __init__(self, data):
        self._data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._data.readinto(buffer)


def frames_of(stream, short_side=None):
    scale = Scaler(stream.name, short_side)
    with stream:
        return [(shown.number, shown.seconds, scale(shown.frame)) for shown in stream.frames()]


@pytest.mark.parametrize("short_side", [None, 20])
@pytest.mark.parametrize("kind", sorted(CODECS))
def test_frames_of_a_file_are_those_of_the_reader(kind, short_side, tmp_path):
    path = str(make_video(tmp_path / "video", kind))
    found = frames_of(open_file(path), short_side)
    with VideoReader(path) as reader:
        wanted = reader.read(range(len(reader)), short_side)
        assert open_file(path).fps == reader.fps
    assert [number for number, _, _ in found] == list(range(FRAMES))
    assert [seconds for _, seconds, _ in found] == pytest.approx(np.arange(FRAMES) / 25, abs=1e-3)
    assert np.array_equal(np.stack([frame for _, _, frame in found]), wanted)


@pytest.mark.parametrize(
    ("kind", "options"), [("mkv", {}), ("ts", {}), ("mp4", {"movflags": "+faststart"})]
)
def test_a_pipe_gives_what_the_file_gives(kind, options, tmp_path):
    path = make_video(tmp_path / "video", kind, options=options)
    piped, read = (
        frames_of(open_pipe(Pipe(path.read_bytes()), "pipe")),
        frames_of(open_file(str(path))),
    )
    assert [each[0] for each in piped] == [each[0] for each in read]
    assert [each[1] for each in piped] == pytest.approx([each[1] for each in read], abs=1e-3)
    assert all(np.array_equal(one[2], other[2]) for one, other in zip(piped, read, strict=True))


@pytest.mark.parametrize("data", [b"", b"no video at all" * 100])
def test_a_pipe_without_a_video_is_refused(data):
    with pytest.raises(DecodeError, match="^pipe: "):
        open_pipe(Pipe(data), "pipe")


def test_a_stream_that_breaks_off_ends_there(tmp_path):
    data = make_video(tmp_path / "video", "mkv").read_bytes()
    found = frames_of(open_pipe(Pipe(data[: len(data) * 2 // 3]), "pipe"))
    assert 4 < len(found) < FRAMES


def test_an_error_in_a_stream_is_its_end_and_said(tmp_path, caplog):
    class Broken(Pipe):
        def readinto(self, buffer):
            if not (count := super().readinto(buffer)):
                raise OSError(5, "Input/output error")
            return count

    data = make_video(tmp_path / "video", "ts").read_bytes()
    with caplog.at_level(logging.WARNING):
        found = frames_of(open_pipe(Broken(data), "pipe"))
    assert 4 < len(found) <= FRAMES
    assert f"pipe: breaks off after {len(found)} frames: Input/output error" in caplog.text


def test_sound_comes_after_the_first_frame_and_counts_from_it(tmp_path):
    path = make_video(tmp_path / "video", "ts", sound="aac")  # begins at 1.4 s
    times, order = [], []
    with open_file(str(path)) as stream:
        for _ in stream.frames(lambda packet: (times.append(packet.pts), order.append("sound"))):
            order.append("frame")
    seconds = [time / 90000 for time in times if time is not None]
    assert order[0] == "frame"
    assert order.count("frame") == FRAMES
    assert min(seconds) == pytest.approx(0, abs=0.05)
    assert max(seconds) == pytest.approx(0.8, abs=0.05)


def test_what_a_camera_drops_leaves_a_gap_in_its_numbers(tmp_path):
    times = [0, 1, 2, 6, 7]
    path = make_video(tmp_path / "video", "mkv", times=times)
    stream = open_file(str(path))
    stream.live, stream.fps = True, 25.0
    assert [number for number, _, _ in frames_of(stream)] == times


def test_a_device_of_ffmpeg_is_read_as_a_camera():
    with open_camera("testsrc=size=64x48:rate=10", "lavfi") as stream:
        assert stream.live
        assert stream.fps == 10
        scale = Scaler(stream.name, 24)
        for number, shown in zip(range(5), stream.frames(), strict=False):
            assert shown.number == number
            assert shown.seconds == pytest.approx(number / 10)
            assert scale(shown.frame).shape == (24, 32, 3)


def test_a_camera_that_is_not_there_is_refused_in_a_line():
    with pytest.raises(DecodeError, match="^/dev/video99: No such file"):
        open_camera("/dev/video99")


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_a_stored_rotation_is_applied_as_by_the_reader(turn, tmp_path):
    path = str(tmp_path / "turned.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(turn)
        picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    ((_, _, found),) = frames_of(open_file(path), 32)
    with VideoReader(path) as reader:
        assert np.array_equal(found, reader.read([0], 32)[0])
    assert found.shape == ((42, 32, 3) if turn % 180 else (32, 42, 3))
