import hashlib
import io
import logging
import os
import shutil
import tarfile
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
from torch.utils.data import DataLoader

from tests.conftest import load_module
from vmp.data import VideoReader, archive, csv_list
from vmp.data.archive import DecodeError, locate

NAMES = ("hug/a b, c#1.mp4", "hug/--ü%20:x.avi", "hug/deep er/[1]'\"\\;&.mp4", "-x.mp4")
KINDS = (".h5", ".hdf5", ".tar")


@pytest.fixture(scope="module")
def pack():
    yield from load_module("pack", Path(__file__).resolve().parents[2] / "datasets" / "pack.py")


@pytest.fixture(scope="module")
def videos(tmp_path_factory, make_video):
    """A folder of four videos; video v has 5 + v frames and begins with number 100 v."""
    folder = tmp_path_factory.mktemp("archive") / "videos"
    for number, name in enumerate(NAMES):
        codec = {"codec": "mpeg4", "options": {"g": "4"}} if name.endswith("avi") else {}
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_video(path, 5 + number, first=100 * number, **codec)
    return folder


@pytest.fixture(scope="module")
def packed(pack, videos):
    """Folder with `videos.h5`, `videos.hdf5` and `videos.tar`, which beside it has its index."""
    folder = videos.parent / "packed"
    for kind in KINDS:
        pack.pack(videos, folder / f"videos{kind}")
    return folder


@pytest.fixture(params=KINDS)
def root(request, packed, tmp_path):
    """Folder with one archive, `videos` and one of the endings."""
    for file in packed.glob(f"videos{request.param}*"):
        shutil.copy(file, tmp_path)
    return tmp_path


@pytest.fixture
def tar_root(packed, tmp_path):
    """Folder with `videos.tar` and its index."""
    for file in packed.glob("videos.tar*"):
        shutil.copy(file, tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _nothing_remembered():
    for cached in (archive._tar_table, archive._h5_table, archive._h5_single):
        cached.cache_clear()


def frames_of(file):
    with av.open(file) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def content_of(path):
    with locate(str(path)).open() as file:
        return file.read()


def write_as_the_authors_do(path, files):
    """Nested groups, each file one string: how VMPs' tools/convert_h5.py stores them."""
    with h5py.File(path, "w") as file:
        for name, raw in files.items():
            folder, _, item = name.rpartition("/")
            group = file.require_group(folder) if folder else file
            group.create_dataset(item, data=np.array(raw, dtype="S"))


# --------------------------------------------------------------------------- what is read
@pytest.mark.parametrize("name", NAMES)
def test_the_frames_in_an_archive_are_those_of_the_file(root, videos, name):
    source = locate(str(root / "videos" / name))
    assert source.path == str(root / "videos" / name)
    assert Path(source.file).parent == root
    wanted = frames_of(str(videos / name))
    assert len(wanted) == 5 + NAMES.index(name)
    np.testing.assert_array_equal(frames_of(source.url), wanted)
    np.testing.assert_array_equal(frames_of(source.open()), wanted)
    with source.open() as file:
        assert file.read() == (videos / name).read_bytes()


def test_the_reader_takes_any_frame_from_an_archive(root, read_number):
    with VideoReader(root / "videos" / NAMES[2]) as video:
        assert [read_number(frame) for frame in video.read([6, 0, 3])] == [206, 200, 203]


def test_an_opened_member_behaves_like_a_file(root, videos):
    raw = (videos / NAMES[0]).read_bytes()
    with locate(str(root / "videos" / NAMES[0])).open() as file:
        assert file.seek(-5, os.SEEK_END) == len(raw) - 5
        assert file.read() == raw[-5:]
        assert file.read() == b""
        assert file.seek(7) == 7
        assert file.read(9) == raw[7:16]
        assert file.seek(-3, os.SEEK_CUR) == 13 == file.tell()
        assert file.read(3) == raw[13:16]
        file.seek(len(raw) + 10)
        assert file.read(1) == b""
        with pytest.raises(OSError, match="before the beginning"):
            file.seek(-1)


def test_a_path_may_lead_through_the_archive_itself(root, videos):
    (file,) = (file for file in root.iterdir() if file.suffix in KINDS)
    assert content_of(file / NAMES[0]) == (videos / NAMES[0]).read_bytes()


def test_relative_paths_and_detours_are_understood(root, videos, monkeypatch):
    monkeypatch.chdir(root)
    wanted = (videos / NAMES[3]).read_bytes()
    assert content_of(f"videos/hug/../{NAMES[3]}") == wanted
    assert content_of(f"./videos//{NAMES[3]}") == wanted
    (root / "videos").mkdir()
    monkeypatch.chdir(root / "videos")
    assert content_of(NAMES[3]) == wanted


def test_a_file_of_its_own_comes_before_an_archive(root):
    path = root / "videos" / NAMES[0]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"another")
    source = locate(str(path))
    assert source == (str(path), str(path), 0, 7, None)
    assert source.url == f"file:{path}"
    assert content_of(path) == b"another"


