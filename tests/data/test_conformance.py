"""Every backend gives the frames of a sequential decode, or says that it can't."""

import json
import os
import shutil
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import av
import numpy as np
import pytest
import torch
from av.codec.codec import UnknownCodecError

from tests.data.conformance import compare, is_installed
from tests.data.conftest import number_in
from tests.data.odd_videos import H264, MPEG4, NO_VIDEOS, ODD_VIDEOS, VP9, cut, damaged, encode
from vmp.data import backends
from vmp.data.archive import DecodeError
from vmp.data.decode import BACKENDS, VideoReader

OTHERS = ("decord", "torchcodec")
# What these must be able to read besides; the rest they may refuse.
READ_BY_OTHERS = (
    "mpeg4.avi", "h264_b_frames.mp4", "h264_10_bit.mp4", "vp8.webm", "vp9.webm", "hevc_10_bit.mp4",
    "mjpeg.avi", "variable_rate.mkv", "sound_first.mp4", "rotated_90.mp4", "lying_header.avi",
)  # fmt: skip
READ_BY_TORCHCODEC = (
    "h264_open_gop.mkv", "hevc_open_gop.mp4", "mpeg4_b_frames.mp4", "two_videos.mp4",
    "start_inside_a_gop.mp4", "h264_intra_refresh.mp4",
)  # fmt: skip
# What decord would give other frames of.
REFUSED_BY_DECORD = {
    "h264_open_gop.mp4": "counts other key frames",
    "mpeg4_b_frames.avi": "counts other key frames",
    "mpeg2.ts": "counts other key frames",
    "start_inside_a_gop.mp4": "counts 19 frames, 14 decode",
    "two_videos.mp4": "gives another frame",
}


@pytest.fixture(scope="session")
def odd_video(tmp_path_factory):
    """Return a function that makes a video of `odd_videos`, once."""
    folder = tmp_path_factory.mktemp("odd")
    table = ODD_VIDEOS | NO_VIDEOS

    def make(name):
        path = folder / name.replace(".", "_") / name
        if not path.parent.exists():
            path.parent.mkdir()
            try:
                table[name](path)
            except UnknownCodecError as error:
                pytest.skip(f"this build of PyAV can't write {name}: {error}")
        if not path.exists():
            pytest.skip(f"this build of PyAV can't write {name}")
        return path

    return make


@pytest.fixture(params=BACKENDS)
def backend(request):
    """The name of each backend whose library is installed."""
    if not is_installed(request.param):
        pytest.skip(f"{request.param} or what it needs is not installed")
    return request.param


@pytest.fixture
def installed_backends():
    return list(filter(is_installed, BACKENDS))


@pytest.fixture
def decord():
    return pytest.importorskip("decord")


@pytest.mark.parametrize("name", ODD_VIDEOS)
def test_a_frame_in_any_order_is_that_of_a_sequential_decode(name, backend, odd_video):
    outcome = compare(odd_video(name), backend, coded=True)
    if backend == "pyav":
        assert (outcome.missing, outcome.difference) == ([], 0.0)
    elif name in READ_BY_OTHERS or (backend == "torchcodec" and name in READ_BY_TORCHCODEC):
        assert outcome.missing == [], outcome.reason
    elif backend == "decord" and name in REFUSED_BY_DECORD:
        assert len(outcome.missing) >= min(outcome.frames, 30)
        assert REFUSED_BY_DECORD[name] in outcome.reason
    if outcome.missing:
        assert "use DATA.DECODING_BACKEND pyav" in outcome.reason


@pytest.mark.parametrize("name", NO_VIDEOS)
def test_what_holds_no_frame_is_refused(name, odd_video):
    with pytest.raises(DecodeError, match=name):
        VideoReader(odd_video(name))


