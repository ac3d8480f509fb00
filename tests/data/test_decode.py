import logging
import os
import pickle
import shutil
import time
from fractions import Fraction
from unittest.mock import Mock

import av
import numpy as np
import pytest

from tests.data.conftest import picture
from vmp.data import backends, frame_index
from vmp.data.archive import DecodeError, Source
from vmp.data.decode import VideoReader, scaled_size

CODECS = {
    "h264_mp4": ("x.mp4", "libx264", {"g": "6", "bf": "2", "crf": "10"}),
    "h264_open_gop_mkv": ("x.mkv", "libx264", {"x264-params": "keyint=6:open-gop=1:bframes=3"}),
    "mpeg4_avi": ("x.avi", "mpeg4", {"g": "6", "qmax": "3"}),
    "mpeg1_ps": ("x.mpg", "mpeg1video", {"g": "6", "bf": "2", "qmax": "3"}),
    "mpeg2_ts": ("x.ts", "mpeg2video", {"g": "6", "bf": "2", "qmax": "3"}),
}


def decode_all(path):
    """Decode a file from end to end, as plainly as PyAV allows."""
    frames = []
    with av.open(str(path), metadata_errors="ignore") as container:
        try:
            for frame in container.decode(video=0):
                picture = frame.to_ndarray(format="rgb24")
                frames.append(np.rot90(picture, round(frame.rotation / 90)))
        except av.FFmpegError:
            pass
    return frames


def check_every_frame(path, wanted):
    reference = decode_all(path)
    with VideoReader(path) as reader:
        assert len(reader) == len(reference)
        assert reader.size == reference[0].shape[:2]
        frames = reader.read(wanted(len(reader)))
    expected = np.stack([reference[number] for number in wanted(len(reference))])
    np.testing.assert_array_equal(frames, expected)