def test_the_nearest_archive_decides(root, pack, videos):
    # one for videos/hug itself, with less in it than the one for videos
    pack.pack(videos / "hug" / "deep er", root / "videos" / "hug.tar")
    inner = Path(NAMES[2]).name
    assert locate(str(root / "videos/hug" / inner)).file == str(root / "videos/hug.tar")
    with pytest.raises(DecodeError, match=r"hug\.tar has no member"):
        locate(str(root / "videos" / NAMES[0]))
    assert Path(locate(str(root / "videos" / NAMES[3])).file).parent == root


def test_hdf5_comes_before_tar(packed, tmp_path):
    for file in packed.iterdir():
        shutil.copy(file, tmp_path)
    assert locate(str(tmp_path / "videos" / NAMES[0])).file == str(tmp_path / "videos.h5")


def test_a_replaced_archive_is_read_anew(pack, videos, tmp_path):
    pack.pack(videos, tmp_path / "videos.tar")
    before = locate(str(tmp_path / "videos" / NAMES[3]))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / NAMES[3]).write_bytes(b"something else")
    pack.pack(tmp_path / "new", tmp_path / "videos.tar", force=True)
    assert content_of(tmp_path / "videos" / NAMES[3]) == b"something else"
    assert before.size != 14


def test_an_empty_member_is_no_video(pack, tmp_path):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "empty.mp4").touch()
    for kind in (".h5", ".tar"):
        pack.pack(tmp_path / "v", tmp_path / f"w{kind}")
        source = locate(str(tmp_path / f"w{kind}" / "empty.mp4"))
        assert (source.url, source.size, source.open().read()) == (None, 0, b"")
        with pytest.raises(DecodeError, match=r"empty\.mp4"):
            VideoReader(tmp_path / f"w{kind}" / "empty.mp4")


@pytest.mark.data
def test_real_videos_decode_the_same_from_an_archive(pack, shared, tmp_path):
    folder = shared / "data" / "codecs"
    small = [path for path in sorted(folder.iterdir()) if path.stat().st_size < 100_000]
    assert len(small) > 3
    (tmp_path / "v").mkdir()
    for path in small:
        shutil.copy(path, tmp_path / "v")
    for kind in (".h5", ".tar"):
        pack.pack(tmp_path / "v", tmp_path / f"w{kind}")
        for path in small:
            packed_sums = checksums(locate(str(tmp_path / f"w{kind}" / path.name)).url)
            assert packed_sums == checksums(str(path)), path.name


def checksums(url):
    sums = []
    try:
        with av.open(url, metadata_errors="ignore") as container:
            sums.extend(
                hashlib.sha256(frame.to_ndarray().tobytes()).digest()
                for frame in container.decode(video=0)
            )
    except av.FFmpegError as error:  # some are broken; then at the same place
        sums.append(error.strerror)
    return sums


# --------------------------------------------------------------------------- what is not there
def test_a_missing_video_is_reported_with_its_path(tmp_path):
    with pytest.raises(DecodeError) as error:
        locate(str(tmp_path / "videos" / "x.avi"))
    assert str(error.value) == f"{tmp_path}/videos/x.avi: No such file or directory"
    with pytest.raises(DecodeError, match="not a regular file"):
        locate(str(tmp_path))
    with pytest.raises(DecodeError, match="null"):
        locate("a\0b")


