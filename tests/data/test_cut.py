"""Clips cut from a long video: exactly the frames wanted, whole or not there."""

from fractions import Fraction

import av
import numpy as np
import pytest

from tests.data.conftest import number_in, write_video
from vmp.data import VideoReader
from vmp.data import cut as module
from vmp.data.archive import DecodeError
from vmp.data.cut import Clip, cut, cut_all


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """60 frames at 29.4 a second in an AVI, MPEG-4 with B-frames and a long GOP."""
    path = tmp_path_factory.mktemp("long") / "long video.avi"
    options = {"g": "25", "bf": "2", "qscale": "2"}
    return write_video(path, 60, codec="mpeg4", rate=Fraction(147, 5), options=options)


def numbers_of(path):
    with VideoReader(path) as reader:
        return [number_in(frame) for frame in reader.read(range(len(reader)))]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 30), (7, 8), (13, 41), (59, 60), (24, 26)])
def test_a_clip_has_exactly_the_frames_from_start_to_stop(source, tmp_path, start, stop):
    assert cut(str(source), start, stop, tmp_path / "clip.mp4") == stop - start
    assert numbers_of(tmp_path / "clip.mp4") == list(range(start, stop))


@pytest.mark.parametrize("stop", [None, 60, 1000])
def test_a_clip_ends_with_the_video(source, tmp_path, stop):
    assert cut(str(source), 50, stop, tmp_path / "clip.mp4") == 10
    assert numbers_of(tmp_path / "clip.mp4") == list(range(50, 60))


def test_a_clip_read_in_many_chunks_is_the_same(source, tmp_path, monkeypatch):
    cut(str(source), 5, 55, tmp_path / "one.mp4")
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    cut(str(source), 5, 55, tmp_path / "many.mp4")
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "many.mp4").read_bytes()


def test_no_more_than_a_chunk_is_held(source, tmp_path, monkeypatch):
    asked = []
    read = VideoReader.read

    def spy(self, indices, *args, **kwargs):
        asked.append(len(indices))
        return read(self, indices, *args, **kwargs)

    monkeypatch.setattr(VideoReader, "read", spy)
    monkeypatch.setattr(module, "CHUNK_BYTES", 8 * 48 * 64 * 3)
    cut(str(source), 0, 60, tmp_path / "clip.mp4")
    assert asked == [8] * 7 + [4]


@pytest.mark.parametrize("size", [(48, 65), (47, 64), (49, 67)])
def test_an_odd_size_stays_as_it_is(tmp_path, size):
    video = write_video(tmp_path / "odd.avi", 12, size=size, codec="mpeg4", options={"qscale": "1"})
    cut(str(video), 3, 9, tmp_path / "clip.mp4")
    with VideoReader(tmp_path / "clip.mp4") as reader:
        assert reader.size == size
    assert numbers_of(tmp_path / "clip.mp4") == list(range(3, 9))


@pytest.mark.parametrize("rate", [25, Fraction(30000, 1001), Fraction(147, 5), Fraction(15, 2)])
def test_the_clip_has_the_sources_constant_frame_rate(tmp_path, rate):
    video = write_video(tmp_path / "video.mp4", 20, rate=rate)
    cut(str(video), 2, 18, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        stamps = [frame.pts * stream.time_base * rate for frame in container.decode(stream)]
        assert stream.average_rate == rate
    assert stamps == list(range(16))


def test_sound_is_dropped_and_the_picture_is_that_of_the_source(tmp_path):
    video = tmp_path / "sound.mp4"
    smooth = np.linspace(0, 255, 64 * 48 * 3).reshape(48, 64, 3).astype(np.uint8)
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        sound = container.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 16000), np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 16000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(smooth, format="rgb24")))
        container.mux(stream.encode(None))
    cut(str(video), 0, None, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    before = VideoReader(video).read(range(10)).astype(int)
    after = VideoReader(tmp_path / "clip.mp4").read(range(10)).astype(int)
    assert np.abs(before - after).mean() < 3


def test_a_clip_that_is_done_is_not_made_again(source, tmp_path, monkeypatch):
    clip = tmp_path / "clip.mp4"
    cut(str(source), 10, 20, clip)
    made = clip.stat().st_mtime_ns, clip.read_bytes()
    monkeypatch.setattr(module, "_encode", None)  # would raise if it were called
    assert cut(str(source), 10, 20, clip) == 10
    assert (clip.stat().st_mtime_ns, clip.read_bytes()) == made


@pytest.mark.parametrize("found", ["other frames", "half a file", "empty", "another file"])
def test_what_is_not_that_clip_is_replaced(source, tmp_path, found):
    clip = tmp_path / "clip.mp4"
    cut(str(source), 11, 21, clip)
    whole = clip.read_bytes()
    if found == "half a file":
        clip.write_bytes(whole[: len(whole) // 2])
    elif found == "empty":
        clip.write_bytes(b"")
    elif found == "another file":
        write_video(clip, 10, first=500)
    assert cut(str(source), 10, 20, clip) == 10
    assert numbers_of(clip) == list(range(10, 20))


def test_an_error_leaves_what_was_there_and_nothing_else(source, tmp_path, monkeypatch):
    clip = tmp_path / "clip.mp4"
    cut(str(source), 0, 5, clip)
    before = clip.read_bytes()
    read = VideoReader.read

    def breaks(self, indices, *args, **kwargs):
        if indices[0] > 20:
            raise DecodeError(self.path, "breaks off")
        return read(self, indices, *args, **kwargs)

    monkeypatch.setattr(VideoReader, "read", breaks)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    for out in (clip, tmp_path / "new.mp4"):
        with pytest.raises(DecodeError, match="breaks off"):
            cut(str(source), 10, 30, out)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    assert clip.read_bytes() == before


def test_frames_past_the_end_are_an_error_that_says_how_many_there_are(source, tmp_path):
    with pytest.raises(DecodeError, match="no frame from 60 to 80, it has 60"):
        cut(str(source), 60, 80, tmp_path / "clip.mp4")
    with pytest.raises(DecodeError, match="no frame from 61 to the end"):
        cut(str(source), 61, None, tmp_path / "clip.mp4")
    with pytest.raises(DecodeError):
        cut(str(tmp_path / "absent.avi"), 0, 5, tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_names_that_a_shell_or_a_url_would_misread_are_just_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "-a:b #&;[%d]? take outV.mp4"
    write_video(tmp_path / "source.mp4", 10)
    (tmp_path / "source.mp4").rename(name)
    out = tmp_path / "clips" / f"-out:{name}"
    assert cut(name, 2, 6, out) == 4
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    with out.open("rb") as file, av.open(file) as container:
        assert container.streams.video[0].frames == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_many_clips_are_cut_in_parallel_and_what_fails_is_told(source, tmp_path, workers):
    wanted = [(0, 3), (3, 9), (70, 80), (58, None)]
    clips = [Clip(str(source), start, stop, tmp_path / f"{start}.mp4") for start, stop in wanted]
    clips.append(Clip(str(tmp_path / "absent.avi"), 0, 5, tmp_path / "absent.mp4"))
    results = dict(cut_all(clips, None, workers))
    assert [results[clip] for clip in clips[:2]] == [3, 6]
    assert results[clips[3]] == 2
    assert "it has 60" in results[clips[2]].reason
    assert isinstance(results[clips[4]], DecodeError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4", "3.mp4", "58.mp4"]
    assert numbers_of(tmp_path / "3.mp4") == list(range(3, 9))
