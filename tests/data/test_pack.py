import hashlib
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import time
from collections import namedtuple
from pathlib import Path

import h5py
import pytest

from tests.conftest import load_module
from vmp.data import archive
from vmp.data.archive import Entry
from vmp.utils.cli import run_cli

SCRIPT = Path(__file__).resolve().parents[2] / "datasets" / "pack.py"
KINDS = (".h5", ".tar")


@pytest.fixture(scope="module")
def pack():
    yield from load_module("pack", SCRIPT)


@pytest.fixture
def folder(tmp_path):
    """Four files, in the order in which they are packed: a/1.avi, a/2 .avi, b.avi, z/empty.avi."""
    folder = tmp_path / "videos"
    for name, size in [("z/empty.avi", 0), ("b.avi", 900), ("a/2 .avi", 1), ("a/1.avi", 40_000)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(size))
    return folder


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


# --------------------------------------------------------------------------- what is packed
@pytest.mark.parametrize("kind", KINDS)
def test_every_member_has_place_size_and_hash(pack, folder, kind):
    path = folder.with_name(f"videos{kind}")
    entries = pack.pack(folder, path)
    assert list(entries) == ["a/1.avi", "a/2 .avi", "b.avi", "z/empty.avi"]
    whole = path.read_bytes()
    for name, entry in entries.items():
        raw = (folder / name).read_bytes()
        assert whole[entry.offset : entry.offset + entry.size] == raw
        assert entry.sha256 == hashlib.sha256(raw).hexdigest()
    assert archive.read_index(str(path)) == entries
    assert archive.list_members(str(path)) == {
        name: (entry.offset, entry.size) for name, entry in entries.items()
    }


def test_hdf5_holds_plain_data_sets_of_bytes_with_size_and_hash(pack, folder):
    pack.pack(folder, folder.with_name("v.h5"))
    raw = (folder / "a/1.avi").read_bytes()
    with h5py.File(folder.with_name("v.h5")) as file:
        dataset = file["a"]["1.avi"]
        assert dataset[()].tobytes() == raw
        assert dataset.chunks is None
        assert dict(dataset.attrs) == {"sha256": hashlib.sha256(raw).hexdigest(), "size": 40_000}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_folder_gives_the_same_bytes(pack, folder, kind):
    pack.pack(folder, folder.with_name(f"1{kind}"))
    pack.pack(folder, folder.with_name(f"2{kind}"))
    assert folder.with_name(f"1{kind}").read_bytes() == folder.with_name(f"2{kind}").read_bytes()


def test_large_files_go_through_in_parts(pack, folder, monkeypatch):
    monkeypatch.setattr(pack, "CHUNK_BYTES", 1000)
    longest = [0]
    copy = pack._copy

    def watched(path, size, put, progress):
        def put_watched(position, chunk):
            longest[0] = max(longest[0], len(chunk))
            put(position, chunk)

        return copy(path, size, put_watched, progress)

    monkeypatch.setattr(pack, "_copy", watched)
    for kind in KINDS:
        pack.pack(folder, folder.with_name(f"v{kind}"))
        assert pack.verify(folder.with_name(f"v{kind}")) == []
    assert longest == [1000]


def test_hidden_files_are_left_out_and_links_are_followed(pack, folder, tmp_path):
    (folder / ".b.avi").write_bytes(b"what some systems leave")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.avi").write_bytes(b"c")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "linked too").symlink_to(tmp_path / "elsewhere")
    (folder / "link.avi").symlink_to(folder / "b.avi")
    sizes = pack.list_files(folder)
    assert sizes == {
        **{"a/1.avi": 40_000, "a/2 .avi": 1, "b.avi": 900, "z/empty.avi": 0},
        **{"link.avi": 900, "linked/c.avi": 1, "linked too/c.avi": 1},
    }


def test_links_in_a_circle_and_to_nothing_are_named(pack, folder):
    (folder / "a" / "round").symlink_to(folder)
    with pytest.raises(ValueError, match=r"a/round leads to a folder above it"):
        pack.list_files(folder)
    (folder / "a" / "round").unlink()
    (folder / "a" / "gone.avi").symlink_to(folder / "nowhere")
    with pytest.raises(ValueError, match=r"a/gone\.avi is neither a file nor a folder"):
        pack.list_files(folder)
    (folder / "a" / "gone.avi").unlink()
    os.mkfifo(folder / "a" / "pipe")
    with pytest.raises(ValueError, match="a/pipe is neither"):
        pack.list_files(folder)


@pytest.mark.parametrize("name", ["/x", "a/../x", "./x", "a//x", "x/", ".", "..", "__index__"])
def test_names_that_hdf5_can_not_hold_are_refused(pack, folder, name):
    with pytest.raises(ValueError, match=r"can't be"):
        pack.write_h5(folder.with_name("v.h5"), folder, {name: 1}, print)