@pytest.mark.data
def test_real_files_agree_with_a_sequential_decode(shared, installed_backends):
    files = sorted((shared / "data" / "codecs").iterdir())
    files += sorted((shared / "data" / "ut_interaction").rglob("*.avi"))[::60]
    assert len(files) == 14
    outcomes = {
        (path.name, backend): compare(path, backend, coded=False, rounds=0)
        for path in files
        for backend in installed_backends
    }
    for (name, backend), outcome in outcomes.items():
        if backend == "pyav":
            assert (outcome.missing, outcome.difference) == ([], 0.0)
        elif name in ("bikes.mp4", "fire2.mp4", "flipping_a_pancake.mkv", "video_90.mov"):
            assert not outcome.missing
    if "decord" in installed_backends:
        assert "counts 246 frames, 245 decode" in outcomes["hmdb51_ride.avi", "decord"].reason


KINDS = {
    ".mp4": ("libx264", H264, {"movflags": "faststart"}),
    ".mkv": ("libx264", {"x264-params": "keyint=8:open-gop=1:bframes=3:crf=10"}, {}),
    ".avi": ("mpeg4", MPEG4, {}),
    ".ts": ("mpeg2video", {"g": "12", "bf": "2", "qmax": "3"}, {}),
    ".mpg": ("mpeg1video", {"g": "12", "bf": "2", "qmax": "3"}, {}),
    ".webm": ("libvpx-vp9", VP9, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [cut, damaged])
@pytest.mark.parametrize("kind", KINDS)
def test_wherever_a_file_is_spoilt_no_frame_is_another_one(kind, spoil, backend, tmp_path):
    codec, options, muxer = KINDS[kind]
    refused = 0
    for percent in range(2, 100, 4):
        path = tmp_path / f"{percent}{kind}"
        spoil(lambda path: encode(path, codec, options, muxer=muxer), percent / 100)(path)
        try:
            VideoReader(path)
        except DecodeError:
            refused += 1
            continue
        # other versions of FFmpeg put more of the frame before in place of what is lost
        compare(path, backend, coded=False, margin=0.5 if backend == "pyav" else 3.0)
    assert refused < 20  # of 25


def test_a_backend_scales_while_it_converts(backend, odd_video):
    for name in ("h264_b_frames.mp4", "rotated_90.mp4"):
        with VideoReader(odd_video(name), backend) as reader:
            frames = reader.read([30, 4, 4], short_side=36)
            assert frames.shape == (3, *((48, 36) if "rotated" in name else (36, 48)), 3)
            if "rotated" in name:
                frames = np.rot90(frames, -1, axes=(1, 2))
            assert [number_in(frame) for frame in frames] == [30, 4, 4]


def test_a_backend_reads_an_archive_in_place(backend, odd_video, tmp_path):
    whole = odd_video("h264_b_frames.mp4")
    with tarfile.open(tmp_path / "videos.tar", "w") as tar:
        tar.add(odd_video("vp9.webm"), "first.webm")
        tar.add(whole, "deep/x.mp4")
    wanted = [30, 0, 13]
    frames = VideoReader(tmp_path / "videos" / "deep" / "x.mp4", backend).read(wanted)
    np.testing.assert_array_equal(frames, VideoReader(whole, backend).read(wanted))


def test_a_closed_backend_holds_no_file_and_opens_again(backend, odd_video, tmp_path):
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc on this system")
    path = shutil.copy(odd_video("h264_b_frames.mp4"), tmp_path / "x.mp4")
    reader = VideoReader(path, backend)
    first = reader.read([9])
    reader.close()
    assert str(path) not in [os.readlink(file) for file in folder.iterdir() if file.exists()]
    np.testing.assert_array_equal(reader.read([9]), first)


# --------------------------------------------------------------------------- decord
def test_decord_is_compared_with_pyav_once_a_stretch(decord, odd_video, tmp_path, monkeypatch):
    path = shutil.copy(odd_video("h264_b_frames.mp4"), tmp_path / "x.mp4")
    compared = []
    plain = backends.PyAV.decode
    monkeypatch.setattr(
        backends.PyAV, "decode", lambda *a: (compared.append(a[1].numbers), plain(*a))[1]
    )
    for numbers in ([3], [2, 3], [5], [4, 8], [0, 7, 10]):
        VideoReader(path, "decord").read(numbers)
    assert compared == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [6, 7, 8], [6, 7, 8, 9, 10]]


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_decord_that_loses_a_frame_is_found_out(shift, decord, odd_video, tmp_path, monkeypatch):
    path = shutil.copy(odd_video("h264_b_frames.mp4"), tmp_path / "x.mp4")

    class Losing(decord.VideoReader):
        def __getitem__(self, number):
            return super().__getitem__(number + shift if number > 7 else number)

    monkeypatch.setattr(decord, "VideoReader", Losing)
    reader = VideoReader(path, "decord")
    assert number_in(reader.read([7])[0]) == 7
    with pytest.raises(DecodeError, match="gives another frame 8"):
        reader.read([9])