def test_a_missing_member_is_reported_with_archive_and_member(root):
    path = root / "videos" / "hug" / "gone.avi"
    with pytest.raises(DecodeError) as error:
        locate(str(path))
    (file,) = (file for file in root.iterdir() if file.suffix in KINDS)
    assert str(error.value) == f"{path}: {file} has no member 'hug/gone.avi'"


def test_a_folder_in_an_archive_is_no_member(root):
    with pytest.raises(DecodeError, match="has no member 'hug'"):
        locate(str(root / "videos" / "hug"))


@pytest.mark.parametrize("kind", [".h5", ".hdf5"])
def test_the_index_in_an_archive_is_no_member(packed, kind):
    with pytest.raises(DecodeError, match="has no member"):
        locate(str(packed / f"videos{kind}" / archive.H5_INDEX))


@pytest.mark.parametrize("name", ["MPII.h5", "v.tar", "v.tar.gz"])
def test_a_missing_archive_is_named(tmp_path, name):
    with pytest.raises(DecodeError, match=f"there is no archive {tmp_path / name}$"):
        locate(str(tmp_path / name / "train" / "x.mp4"))


def test_a_folder_may_have_the_name_of_an_archive(tmp_path):
    (tmp_path / "odd.h5").mkdir()
    with pytest.raises(DecodeError, match="No such file"):
        locate(str(tmp_path / "odd.h5" / "x.mp4"))


# --------------------------------------------------------------------------- the authors' files
def test_the_authors_files_are_read(videos, tmp_path):
    files = {f"train/take outV/{name}": (videos / name).read_bytes() for name in NAMES}
    files["train/small.bin"] = b"ab"
    write_as_the_authors_do(tmp_path / "MPII.h5", files)
    for name, raw in files.items():
        assert content_of(tmp_path / "MPII.h5" / name) == raw
        assert content_of(tmp_path / "MPII" / name) == raw
    path = f"{tmp_path}/MPII/train/take outV/{NAMES[0]}"
    np.testing.assert_array_equal(frames_of(locate(path).url), frames_of(str(videos / NAMES[0])))


@pytest.mark.parametrize("size", [3, 200_000])
def test_nul_bytes_at_the_end_belong_to_the_file(pack, tmp_path, size):
    raw = os.urandom(size) + b"\0\0\0"
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "x").write_bytes(raw)
    write_as_the_authors_do(tmp_path / "theirs.h5", {"x": raw})
    for kind in KINDS:
        pack.pack(tmp_path / "v", tmp_path / f"ours{kind}")
        assert content_of(tmp_path / f"ours{kind}" / "x") == raw
    assert content_of(tmp_path / "theirs.h5" / "x") == raw


@pytest.mark.parametrize("padding", [h5py.h5t.STR_NULLPAD, h5py.h5t.STR_NULLTERM])
def test_bytes_that_are_not_in_one_piece_are_read_into_memory(tmp_path, padding, videos):
    raw = b"a\0b" + os.urandom(500) + b"\0\0"
    video = (videos / NAMES[0]).read_bytes()
    with h5py.File(tmp_path / "v.h5", "w") as file:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.COMPACT)
        kind = h5py.h5t.C_S1.copy()
        kind.set_size(len(raw))
        kind.set_strpad(padding)
        space = h5py.h5s.create(h5py.h5s.SCALAR)
        dataset = h5py.h5d.create(file.id, b"compact", kind, space, layout)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array(np.void(raw)), mtype=kind)
        squeezed = np.frombuffer(video, dtype=np.uint8)
        file.create_dataset("chunked", data=squeezed, chunks=(1000,), compression="gzip")
        file.create_dataset("opaque", data=np.void(raw))
    source = locate(str(tmp_path / "v" / "compact"))
    assert (source.url, source.size) == (None, len(raw))
    assert source.open().read() == raw
    assert content_of(tmp_path / "v" / "opaque") == raw
    in_memory = locate(str(tmp_path / "v" / "chunked")).open()
    np.testing.assert_array_equal(frames_of(in_memory), frames_of(str(videos / NAMES[0])))
    with VideoReader(tmp_path / "v" / "chunked") as reader:
        assert len(reader) == 5