# --------------------------------------------------------------------------- what goes wrong
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_overwritten_unless_asked(pack, folder, kind):
    path = folder.with_name(f"v{kind}")
    path.write_bytes(b"precious")
    with pytest.raises(ValueError, match="is there already; remove it, or give --force"):
        pack.pack(folder, path)
    assert path.read_bytes() == b"precious"
    pack.pack(folder, path, force=True)
    assert pack.verify(path) == []


def test_a_target_that_can_not_be_is_refused_before_any_work(pack, folder, monkeypatch):
    monkeypatch.setattr(pack, "list_files", None)
    with pytest.raises(ValueError, match=r"must end with \.h5, \.hdf5, \.tar"):
        pack.pack(folder, folder.with_name("v.tar.gz"))
    with pytest.raises(ValueError, match="lies in the folder to be packed"):
        pack.pack(folder, folder / "v.h5")
    (folder.with_name("d.h5")).mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        pack.pack(folder, folder.with_name("d.h5"), force=True)
    with pytest.raises(ValueError, match="is no folder"):
        pack.pack(folder / "b.avi", folder.with_name("v.h5"))


def test_an_empty_folder_is_refused(pack, tmp_path):
    (tmp_path / "v").mkdir()
    with pytest.raises(ValueError, match="holds no files"):
        pack.pack(tmp_path / "v", tmp_path / "v.h5")