def test_a_shift_shows_where_little_moves_too():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 250, (20, 30, 3)).astype(np.uint8)
    right = [first, first + (first > 200), first + (first > 100)]
    noisy = [frame + (rng.random(frame.shape) < 0.05).astype(np.uint8) for frame in right]
    pairs = list(zip(noisy, right, strict=True))
    assert all(backends.are_same_pictures(pairs[n : n + 2]) for n in (0, 1))
    assert backends.are_same_pictures([(first, first), (first, first)])
    late = list(zip([noisy[0], *noisy[:2]], right, strict=True))
    early = list(zip([*noisy[1:], noisy[2]], right, strict=True))
    assert not backends.are_same_pictures(late[:2])
    assert not backends.are_same_pictures(early[:2])


def test_decord_keeps_nothing_of_a_closed_file(decord, odd_video):
    path = odd_video("h264_b_frames.mp4")

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc on this system")

    def read(times):
        for _ in range(times):
            with VideoReader(path, "decord") as reader:
                reader.read([30], short_side=200)  # 160 kB a frame

    read(20)
    before = resident()
    read(100)
    assert resident() - before < 8 * 2**20


# --------------------------------------------------------------------------- torchcodec
class StandIn:
    """What `TorchCodec` relies on of torchcodec's decoder, done with PyAV.

    Frames come upright, are found by the time stamps of the mapping, and carry their own.
    """

    late = 0  # frames by which its time stamps are later than PyAV's
    opened = []

    def __init__(self, source, *, stream_index, transforms, custom_frame_mappings, **options):
        assert options == {"dimension_order": "NHWC", "num_ffmpeg_threads": 1, "device": "cpu"}
        self.mapping = json.loads(custom_frame_mappings)["frames"]
        self.asked = []
        self.opened.append(self)
        with av.open(source) as container:
            stream = container.streams[stream_index]
            known = [frame for frame in container.decode(stream)]
        stamps = [frame.pts for frame in known]
        self.frames = list(zip(stamps[self.late :], known, strict=False))
        self.base = float(stream.time_base)
        self.size = transforms[0] if transforms else None

    def get_frame_at(self, number):
        self.asked.append(number)
        due = self.mapping[number]["pts"]
        stamp, frame = next((pair for pair in self.frames if pair[0] >= due), (None, None))
        if frame is None:
            raise RuntimeError("no more frames")
        turns = round(frame.rotation / 90)
        height, width = self.size or (None, None)
        if turns % 2:
            height, width = width, height
        picture = frame.reformat(width, height, "rgb24").to_ndarray()
        data = torch.from_numpy(np.rot90(picture, turns).copy())
        return SimpleNamespace(pts_seconds=stamp * self.base, data=data)


@pytest.fixture
def stand_in(monkeypatch):
    """torchcodec as it is used here, whether it is installed or not."""
    library = ModuleType("torchcodec")
    library.ffmpeg_major_version = 8
    library.decoders = SimpleNamespace(VideoDecoder=StandIn)
    transforms = ModuleType("torchcodec.transforms")
    transforms.Resize = tuple
    monkeypatch.setitem(sys.modules, "torchcodec", library)
    monkeypatch.setitem(sys.modules, "torchcodec.transforms", transforms)
    monkeypatch.setattr(StandIn, "opened", [])
    return library