def test_what_is_too_large_for_memory_is_refused(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:  # claims much, holds nothing
        file.create_dataset("x", shape=(2**40,), dtype="u1", chunks=(2**20,))
    with pytest.raises(DecodeError, match="'x' has 1099511627776 bytes that are not in one piece"):
        locate(str(tmp_path / "v" / "x"))


def test_other_values_than_bytes_are_refused(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["floats"] = np.zeros(10, np.float32)
        file["text"] = "of any length"
    for name in ("floats", "text"):
        with pytest.raises(DecodeError, match=f"'{name}' holds values of another kind"):
            locate(str(tmp_path / "v" / name))


def test_nothing_in_hdf5_leads_out_of_the_file(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"0123456789")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.arange(10, dtype=np.uint8)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["real/x"] = np.arange(10, dtype=np.uint8)
        file["soft"] = h5py.SoftLink("/real/x")
        file["soft folder"] = h5py.SoftLink("/real")
        file["external"] = h5py.ExternalLink("other.h5", "/x")
        file.create_dataset("raw", shape=(10,), dtype="u1", external=[(str(secret), 0, 10)])
        layout = h5py.VirtualLayout(shape=(10,), dtype="u1")
        layout[:] = h5py.VirtualSource("other.h5", "x", shape=(10,))
        file.create_virtual_dataset("virtual", layout)
    assert content_of(tmp_path / "v" / "real" / "x") == bytes(range(10))
    for name in ("soft", "soft folder/x", "external"):
        with pytest.raises(DecodeError, match=f"has no member '{name}'"):
            locate(str(tmp_path / "v" / name))
    for name in ("raw", "virtual"):
        with pytest.raises(DecodeError, match=f"'{name}' leads into another file"):
            locate(str(tmp_path / "v" / name))


def test_members_are_listed_by_walking_groups_that_hold_each_other(tmp_path):
    write_as_the_authors_do(tmp_path / "v.h5", {"a/b/x": b"123", "y": b"4567"})
    with h5py.File(tmp_path / "v.h5", "a") as file:
        file["a/b/round"] = file["a"]  # a hard link
        file["soft"] = h5py.SoftLink("/y")
    members = archive.list_members(str(tmp_path / "v.h5"))
    assert {name: size for name, (_, size) in members.items()} == {"a/b/x": 3, "y": 4}


# --------------------------------------------------------------------------- tar
@pytest.mark.parametrize("make", ["gnu", "pax", "ustar"])
def test_any_plain_tar_is_read_without_an_index(videos, tmp_path, make, caplog):
    kind = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}
    with tarfile.open(tmp_path / "v.tar", "w", format=kind[make]) as tar:
        tar.add(videos, arcname=".")
    with caplog.at_level(logging.INFO, logger="vmp.data.archive"):
        for name in NAMES:
            assert content_of(tmp_path / "v" / name) == (videos / name).read_bytes()
    assert len([line for line in caplog.messages if "has no index" in line]) == 1


def test_names_may_begin_with_the_folder_that_was_packed(videos, tmp_path):
    with tarfile.open(tmp_path / "v.tar", "w") as tar:
        tar.add(videos, arcname="v")  # as `tar cf v.tar v` does
    assert content_of(tmp_path / "v" / NAMES[0]) == (videos / NAMES[0]).read_bytes()
    assert content_of(tmp_path / "v.tar" / "v" / NAMES[0]) == (videos / NAMES[0]).read_bytes()


def test_long_names_and_names_that_are_not_unicode_are_kept(pack, tmp_path):
    names = [
        "d" * 200 + "/" + "é" * 120 + ".avi",
        b"\xff\xfe.avi".decode("utf-8", "surrogateescape"),
    ]
    for name in names:
        (tmp_path / "v" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "v" / name).write_bytes(os.fsencode(name))
    for kind in KINDS:
        pack.pack(tmp_path / "v", tmp_path / f"w{kind}")
        for name in names:
            assert content_of(tmp_path / f"w{kind}" / name) == os.fsencode(name)
            assert archive.list_members(str(tmp_path / f"w{kind}"))[name]
        assert pack.verify(tmp_path / f"w{kind}") == []
    (tmp_path / "w.tar.index.json").unlink()
    for name in names:
        assert content_of(tmp_path / "w.tar" / name) == os.fsencode(name)


def test_only_regular_files_inside_a_tar_are_members(tmp_path):
    with tarfile.open(tmp_path / "v.tar", "w") as tar:
        add(tar, "file", b"1")
        add(tar, "twice", b"old")
        add(tar, "twice", b"the last one counts")
        add(tar, "../outside", b"2")
        add(tar, "a/../../outside", b"2")
        add(tar, "/absolute", b"3")
        for name, kind in [
            ("soft", tarfile.SYMTYPE),
            ("hard", tarfile.LNKTYPE),
            ("device", tarfile.CHRTYPE),
            ("pipe", tarfile.FIFOTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "file"
            tar.addfile(info)
    assert set(archive.list_members(str(tmp_path / "v.tar"))) == {"file", "twice"}
    assert content_of(tmp_path / "v" / "twice") == b"the last one counts"
    with pytest.raises(DecodeError, match="has no member 'soft'"):
        locate(str(tmp_path / "v" / "soft"))


def add(tar, name, raw):
    info = tarfile.TarInfo(name)
    info.size = len(raw)
    tar.addfile(info, io.BytesIO(raw))


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_refused_whatever_its_name(videos, tmp_path, kind):
    for ending in ("tar", f"tar.{kind}"):
        with tarfile.open(tmp_path / f"v.{ending}", f"w:{kind}") as tar:
            tar.add(videos / NAMES[3], arcname=NAMES[3])
        with pytest.raises(DecodeError, match=r"compressed.*make an uncompressed \.tar"):
            locate(str(tmp_path / f"v.{ending}" / NAMES[3]))


def test_the_index_of_another_tar_is_not_believed(videos, packed, tmp_path, caplog):
    # the same files, another order: even the size of the archive is the same
    with tarfile.open(tmp_path / "videos.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in reversed(sorted(NAMES)):
            tar.add(videos / name, arcname=name)
    shutil.copy(packed / "videos.tar.index.json", tmp_path)
    for name in NAMES:
        assert content_of(tmp_path / "videos" / name) == (videos / name).read_bytes()
    assert "is not its index" in caplog.text


# --------------------------------------------------------------------------- damage
def one_line(root):
    with pytest.raises(DecodeError) as error:
        locate(str(root / "videos" / NAMES[0]))
    text = str(error.value)
    assert text.startswith(f"{root}/videos/{NAMES[0]}: {root}/videos.")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.8])
def test_a_truncated_archive_is_refused_in_one_line(root, share):
    (file,) = (file for file in root.iterdir() if file.suffix in KINDS)
    with file.open("r+b") as opened:
        opened.truncate(int(share * file.stat().st_size))
    assert "no whole" in one_line(root)
    for index in root.glob("*.index.json"):
        index.unlink()
    assert "no whole" in one_line(root)


def test_text_named_like_an_archive_is_refused_in_one_line(root):
    (file,) = (file for file in root.iterdir() if file.suffix in KINDS)
    file.write_text("this is\nno archive\n" * 1000)
    assert "no whole" in one_line(root)


def test_a_tar_with_a_broken_header_in_the_middle_does_not_pass_for_a_shorter_one(tar_root):
    file = tar_root / "videos.tar"
    places = archive.list_members(str(file))
    offset = sorted(places.values())[-1][0]
    with file.open("r+b") as opened:
        opened.seek(offset - 512 + 130)
        opened.write(b"\xff\xff")
    assert "no whole tar archive (cut off or broken at byte" in one_line(tar_root)


def test_a_broken_tar_is_read_through_once(tar_root, monkeypatch):
    file = tar_root / "videos.tar"
    file.write_bytes(file.read_bytes()[:-20_000])
    scans = counted(monkeypatch, archive, "_scan_tar")
    for _ in range(3):
        one_line(tar_root)
    assert scans == [1]


def test_a_damaged_index_is_done_without(root, videos, caplog):
    (file,) = (file for file in root.iterdir() if file.suffix in KINDS)
    index = root / "videos.tar.index.json"
    holder = index if index.exists() else file
    raw = holder.read_bytes()
    holder.write_bytes(raw.replace(b'"members"', b'"members\x01'))
    for name in NAMES:
        assert content_of(root / "videos" / name) == (videos / name).read_bytes()
    assert caplog.text.count("index") >= 1
    with pytest.raises(DecodeError, match="index is damaged"):
        archive.read_index(str(file))


def test_an_index_whose_file_was_rewritten_is_not_believed(packed, videos, tmp_path, caplog):
    with h5py.File(packed / "videos.h5") as old, h5py.File(tmp_path / "videos.h5", "w") as new:
        new["first"] = np.zeros(3000, np.uint8)
        for name in old:
            old.copy(name, new)
    for name in NAMES:
        assert content_of(tmp_path / "videos" / name) == (videos / name).read_bytes()
    assert "its index is out of date" in caplog.text


# --------------------------------------------------------------------------- cost
@pytest.fixture(scope="module")
def many(pack, tmp_path_factory):
    """Archives `many.h5` and `many.tar` of 5,000 members."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "v").mkdir()
    for number in range(10):
        (folder / str(number)).write_bytes(b"%d" % number)
    for number in range(5000):  # links, as 5,000 files take their time
        (folder / "v" / f"{number}.avi").symlink_to(folder / str(number % 10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # the disk may have much else to do
        for kind in (".h5", ".tar"):
            pack.pack(folder / "v", folder / f"many{kind}")
    return folder


def counted(monkeypatch, owner, name):
    """Count the calls of a function from now on."""
    calls = [0]
    function = getattr(owner, name, open)

    def counting(*args, **kwargs):
        calls[0] += 1
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting, raising=False)
    return calls


def test_an_hdf5_archive_of_5000_is_opened_once(many, monkeypatch):
    opened = counted(monkeypatch, h5py, "File")
    looked_up = counted(monkeypatch, archive, "_h5_dataset")
    sources = [locate(str(many / "many" / f"{number}.avi")) for number in range(5000)]
    assert opened == [1]
    assert looked_up[0] < 30  # the index, and those by which it is checked
    assert [source.open().read() for source in sources[::999]] == [
        b"%d" % (number % 10) for number in range(0, 5000, 999)
    ]


def test_the_headers_of_a_tar_of_5000_are_not_read(many, monkeypatch):
    opened = counted(monkeypatch, archive, "open")
    scans = counted(monkeypatch, archive, "_scan_tar")
    for number in range(5000):
        locate(str(many / "many.tar" / f"{number}.avi"))
    assert (opened, scans) == ([2], [0])  # the index, and the archive to see whether it fits


def test_without_an_index_a_tar_is_read_through_once(many, monkeypatch, tmp_path):
    shutil.copy(many / "many.tar", tmp_path)
    scans = counted(monkeypatch, archive, "_scan_tar")
    for number in range(0, 5000, 7):
        assert content_of(tmp_path / "many" / f"{number}.avi") == b"%d" % (number % 10)
    assert scans == [1]


def test_no_file_stays_open(root):
    before = os.listdir("/proc/self/fd")
    for name in NAMES:
        content_of(root / "videos" / name)
    assert os.listdir("/proc/self/fd") == before


class Numbers:
    """The number in the first frame of each video, read from an archive."""

    def __init__(self, folder, read_number):
        self.folder, self.read_number = folder, read_number

    def __len__(self):
        return len(NAMES)

    def __getitem__(self, index):
        url = locate(str(self.folder / NAMES[index])).url
        return self.read_number(frames_of(url)[0]), os.getpid()


def test_workers_read_from_an_archive_that_their_parent_has_used(root, read_number):
    numbers = Numbers(root / "videos", read_number)
    assert [numbers[index][0] for index in range(4)] == [0, 100, 200, 300]
    loader = DataLoader(
        numbers, batch_size=1, num_workers=2, multiprocessing_context="fork", collate_fn=list
    )
    rows = [row for _ in range(2) for ((*row,),) in loader]
    assert [number for number, _ in rows] == 2 * [0, 100, 200, 300]
    assert os.getpid() not in {process for _, process in rows}


def test_a_list_of_ones_own_may_name_members(packed, tmp_path, read_number):
    shutil.copy(packed / "videos.h5", tmp_path / "mine.h5")
    (tmp_path / "train.csv").write_text(f"mine.h5/{NAMES[0]} 0\nmine/{NAMES[1]} 1\n")
    records = csv_list.csv(str(tmp_path), "train")
    firsts = [VideoReader(record.path).read([0])[0] for record in records]
    assert [read_number(first) for first in firsts] == [0, 100]