@pytest.mark.parametrize("case", CODECS)
def test_any_frame_in_any_order_is_the_one_of_a_sequential_decode(case, tmp_path, make_video):
    name, codec, options = CODECS[case]
    path = make_video(tmp_path / name, 31, codec=codec, options=options)
    rng = np.random.default_rng(0)
    check_every_frame(path, lambda total: list(range(total)))
    check_every_frame(path, lambda total: [total - 1, 0, 3, 3, total // 2])
    for _ in range(5):
        chosen = rng.integers(0, 31, 4).tolist()
        check_every_frame(path, lambda total, chosen=chosen: chosen)


@pytest.mark.data
def test_every_shared_file_agrees_with_a_sequential_decode(shared):
    files = sorted((shared / "data" / "codecs").iterdir())
    files += sorted((shared / "data" / "ut_interaction").rglob("*.avi"))[::40]
    assert len(files) == 15
    for path in files:
        check_every_frame(path, lambda total: [total - 1, total // 3, 0, total // 3])


@pytest.mark.data
def test_the_number_of_frames_is_what_decodes_not_what_the_header_says(shared):
    codecs = shared / "data" / "codecs"
    counts = {"hmdb51_ride.avi": 245, "corrupted.mp4": 28, "bbaf2n.mpg": 75, "no_duration.webm": 74}
    for name, count in counts.items():
        assert len(VideoReader(codecs / name)) == count
    assert VideoReader(codecs / "video_90.mov").size == (568, 320)  # stored as 320 x 568
    assert VideoReader(codecs / "fire2.mp4").fps == pytest.approx(10.505, abs=1e-3)


def test_frames_carry_their_own_number(tmp_path, make_video, read_number):
    path = make_video(tmp_path / "x.mp4", 40)
    with VideoReader(path) as reader:
        wanted = [39, 7, 7, 0, 22]
        assert [read_number(frame) for frame in reader.read(wanted)] == wanted
        assert [read_number(frame) for frame in reader.read(wanted, short_side=96)] == wanted
        assert reader.fps == 25


def test_a_far_frame_does_not_cost_a_decode_from_the_start(tmp_path, make_video, monkeypatch):
    reader = VideoReader(make_video(tmp_path / "x.mp4", 60))
    seen = []
    plain = backends.PyAV._at
    monkeypatch.setattr(backends.PyAV, "_at", lambda *a: seen.append(a[1]) or plain(*a))
    reader.read([5, 7, 50, 51, 59])  # key frames are 6 apart
    assert seen == [-1, 8]  # not 9: 54 is too near to 51


def test_what_is_not_wanted_and_not_needed_is_not_decoded(tmp_path, make_video, monkeypatch):
    options = {"g": "60", "bf": "3", "b-pyramid": "none", "crf": "10"}
    reader = VideoReader(make_video(tmp_path / "x.mp4", 60, options=options))
    decoded = []
    plain = backends.PyAV._frames
    monkeypatch.setattr(
        backends.PyAV,
        "_frames",
        lambda *a: (decoded.append(frame.pts) or frame for frame in plain(*a)),
    )
    reader.read([50])
    assert len(decoded) < 25  # of 51: a B-frame is decoded only where it is wanted


def test_runs_seek_only_where_it_saves_more_than_it_costs():
    keys = np.array([0, 12, 24, 36])
    runs = backends.plan_runs(keys, [0, 5, 10, 13, 30, 47])
    assert runs == [(-1, [0, 5, 10, 13]), (2, [30]), (3, [47])]
    assert backends.plan_runs(np.array([], dtype=int), [3, 90]) == [(-1, [3, 90])]
    assert backends.plan_runs(np.array([7]), [3]) == [(-1, [3])]


@pytest.mark.parametrize("what", ["checksums", "stamps"])
def test_a_seek_that_lands_elsewhere_is_noticed(what, tmp_path, make_video, read_number):
    path = make_video(tmp_path / "x.ts", 30, codec="mpeg2video", options={"g": "6", "bf": "0"})
    reader = VideoReader(path)
    index = reader._backend.index
    assert len(index.checksums) == len(index.keys) == 5
    wrong = {"checksums": index.checksums ^ 1, "stamps": index.keys + 1}[what]
    field = {"checksums": "checksums", "stamps": "keys"}[what]
    reader._backend.index = index._replace(**{field: wrong})
    assert read_number(reader.read([25])[0]) == 25


def test_an_index_is_kept_on_the_disk_and_made_anew_if_damaged(tmp_path, make_video, monkeypatch):
    path = make_video(tmp_path / "x.mp4", 30)
    monkeypatch.setattr(frame_index, "_STORED_FROM", 10)
    folder = tmp_path / "indexes"
    made = frame_index.find_index(path, folder)
    (stored,) = folder.iterdir()
    assert isinstance(made.stamps, np.memmap)

    def forget_and_find(path):
        frame_index._indexes.clear()
        return frame_index.find_index(path, folder)

    with monkeypatch.context() as patch:
        patch.setattr(frame_index, "make_index", None)  # not made again
        again = forget_and_find(path)
        moved = forget_and_find(shutil.copy(path, tmp_path / "moved.mp4"))
    for index in (again, moved):
        assert all(np.array_equal(a, b) for a, b in zip(index, made, strict=True))
    whole = stored.read_bytes()
    flipped = [bytearray(whole) for _ in range(200)]
    for place, damaged in enumerate(flipped):
        damaged[len(whole) * place // 200] ^= 1 << place % 8
    for damage in (whole[:-8], b"", b"no array", *map(bytes, flipped)):
        stored.write_bytes(damage)
        again = forget_and_find(path)
        assert all(np.array_equal(a, b) for a, b in zip(again, made, strict=True))
    assert frame_index._load(stored) is not None


def test_a_file_that_was_mended_is_scanned_again(tmp_path, make_video, monkeypatch):
    monkeypatch.setattr(frame_index, "_STORED_FROM", 10)
    options = {"g": "6", "crf": "1"}
    path = make_video(tmp_path / "x.mkv", 400, size=(240, 320), options=options)
    whole = path.read_bytes()
    hole = slice(len(whole) * 6 // 10, len(whole) * 7 // 10)
    path.write_bytes(whole[: hole.start] + bytes(hole.stop - hole.start) + whole[hole.stop :])
    folder = tmp_path / "indexes"
    assert dict(frame_index.scan_all([str(path)], folder, 1))[str(path)].num_frames < 400
    path.write_bytes(whole)
    frame_index._indexes.clear()
    assert frame_index.find_index(path, folder).num_frames == 400
    # where the parts that are compared do not tell, the time does: not for a copy, but for a scan
    stored = sorted(folder.iterdir())
    assert len(stored) == 2
    os.utime(path, ns=(1, 1))
    make = Mock(side_effect=frame_index.make_index)
    monkeypatch.setattr(frame_index, "make_index", make)
    for unchanged, made in ((False, 0), (True, 1)):
        frame_index._indexes.clear()
        frame_index.find_index(path, folder, unchanged=unchanged)
        assert make.call_count == made


def test_what_goes_wrong_with_a_file_is_a_decode_error_whatever_it_is(
    tmp_path, make_video, monkeypatch
):
    path = make_video(tmp_path / "x.mp4", 8)
    for error in (PermissionError(13, "Permission denied"), MemoryError()):
        monkeypatch.setattr(Source, "fingerprint", Mock(side_effect=error))
        with pytest.raises(DecodeError, match=r"Permission denied|no memory"):
            frame_index.find_index(path, tmp_path / "indexes")


def test_a_strip_is_not_scaled_to_gigabytes(tmp_path, make_video):
    path = make_video(tmp_path / "x.avi", 3, size=(16, 4096), codec="mpeg4", options={"g": "6"})
    reader = VideoReader(path)
    assert reader.read([1]).shape == (1, 16, 4096, 3)
    with pytest.raises(DecodeError, match="4096 x 16: one side is over 16 times the other"):
        reader.read([1], short_side=256)


@pytest.mark.parametrize(
    "text",
    ["ffconcat version 1.0\nfile x.mp4\n", "#EXTM3U\n#EXTINF:1,\nx.mp4\n#EXT-X-ENDLIST\n"],
)
def test_a_playlist_does_not_open_other_files(text, tmp_path, make_video):
    make_video(tmp_path / "x.mp4", 8)
    (tmp_path / "list.mp4").write_text(text)
    with pytest.raises(DecodeError, match=r"playlist|Invalid data"):
        VideoReader(tmp_path / "list.mp4")


@pytest.mark.parametrize(("named", "shown"), [(25, 50), (240, 24), (25, 25)])
def test_the_frame_rate_is_that_of_the_frames_not_of_the_header(named, shown, tmp_path):
    path = tmp_path / "x.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=named)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1200)
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = number * 1200 // shown, Fraction(1, 1200)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert VideoReader(path).fps == pytest.approx(shown, rel=0.01)


def test_a_folder_that_cannot_be_written_to_costs_a_scan_not_the_read(
    tmp_path, make_video, monkeypatch, caplog
):
    monkeypatch.setattr(frame_index, "_STORED_FROM", 10)
    (tmp_path / "file").touch()
    path = make_video(tmp_path / "x.mp4", 30)
    with caplog.at_level(logging.WARNING):
        assert frame_index.find_index(path, tmp_path / "file" / "folder").num_frames == 30
    assert "can't be written" in caplog.text


def test_a_time_is_the_first_frame_shown_at_it_or_later(tmp_path, make_video):
    index = frame_index.find_index(make_video(tmp_path / "x.mp4", 30))  # 25 fps
    times = [0.0, 0.04, 0.041, 0.0795, 0.08, 0.09, 1.16, 1.17, 99.0, -1.0]
    assert [index.frame_at(time) for time in times] == [0, 1, 1, 2, 2, 3, 29, 30, 30, 0]
    counted = index._replace(label="", stamps=np.empty(0, dtype=np.int64))
    assert [counted.frame_at(time) for time in times] == [0, 1, 1, 2, 2, 3, 29, 30, 30, 0]


def test_many_files_are_indexed_in_parallel_and_errors_are_told(tmp_path, make_video):
    paths = [str(make_video(tmp_path / f"{n}.mp4", 8 + n)) for n in range(3)]
    found = dict(frame_index.scan_all([*paths, "missing.mp4"], None, workers=2))
    assert [found[path].num_frames for path in paths] == [8, 9, 10]
    assert isinstance(found["missing.mp4"], DecodeError)


def test_a_decoder_that_stalls_costs_one_read_not_the_job(tmp_path, make_video, monkeypatch):
    path = make_video(tmp_path / "x.mp4", 8)
    reader = VideoReader(path, timeout=0.2)
    monkeypatch.setattr(reader._backend, "read", lambda *a: time.sleep(5))
    with pytest.raises(DecodeError, match=r"stalls: no answer in 0\.2 s"):
        reader.read([3])


def test_a_stall_while_a_file_is_indexed_costs_one_sample_too(tmp_path, make_video, monkeypatch):
    path = make_video(tmp_path / "x.mp4", 8)
    monkeypatch.setattr(frame_index, "make_index", lambda *a: time.sleep(5))
    with pytest.raises(DecodeError, match="stalls"):
        VideoReader(path, timeout=0.1)


def test_a_file_that_takes_too_long_is_given_up(tmp_path, make_video):
    path = make_video(tmp_path / "x.ts", 60, codec="mpeg2video", options={"g": "6"})
    with pytest.raises(DecodeError, match="took more than 0 s"):
        VideoReader(path, timeout=0.0)


def test_a_frame_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path, make_video, monkeypatch
):
    path = make_video(tmp_path / "x.mp4", 8)
    monkeypatch.setattr(frame_index, "MAX_PIXELS", 48 * 64 - 1)
    with pytest.raises(DecodeError, match="64 x 48 pixels, at most 3071"):
        VideoReader(path)


def test_a_pipe_is_no_video(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(DecodeError, match="not a regular file"):
        VideoReader(tmp_path / "pipe.mp4")


@pytest.mark.parametrize(("size", "scaled"), [((48, 64), (24, 32)), ((64, 48), (32, 24))])
def test_the_short_side_is_exact_and_the_aspect_kept(size, scaled, tmp_path, make_video):
    path = make_video(tmp_path / "x.mp4", 3, size=size)
    assert VideoReader(path).read([1], short_side=24).shape == (1, *scaled, 3)


def test_the_long_side_is_rounded_down():
    assert scaled_size(296, 400, 100) == (100, 135)
    assert scaled_size(400, 296, 100) == (135, 100)
    assert scaled_size(30, 40, None) == (30, 40)
    with pytest.raises(ValueError, match="at least 1"):
        scaled_size(30, 40, 0)


def test_frames_out_of_range_and_no_frames_are_refused(tmp_path, make_video):
    reader = VideoReader(make_video(tmp_path / "x.mp4", 5))
    with pytest.raises(IndexError, match="0 to 4"):
        reader.read([0, 5])
    with pytest.raises(IndexError):
        reader.read([-1])
    with pytest.raises(ValueError, match="at least one"):
        reader.read([])
    with pytest.raises(ValueError, match="pyav"):
        VideoReader("x.mp4", backend="abacus")


def test_what_is_no_video_raises_one_clear_error(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 80), np.int16), "s16", "mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
    for name in ("text.mp4", "empty.mp4", "sound.wav", "missing.mp4", "."):
        with pytest.raises(DecodeError, match=name):
            VideoReader(tmp_path / name)


def test_a_decode_error_survives_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "no video stream")))
    assert str(error) == "a.mp4: no video stream"
    assert (error.path, error.reason) == ("a.mp4", "no video stream")


def test_a_file_that_breaks_off_counts_as_far_as_it_goes(tmp_path, make_video, caplog):
    whole = make_video(tmp_path / "x.ts", 40, codec="mpeg2video", options={"g": "6", "bf": "0"})
    cut = tmp_path / "cut.ts"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with caplog.at_level(logging.WARNING), VideoReader(cut) as reader:
        assert 5 < len(reader) < 40
        assert len(reader.read([len(reader) - 1])) == 1
    check_every_frame(cut, lambda total: [total - 1, 0])


def test_a_file_that_is_replaced_is_indexed_anew(tmp_path, make_video):
    path = make_video(tmp_path / "x.mp4", 5)
    assert len(VideoReader(path)) == 5
    shutil.copy(make_video(tmp_path / "y.mp4", 9), path)
    assert len(VideoReader(path)) == 9


def test_a_closed_reader_holds_no_file_and_opens_again(tmp_path, make_video):
    reader = VideoReader(make_video(tmp_path / "x.mp4", 8))
    before = len(list(_open_files()))
    with reader:
        frames = reader.read([2, 7])
        assert len(list(_open_files())) == before + 1
    assert len(list(_open_files())) == before
    np.testing.assert_array_equal(reader.read([2, 7]), frames)


def _open_files():
    from pathlib import Path

    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc on this system")
    return folder.iterdir()


def test_two_frames_of_one_time_stamp_are_two_and_found_without_decoding_all(
    tmp_path, read_number, monkeypatch
):
    path = tmp_path / "x.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.options = {"g": "10", "crf": "10", "bf": "0"}
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(60):
            frame = av.VideoFrame.from_ndarray(picture(number, 48, 64), format="rgb24")
            frame.pts, frame.time_base = 40 * number, Fraction(1, 1000)
            for packet in stream.encode(frame):
                if packet.pts == 40 * 33:  # as a container does that rounds
                    packet.pts = packet.dts = 40 * 32
                container.mux(packet)
        container.mux(stream.encode(None))
    reader = VideoReader(path)
    assert len(reader) == 60
    assert (reader.index.label, len(reader.index.keys)) == ("pts", 6)
    seen = []
    plain = backends.PyAV._at
    monkeypatch.setattr(backends.PyAV, "_at", lambda *a: seen.append(a[1]) or plain(*a))
    for wanted in ([31, 32, 33, 34], [33], [32], [59], [0, 33, 55]):
        assert [read_number(frame) for frame in reader.read(wanted)] == wanted
    assert seen == [3, 3, 3, 5, -1, 3, 5]