@pytest.mark.parametrize(
    "name", ["h264_open_gop.mkv", "rotated_90.mp4", "two_videos.mp4", "cover_first.mp4"]
)
def test_torchcodec_is_told_the_frames_of_the_index(name, stand_in, odd_video):
    path = odd_video(name)
    wanted = [30, 3, 3, 17]
    exact = VideoReader(path)
    reader = VideoReader(path, "torchcodec")
    np.testing.assert_array_equal(reader.read(wanted), exact.read(wanted))
    assert reader.read(wanted, short_side=24).shape == exact.read(wanted, short_side=24).shape
    *_, decoder = StandIn.opened
    assert [frame["pts"] for frame in decoder.mapping] == exact.index.stamps.tolist()
    keys = [number for number, frame in enumerate(decoder.mapping) if frame["key_frame"]]
    assert keys == exact.index.keys.tolist()
    assert decoder.asked == [3, 17, 30]


@pytest.mark.parametrize("name", ["mpeg4_b_frames.avi", "mpeg4.avi", "h264_intra_refresh.mp4"])
def test_torchcodec_decodes_from_the_start_what_it_can_not_seek(name, stand_in, odd_video):
    path = odd_video(name)
    reader = VideoReader(path, "torchcodec")
    assert number_in(reader.read([9])[0]) == 9
    first, second = StandIn.opened  # one to see how the file begins
    assert second.asked == list(range(10))
    assert [frame["key_frame"] for frame in second.mapping] == [1] + [0] * 30


def test_a_torchcodec_that_stamps_frames_otherwise_is_found_out(stand_in, odd_video, monkeypatch):
    path = odd_video("h264_b_frames.mp4")
    monkeypatch.setattr(StandIn, "late", 1)
    for _ in range(2):  # it is no better the second time
        with pytest.raises(DecodeError, match="stamps frame 0 otherwise"):
            VideoReader(path, "torchcodec").read([4])
    monkeypatch.setattr(StandIn, "late", 0)
    monkeypatch.setattr(StandIn, "get_frame_at", lambda *_: {}["nothing"])
    with pytest.raises(DecodeError, match="can't be read with torchcodec: 'nothing'; use DATA"):
        VideoReader(path, "torchcodec").read([4])


def test_a_torchcodec_that_begins_with_another_frame_is_found_out(stand_in, odd_video):
    path = odd_video("h264_b_frames.mp4")
    reader = VideoReader(path, "torchcodec")
    reader._backend.index = reader.index._replace(
        stamps=reader.index.stamps[1:], num_frames=30, keys=reader.index.keys[1:] - 1
    )
    for _ in range(2):
        with pytest.raises(DecodeError, match="begins with another frame"):
            reader.read([4])


@pytest.mark.parametrize("name", ["h264_raw.h264", "joined.ts"])
def test_torchcodec_refuses_frames_without_time_stamps(name, stand_in, odd_video):
    with pytest.raises(DecodeError, match="no time stamps; use DATA.DECODING_BACKEND pyav"):
        VideoReader(odd_video(name), "torchcodec")


# --------------------------------------------------------------------------- not installed
@pytest.mark.parametrize(
    ("name", "way_out"),
    [("decord", "use pyav"), ("torchcodec", r"pip install 'vmp\[torchcodec\]'")],
)
def test_a_library_that_is_missing_is_named(name, way_out, odd_video, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"{name} needs .*{way_out}"):
        VideoReader(odd_video("mpeg4.avi"), name)


def test_torchcodec_without_ffmpeg_says_what_to_install(stand_in, odd_video):
    stand_in.ffmpeg_major_version = None
    with pytest.raises(ValueError, match="apt install ffmpeg"):
        VideoReader(odd_video("mpeg4.avi"), "torchcodec")