def test_a_disk_without_room_is_refused_before_anything_is_written(pack, folder, monkeypatch):
    usage = namedtuple("usage", "free")(1_040_000)
    monkeypatch.setattr(pack.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(ValueError, match=r"has 1\.0 MB free, 1\.1 MB are needed"):
        pack.pack(folder, folder.parent / "new" / "deep" / "v.h5")
    assert files_in(folder.parent) == ["videos"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_that_changes_meanwhile_is_named(pack, folder, kind, change, monkeypatch):
    monkeypatch.setattr(pack, "list_files", lambda folder: {"a/2 .avi": 1, "b.avi": 900 + change})
    with pytest.raises(ValueError, match=r"b\.avi has changed while it was packed"):
        pack.pack(folder, folder.with_name(f"v{kind}"))
    assert files_in(folder.parent) == ["videos"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_wrongly_does_not_get_its_name(pack, folder, kind, monkeypatch):
    write = getattr(pack, f"write_{kind[1:]}")

    def write_badly(path, *args):
        entries = write(path, *args)
        with path.open("r+b") as file:
            file.seek(entries["b.avi"].offset + 7)
            file.write(b"????")
        return entries

    monkeypatch.setattr(pack, f"write_{kind[1:]}", write_badly)
    with pytest.raises(ValueError, match=r"b\.avi was not written as read"):
        pack.pack(folder, folder.with_name(f"v{kind}"))
    assert files_in(folder.parent) == ["videos"]


def run_until_written(argv, marker):
    """Run the script; when all is written but has not its name yet, make `marker` and wait."""

    def wait(_):
        marker.touch()
        time.sleep(60)

    os.fsync = wait
    sys.argv = [str(SCRIPT), *argv]
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_leaves_no_half_archive(folder, kind, ending):
    out, marker = folder.with_name(f"v{kind}"), folder.with_name("marker")
    process = multiprocessing.get_context("fork").Process(
        target=run_until_written, args=([str(folder), "--out", str(out)], marker)
    )
    process.start()
    while not marker.exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, ending)
    process.join()
    assert process.exitcode != 0
    left = set(files_in(folder.parent)) - {"videos", "marker"}
    # nobody can clear away after SIGKILL, but the name says what it is
    assert left == ({f".v{kind}.{process.pid}.partial"} if ending == signal.SIGKILL else set())


def test_an_old_index_never_lies_beside_a_new_tar(pack, folder, monkeypatch):
    path = folder.with_name("v.tar")
    pack.pack(folder, path)
    (folder / "b.avi").write_bytes(b"another")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pack, "tar_fingerprint", fail)  # between the archive and its index
    with pytest.raises(KeyboardInterrupt):
        pack.pack(folder, path, force=True)
    assert files_in(folder.parent) == ["v.tar", "videos"]
    with archive.locate(str(path / "b.avi")).open() as file:
        assert file.read() == b"another"


# --------------------------------------------------------------------------- verifying
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_found_wherever_it_is_in_a_video(pack, folder, kind):
    path = folder.with_name(f"v{kind}")
    entries = pack.pack(folder, path)
    assert pack.verify(path) == []
    for name, position in [("a/1.avi", 0), ("a/1.avi", 39_999), ("b.avi", 450), ("a/2 .avi", 0)]:
        flip(path, entries[name].offset + position)
        assert pack.verify(path) == [f"{name!r}: its bytes are not those that were packed"]
        flip(path, entries[name].offset + position)
    assert pack.verify(path) == []


def flip(path, position):
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_that_disagrees_with_the_archive_is_found(pack, folder, kind):
    path = folder.with_name(f"v{kind}")
    pack.pack(folder, path)
    holder = path if kind == ".h5" else pack.index_of(path)
    holder.write_bytes(holder.read_bytes().replace(b'"a/1.avi":', b'"a/7.avi":'))
    assert pack.verify(path) == [
        "'a/7.avi': in the index, but not in the archive",
        "'a/1.avi': in the archive, but not in the index",
    ]


def test_places_are_compared_with_those_in_the_archive(pack):
    entries = {"a": Entry(10, 5, ""), "b": Entry(20, 5, "")}
    problems = pack._compare(entries, {"a": (10, 5), "b": (20, 6)})
    assert problems == ["'b': the index has another place than the archive"]


def test_a_damaged_header_in_a_tar_is_found_too(pack, folder):
    path = folder.with_name("v.tar")
    entries = pack.pack(folder, path)
    flip(path, entries["b.avi"].offset - 512)
    (problem,) = pack.verify(path)
    assert "no whole tar archive" in problem


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_archive_does_not_pass(pack, folder, kind):
    path = folder.with_name(f"v{kind}")
    pack.pack(folder, path)
    with path.open("r+b") as file:
        file.truncate(20_000)
    if kind == ".tar":  # whose index is whole
        problems = pack.verify(path)
        assert [problem.partition(":")[0] for problem in problems[:3]] == [
            "'a/1.avi'",
            "'a/2 .avi'",
            "'b.avi'",
        ]
        assert "no whole tar archive" in problems[3]
    else:
        with pytest.raises(archive.DecodeError, match="no whole HDF5 file"):
            pack.verify(path)


def test_what_has_no_hashes_can_not_be_verified(pack, folder):
    with h5py.File(folder.with_name("v.h5"), "w") as file:
        file["x"] = [1]
    with pytest.raises(ValueError, match="has no index with hashes"):
        pack.verify(folder.with_name("v.h5"))
    with pytest.raises(ValueError, match="is no archive"):
        pack.verify(folder)
    with pytest.raises(ValueError, match="is no archive"):
        pack.verify(folder.with_name("gone.h5"))


# --------------------------------------------------------------------------- command line
def test_the_archive_is_named_after_the_folder_and_what_to_do_is_said(
    pack, folder, capsys, monkeypatch
):
    monkeypatch.chdir(folder)
    pack.main(["."])
    out = capsys.readouterr().out
    assert files_in(folder.parent) == ["videos", "videos.h5"]
    assert f"{folder}.h5: 4 files, 0.0 MB, verified" in out
    assert "put videos.h5 instead" in out
    pack.main([f"{folder}/", "--out", f"{folder.parent}/t.tar"])
    assert "put videos.tar and videos.tar.index.json instead" in capsys.readouterr().out
    assert files_in(folder.parent) == ["t.tar", "t.tar.index.json", "videos", "videos.h5"]


def test_verify_lists_the_damaged_members_and_fails(pack, folder, capsys):
    entries = pack.pack(folder, folder.with_name("v.h5"))
    pack.main(["--verify", f"{folder.parent}/v.h5"])
    assert "all is well" in capsys.readouterr().out
    for name in ("a/1.avi", "b.avi"):
        flip(folder.with_name("v.h5"), entries[name].offset)
    with pytest.raises(SystemExit, match=r"error: .*v\.h5 is damaged, 2 problems") as ended:
        run_cli(lambda: pack.main(["--verify", f"{folder.parent}/v.h5"]))
    assert "\n" not in str(ended.value)
    assert capsys.readouterr().out.splitlines() == [
        f"'{name}': its bytes are not those that were packed" for name in ("a/1.avi", "b.avi")
    ]


def test_verify_goes_with_nothing_else(pack, folder, capsys):
    with pytest.raises(SystemExit):
        pack.main(["--verify", str(folder), "--force"])
    assert "--verify takes an archive and nothing else" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_one_line_and_leaves_nothing(folder, kind):
    out = folder.with_name(f"v{kind}")
    said = folder.with_name("said")
    process = multiprocessing.get_context("fork").Process(
        target=run_where_files_stay_small, args=([str(folder), "--out", str(out)], said)
    )
    process.start()
    process.join()
    assert process.exitcode == 1
    assert said.read_text() == f"error: {out} can't be written (File too large); is the disk full?"
    assert files_in(folder.parent) == ["said", "videos"]


def run_where_files_stay_small(argv, said):
    """Run the script with a limit on the size of a file, and write down how it ends."""
    sys.argv = [str(SCRIPT), *argv]
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as error:
        said.write_text(str(error))
        raise
