"""HMDB-51 from its release to a tested model, on a miniature of the official layout."""

import io
import json
import os
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import av
import pytest

from tests.conftest import load_module
from tests.data import miniature_hmdb51 as miniature
from tests.data.conftest import number_in
from vmp.config import load_cfg
from vmp.data import VideoReader, build_loader
from vmp.data.hmdb51 import NAMES, VARIANTS, class_names, hmdb51
from vmp.data.release import INDEX, read_index, write_index
from vmp.engine.run import run
from vmp.utils.cli import run_cli

ROOT = Path(__file__).resolve().parents[2]
SPLITS = [(variant, split) for variant in VARIANTS for split in ("train", "test")]
ALL_CLIPS = set(miniature.FIRST)
UNRAR = any(map(shutil.which, ("bsdtar", "unrar")))  # a 7z reads rar only with its own add-on
needs_unrar = pytest.mark.skipif(not UNRAR, reason="no bsdtar or unrar here to unpack a rar with")


@pytest.fixture(scope="module")
def tool():
    """Return datasets/hmdb51/prepare.py."""
    yield from load_module("hmdb51_prepare", ROOT / "datasets" / "hmdb51" / "prepare.py")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Return the folders of the videos and of the split files; not to be changed."""
    return miniature.write_release(tmp_path_factory.mktemp("hmdb51"))


@pytest.fixture
def prepare(tool, release, tmp_path):
    """Return a function that prepares the miniature, or parts given instead; it returns OUT."""

    def call(videos=release[0], splits=release[1], *options, out=tmp_path / "out"):
        paths = ["--videos", videos, "--splits", splits, "--out", out]
        tool.main([*map(str, paths), "--any-count", *options])
        return out

    return call


def read_all(root):
    return {key: hmdb51(str(root), key[1], key[0]) for key in SPLITS}


def check_records(root, videos):
    """Check every record of every split against the release, and that its own clip is there."""
    for (variant, split), records in read_all(root).items():
        expected = miniature.records_of(variant, split)
        assert [(NAMES[record.label], record.id) for record in records] == expected
        for record in records:
            assert Path(record.path) == videos / record.id
            assert (record.start, record.stop) == (0, None)
            assert record.excluded == ("absent" if record.id == miniature.ABSENT else "")
    for clip in ALL_CLIPS - {miniature.ABSENT}:
        assert first_number(videos / clip) == miniature.FIRST[clip]


def first_number(path):
    with av.open(str(path), metadata_errors="ignore") as container:
        return number_in(next(container.decode(video=0)).to_ndarray(format="rgb24"))


# --------------------------------------------------------------------------- the unpacked tree
def test_an_unpacked_tree_is_indexed_where_it_is_and_stays_as_it_is(prepare, release):
    videos, splits = release

    def state():
        return {
            path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
            for folder in (videos, splits)
            for path in [folder, *folder.rglob("*")]
        }

    before = state()
    out = prepare()
    assert state() == before
    assert not (out / "videos").exists()
    check_records(out, videos)


def test_the_miniature_has_what_makes_the_release_hard():
    names = [clip.partition("/")[2] for clip in ALL_CLIPS]
    assert {name[0] for name in names} >= set("-#(")
    assert set("![]()#&+;~@") <= set("".join(names))
    counts = [len(miniature.records_of(*key)) for key in SPLITS]
    assert len(set(counts)) == len(counts)
    labels = {name for name, _ in miniature.records_of("1", "train")}
    assert {"climb", "climb_stairs", "kick", "kick_ball", "push"} <= labels
    assert {"sit", "situp", "sword", "sword_exercise", "draw_sword"} <= labels


def test_what_is_missing_and_what_is_too_much_is_told(prepare, capsys):
    out = prepare()
    told = capsys.readouterr().out
    assert (out / "missing.txt").read_text() == f"{miniature.ABSENT}: absent\n"
    assert f"warning: missing of {len(ALL_CLIPS)} clips" in told
    assert f"  {miniature.ABSENT}: absent\n" in told
    unlisted = told.partition("not in any split, left alone (6):\n")[2].splitlines()
    assert [line.strip() for line in unlisted[:6]] == miniature.UNLISTED
    num_tested = len(miniature.records_of("1", "test"))
    assert f"{num_tested - 1} of {num_tested} test clips" in told


def test_the_index_may_lie_among_the_videos(prepare, release, tmp_path, capsys):
    shutil.copytree(release[0], tmp_path / "videos")
    for _ in range(2):
        check_records(prepare(tmp_path / "videos", out=tmp_path / "videos"), tmp_path / "videos")
        assert "left alone (6):" in capsys.readouterr().out


def test_the_list_of_the_missing_goes_when_nothing_is_missing(prepare, release, tmp_path):
    videos = tmp_path / "copy"
    shutil.copytree(release[0], videos)
    out = prepare(videos)
    assert (out / "missing.txt").is_file()
    miniature.write_clip(videos / miniature.ABSENT, 20, miniature.FIRST[miniature.ABSENT])
    prepare(videos)
    assert not (out / "missing.txt").exists()
    assert not [r for records in read_all(out).values() for r in records if r.excluded]


def test_a_clip_in_neither_set_is_in_no_split_but_known(prepare, capsys):
    unused = "fencing/1899_Hamlet__the_Fencing_Scene_with_Laertes_fencing_f_cm_np2_le_med_0.avi"
    assert unused in ALL_CLIPS
    out = prepare()
    ids = [record.id for records in read_all(out).values() for record in records]
    assert unused not in ids
    assert unused not in capsys.readouterr().out


def test_a_short_clip_and_a_title_that_is_not_utf_8_are_read(release):
    videos, _ = release
    assert len(VideoReader(videos / miniature.SHORT)) == 17
    with pytest.raises(UnicodeDecodeError):
        av.open(str(videos / miniature.LATIN_1))
    reader = VideoReader(videos / miniature.LATIN_1)
    first = miniature.FIRST[miniature.LATIN_1]
    assert [number_in(frame) for frame in reader.read([0, 19])] == [first, first + 19]


def test_no_video_at_all_is_an_error_of_one_line(tool, release, tmp_path):
    (tmp_path / "videos" / "wave").mkdir(parents=True)
    (tmp_path / "videos" / "wave" / "other_wave_f_cm_np1_fr_med_0.avi").touch()
    arguments = ["--videos", str(tmp_path / "videos"), "--splits", str(release[1])]
    arguments += ["--out", str(tmp_path / "out"), "--any-count"]
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: tool.main(arguments))
    assert str(ended.value).startswith(f"error: none of the {len(ALL_CLIPS)} clips is in")
    assert not (tmp_path / "out" / INDEX).exists()


def test_a_folder_above_and_a_class_unpacked_into_itself_are_found(prepare, release, tmp_path):
    (tmp_path / "data" / "more").mkdir(parents=True)
    videos = tmp_path / "data" / "more" / "videos"
    shutil.copytree(release[0], videos)
    shutil.move(videos / "hug", videos / "inner")
    (videos / "hug").mkdir()
    shutil.move(videos / "inner", videos / "hug" / "hug")
    hugs = [r for r in hmdb51(str(prepare(tmp_path / "data")), "train") if r.id[:4] == "hug/"]
    assert [Path(record.path).parent for record in hugs] == [videos / "hug" / "hug"] * 2
    assert all(Path(record.path).is_file() for record in hugs)


def test_two_trees_side_by_side_are_not_mixed(prepare, release, tmp_path):
    for name in ("hmdb51_org", "hmdb51_sta"):
        shutil.copytree(release[0], tmp_path / "data" / name)
    with pytest.raises(ValueError, match=r"classes more than once.*hmdb51_org and .*hmdb51_sta"):
        prepare(tmp_path / "data")


def test_a_file_name_that_is_no_text_is_told_too(prepare, release, tmp_path, capsys):
    shutil.copytree(release[0], tmp_path / "videos")
    stray = os.fsencode(tmp_path / "videos") + b"/run/caf\x8c.avi"
    with open(stray, "wb"):
        pass
    prepare(tmp_path / "videos")
    assert "run/caf\\x8c.avi" in capsys.readouterr().out


def test_a_scan_excludes_what_does_not_decode_with_the_reason(prepare, release, tmp_path, capsys):
    videos = tmp_path / "videos"
    shutil.copytree(release[0], videos)
    empty, text = miniature.SHORT, miniature.LATIN_1
    (videos / empty).write_bytes(b"")
    (videos / text).write_text("not found")
    unscanned = read_all(prepare(videos))
    assert {r.id for rs in unscanned.values() for r in rs if r.excluded} == {miniature.ABSENT}
    out = prepare(videos, release[1], "--scan", "--workers", "1")
    excluded = {r.id: r.excluded for rs in read_all(out).values() for r in rs if r.excluded}
    assert excluded.keys() == {miniature.ABSENT, empty, text}
    assert excluded.pop(miniature.ABSENT) == "absent"
    assert all(reason != "absent" and "\n" not in reason for reason in excluded.values())
    listed = (out / "missing.txt").read_text().splitlines()
    assert listed == [
        f"{clip}: {excluded.get(clip, 'absent')}"
        for clip in miniature.FIRST
        if clip in (miniature.ABSENT, *excluded)
    ]
    assert "(3):" in capsys.readouterr().out


# --------------------------------------------------------------------------- archives
def zip_tree(folder, target, inside=""):
    """Zip a folder as other systems do, with their hidden files."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                file.write(path, f"{inside}{name}")
                parent, _, last = f"__MACOSX/{inside}{name}".rpartition("/")
                file.writestr(f"{parent}/._{last}", b"resource fork")
    return target


def zip_of_class_zips(videos, folder):
    with zipfile.ZipFile(folder / "hmdb51_org.zip", "w") as outer:
        for name in miniature.CLIPS:
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as inner:
                for clip in sorted((videos / name).glob("*.avi")):
                    inner.write(clip, clip.name)  # flat, without the folder of the class
            outer.writestr(f"{name}.zip", packed.getvalue())
    return folder / "hmdb51_org.zip"


def official_rar(videos, folder):
    rars = miniature.write_class_rars(videos, folder / "rars")
    members = [(path.name, path.read_bytes()) for path in rars.values()]
    shutil.rmtree(folder / "rars")
    return miniature.write_rar(folder / "hmdb51_org.rar", members)


def folder_of_rars(videos, folder):
    miniature.write_class_rars(videos, folder / "rars")
    (folder / "rars" / ".DS_Store").touch()
    return folder / "rars"


def zip_around(make):
    def wrapped(videos, folder):
        (folder / "inner").mkdir()
        make(videos, folder / "inner")
        return zip_tree(folder / "inner", folder / "mirror.zip", "hmdb/")

    return wrapped


def rar_of_tree(videos, folder):
    clips = sorted(videos.glob("*/*.avi"))
    members = [(f"hmdb51_org/{p.parent.name}/{p.name}", p.read_bytes()) for p in clips]
    return miniature.write_rar(folder / "tree.rar", members)


def downloads(videos, folder):
    official_rar(videos, folder)
    return folder


PACKINGS = {
    "zip of the tree": lambda videos, folder: zip_tree(videos, folder / "v.zip", "hmdb51_org/"),
    "zip of zips": zip_of_class_zips,
    "the official rar": official_rar,
    "a folder with the official rar": downloads,
    "a folder of class rars": folder_of_rars,
    "zip of class rars": zip_around(folder_of_rars),
    "zip of the official rar": zip_around(official_rar),
    "rar of the tree": rar_of_tree,
}


@pytest.mark.parametrize(
    "packing",
    [pytest.param(name, marks=needs_unrar if "rar" in name else ()) for name in PACKINGS],
)
def test_every_packing_gives_the_records_of_the_tree(packing, prepare, release, tmp_path):
    folder = tmp_path / "downloaded"
    folder.mkdir()
    source = PACKINGS[packing](release[0], folder)
    out = prepare(source)
    check_records(out, out / "videos")
    assert {path.name for path in (out / "videos").iterdir()} == set(miniature.CLIPS)
    assert {path.name for path in out.iterdir()} == {INDEX, "missing.txt", "videos"}
    # index and videos can move together
    shutil.move(out, tmp_path / "elsewhere")
    check_records(tmp_path / "elsewhere", tmp_path / "elsewhere" / "videos")


@pytest.mark.parametrize("packing", ["zip of zips", "zip of the tree"])
def test_a_stopped_call_goes_on_with_the_class_it_had_begun(
    packing, tool, prepare, release, tmp_path, monkeypatch
):
    source = PACKINGS[packing](release[0], tmp_path)
    work = {"zip of zips": "unpack", "zip of the tree": "_extract"}[packing]
    real, begun = getattr(tool, work), []

    class KilledError(BaseException):
        pass

    def stopping(archive, *rest):
        real(archive, *rest)  # so that the class is there in full, but not yet in its place
        begun.append(archive)
        if len(begun) == 6:
            raise KilledError

    monkeypatch.setattr(tool, work, stopping)
    out = tmp_path / "out"
    with pytest.raises(KilledError):
        prepare(source)
    whole = {path.name for path in (out / "videos").iterdir() if path.name[0] != "."}
    # the first of the zip of zips is the outer one
    assert len(whole) == (4 if packing == "zip of zips" else 5)
    assert not (out / INDEX).exists()
    times = {name: (out / "videos" / name).stat().st_mtime_ns for name in whole}

    again = []
    monkeypatch.setattr(tool, work, lambda *args: (again.append(args), real(*args)))
    prepare(source)
    assert len(again) == len(miniature.CLIPS) - len(whole)
    assert times == {name: (out / "videos" / name).stat().st_mtime_ns for name in whole}
    check_records(out, out / "videos")
    again.clear()
    prepare(source)
    assert again == []


@pytest.mark.parametrize("packing", ["zip of zips", "folder of zips"])
def test_a_stopped_call_that_writes_below_the_archives_goes_on_too(
    packing, tool, prepare, release, tmp_path, monkeypatch
):
    source = zip_of_class_zips(release[0], tmp_path)
    if packing == "folder of zips":
        tool.unpack(source, tmp_path)
        source.unlink()
    real, calls = tool.unpack, []

    def stopping(*args):
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(tool, "unpack", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path)
    out = prepare(tmp_path)
    check_records(out, out / "videos")
    # and when the archives are gone, what is unpacked is enough
    for path in tmp_path.glob("*.zip"):
        path.unlink()
    check_records(prepare(tmp_path), out / "videos")
    check_records(prepare(out / "videos"), out / "videos")


def test_a_class_left_packed_between_folders_is_unpacked(prepare, release, tmp_path):
    videos = tmp_path / "copy"
    shutil.copytree(release[0], videos)
    zip_tree(videos / "run", videos / "run.zip", "run/")
    shutil.rmtree(videos / "run")
    before = sorted(videos.rglob("*"))
    out = prepare(videos)
    (record,) = [r for r in hmdb51(str(out), "train") if r.id.startswith("run/")]
    assert Path(record.path) == out / "videos" / record.id
    assert first_number(record.path) == miniature.FIRST[record.id]
    assert sorted(videos.rglob("*")) == before
    first = (out / INDEX).read_bytes()
    assert (prepare(videos) / INDEX).read_bytes() == first


def test_an_archive_that_was_downloaded_again_is_unpacked_again(prepare, release, tmp_path):
    source = zip_of_class_zips(release[0], tmp_path)
    good = source.read_bytes()
    with zipfile.ZipFile(source, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("sword.zip", b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"sword\.zip can't be unpacked"):
        prepare(source)
    source.write_bytes(good)
    out = prepare(source)
    check_records(out, out / "videos")


def test_what_is_no_archive_or_a_broken_one_is_refused(prepare, release, tmp_path):
    page = tmp_path / "hmdb51_org.rar"
    page.write_text("<html>404</html>")
    with pytest.raises(ValueError, match="neither a rar nor a zip"):
        prepare(page)
    broken = zip_tree(release[0], tmp_path / "broken.zip")
    broken.write_bytes(broken.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="can't be unpacked"):
        prepare(broken)
    empty = tmp_path / "classes" / "hug.zip"
    empty.parent.mkdir()
    with zipfile.ZipFile(empty, "w") as file:
        file.writestr("hug/readme.txt", b"")
    with pytest.raises(ValueError, match=r"hug\.zip has no \.avi of class hug"):
        prepare(empty.parent)
    with pytest.raises(ValueError, match="no folder <class>/"):
        prepare(release[1])
    with pytest.raises(ValueError, match="does not exist"):
        prepare(tmp_path / "nowhere")


@pytest.mark.parametrize("member", ["../evil.avi", "/tmp/evil.avi", "run/../../evil.avi"])
def test_a_zip_whose_members_leave_the_folder_is_refused(member, prepare, tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr("run/a.avi", b"")
        file.writestr(member, b"")
    with pytest.raises(ValueError, match="would leave the folder"):
        prepare(tmp_path / "evil.zip")
    assert not list(tmp_path.rglob("*.avi"))


# --------------------------------------------------------------------------- programs for rar
@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Return a function (name, script) that puts a program on a PATH that holds no other."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def add(name, script):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return add


def test_without_a_program_for_rar_the_packages_are_named(prepare, release, tmp_path, programs):
    source = official_rar(release[0], tmp_path)
    with pytest.raises(ValueError, match=r"libarchive-tools.*unrar.*p7zip-full"):
        prepare(source)


def test_a_program_that_can_not_is_followed_by_the_next(tool, tmp_path, programs):
    archive = miniature.write_rar(tmp_path / "-o odd;name.rar", [])
    told = tmp_path / "arguments"
    programs("unrar", ": >\"$6/half.avi\"; echo working; echo 'no such method' >&2; exit 1")
    programs("7zz", "exit 0")  # does nothing
    with pytest.raises(ValueError, match="unrar: no such method; 7zz: no file came out"):
        tool.unpack(archive, tmp_path / "folder")
    programs("7z", f"printf '%s\\n' \"$@\" >'{told}'; : >\"${{4#-o}}/clip.avi\"")
    tool.unpack(archive, tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["clip.avi"]
    *options, last = told.read_text().splitlines()
    assert (options[-1], last) == ("--", str(archive))


@needs_unrar
def test_a_rar_that_is_cut_off_is_refused_and_its_class_done_again(prepare, release, tmp_path):
    rars = miniature.write_class_rars(release[0], tmp_path / "rars")
    data = rars["push"].read_bytes()
    rars["push"].write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"push\.rar can't be unpacked"):
        prepare(tmp_path / "rars")
    videos = tmp_path / "out" / "videos"
    assert (videos / "kick").is_dir()
    assert not (videos / "push").exists()
    miniature.write_class_rars(release[0], tmp_path / "rars")
    check_records(prepare(tmp_path / "rars"), videos)


# --------------------------------------------------------------------------- split files
@pytest.mark.parametrize(
    "line", ["{name} {flag}\r\n", "{name}\t{flag}  \n\n", "  {name}  {flag} \n"]
)
def test_line_ends_and_blanks_do_not_matter(line, tool, release, tmp_path):
    miniature.write_splits(tmp_path / "splits", line)
    (tmp_path / "splits" / "class_list.txt").write_text("brush_hair\n")
    marked = tmp_path / "splits" / "run_test_split1.txt"
    marked.write_bytes(b"\xef\xbb\xbf" + marked.read_bytes())  # as some editors begin a file
    (tmp_path / "splits" / "._hug_test_split1.txt").write_bytes(b"\x00\x05\x16\x07")
    assert tool.read_split_files(tmp_path / "splits") == tool.read_split_files(release[1])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run_test_split1.txt", "a.avi 3 \n", r"run_test_split1\.txt:1: 'a\.avi 3 '"),
        ("run_test_split1.txt", "a.avi\n", "must be the name of a clip"),
        ("run_test_split1.txt", "a.avi 1 \na.avi 2 \n", r"txt:2: 'a\.avi 2 ' must be .* once"),
        ("run_test_split1.txt", "../a.avi 1 \n", "must be the name of a clip"),
        ("run_test_split2.txt", "other.avi 1 \n", "must list the same clips"),
        ("wave_test_split1.txt", "a.avi 1 \n", r"no file wave_test_split2\.txt"),
        ("juggle_test_split1.txt", "a.avi 1 \n", "juggle, no class of HMDB-51"),
    ],
)
def test_split_files_that_are_not_as_they_should_be_are_refused(
    name, text, message, tool, tmp_path
):
    miniature.write_splits(tmp_path / "splits")
    (tmp_path / "splits" / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        tool.read_split_files(tmp_path / "splits")


@pytest.mark.parametrize(
    "kind", ["above", "zip", "in a folder", pytest.param("rar", marks=needs_unrar)]
)
def test_split_files_may_be_packed_or_deeper(kind, prepare, release, tmp_path):
    folder, name = tmp_path / "given", release[1].name
    folder.mkdir()
    given = folder
    if kind == "above":
        shutil.copytree(release[1], folder / "x" / name)
    elif kind == "rar":
        members = [(f"{name}/{path.name}", path.read_bytes()) for path in release[1].iterdir()]
        given = miniature.write_rar(folder / "test_train_splits.rar", members)
    else:
        packed = zip_tree(release[1], folder / "test_train_splits.zip", f"{name}/")
        given = packed if kind == "zip" else folder
    out = prepare(release[0], given)
    check_records(out, release[0])
    assert {path.name for path in out.iterdir()} == {INDEX, "missing.txt"}


def test_a_folder_without_split_files_is_refused(prepare, release):
    with pytest.raises(ValueError, match="no files <class>_test_split<1, 2 or 3>"):
        prepare(release[0], release[0])


def test_a_part_of_the_release_must_be_asked_for(tool, release, tmp_path):
    arguments = ["--videos", str(release[0]), "--splits", str(release[1]), "--out", str(tmp_path)]
    with pytest.raises(ValueError, match="of 29 of 51 classes, as catch; .*--any-count"):
        tool.main(arguments)


@pytest.mark.data
def test_the_official_split_files_have_the_official_counts(tool, shared):
    annotations = shared / "data" / "annotations"
    clips = tool.read_split_files(annotations / "hmdb51_testTrainMulti_7030_splits")
    tool.check_counts(clips)
    assert len(clips) == len({clip.id for clip in clips}) == 6766
    known = json.loads((annotations / "hmdb51_classes.json").read_text())["classes"]
    assert tuple(each["name"] for each in known) == NAMES == class_names("")
    per_class = Counter(clip.folder for clip in clips)
    assert [per_class[name] for name in NAMES] == [each["clips_total"] for each in known]
    for split in range(3):
        assert Counter(clip.flags[split] for clip in clips) == {"1": 3570, "2": 1530, "0": 1666}
        flags = Counter((clip.folder, clip.flags[split]) for clip in clips)
        assert {(flags[name, "1"], flags[name, "2"]) for name in NAMES} == {(70, 30)}


@pytest.mark.data
def test_one_line_changed_in_the_official_files_is_noticed(tool, shared, tmp_path):
    folder = shared / "data" / "annotations" / "hmdb51_testTrainMulti_7030_splits"
    clips = tool.read_split_files(folder)
    swapped = [  # one from training to testing in split 2, and another one back
        *(clip._replace(flags=("1", "2", "1")) for clip in clips if clip.flags == ("1", "1", "1")),
        *(clip for clip in clips if clip.flags != ("1", "1", "1")),
    ]
    with pytest.raises(ValueError, match="split 2 has .* the official one 3570 train"):
        tool.check_counts(swapped)
    first = next(i for i, c in enumerate(clips) if c.folder == "clap" and c.flags[0] == "1")
    second = next(i for i, c in enumerate(clips) if c.folder == "wave" and c.flags[0] == "2")
    for place, flag in ((first, "2"), (second, "1")):
        clips[place] = clips[place]._replace(flags=(flag, *clips[place].flags[1:]))
    with pytest.raises(ValueError, match="69 clips to train and 31 to test of class clap"):
        tool.check_counts(clips)
    with pytest.raises(ValueError, match="of 1 of 51 classes, as wave"):
        tool.check_counts([clip for clip in clips if clip.folder != "wave"])


@pytest.mark.data
def test_every_odd_name_survives_the_index(tool, shared, tmp_path):
    annotations = shared / "data" / "annotations"
    odd = json.loads((annotations / "hmdb51_odd_names.json").read_text())["files"]
    names = {f"{each['class']}/{each['name']}" for each in odd}
    assert len(names) == 562
    clips = tool.read_split_files(annotations / "hmdb51_testTrainMulti_7030_splits")
    assert names <= {clip.id for clip in clips}
    videos = tool.Videos(tmp_path / "videos", {})
    write_index(tmp_path, "hmdb51", videos.root, tool.make_records(clips, videos, {}))
    ids = {}
    for variant, split in SPLITS:
        for record in read_index(tmp_path, "hmdb51", split, variant, script=""):
            ids[record.id] = record
    used = {clip.id for clip in clips if set(clip.flags) != {"0"}}
    assert ids.keys() == used
    assert len(names & used) > 400  # the others are in no split
    for name in names & used:
        assert Path(ids[name].path) == tmp_path / "videos" / name
        assert NAMES[ids[name].label] == name.partition("/")[0]


# --------------------------------------------------------------------------- loader and engine
def test_the_default_is_split_1_and_others_are_refused(prepare):
    out = str(prepare())
    assert hmdb51(out, "test") == hmdb51(out, "test", "1") != hmdb51(out, "test", "2")
    for variant in ("0", "4", "crossset"):
        with pytest.raises(ValueError, match="there are: 1, 2, 3"):
            hmdb51(out, "test", variant)


def test_an_unprepared_folder_names_the_script(release):
    with pytest.raises(ValueError, match=r"datasets/hmdb51/prepare\.py"):
        hmdb51(str(release[0]), "train")


def test_the_names_are_in_the_order_of_the_labels():
    assert len(NAMES) == 51
    assert list(NAMES) == sorted(set(NAMES))
    assert class_names("anywhere", "2") == NAMES


@pytest.mark.usefixtures("_one_thread")
def test_the_prepared_release_trains_and_tests_and_the_absent_clip_is_counted(prepare, tmp_path):
    values = {
        "DATA.PATH_TO_DATA_DIR": prepare(),
        "DATA.SPLIT": 3,
        "OUTPUT_DIR": tmp_path / "run",
        "MODEL.NAME": "x3d",
        "X3D.WIDTH_FACTOR": 1.0,
        "X3D.DEPTH_FACTOR": 1.0,
        "DATA.NUM_FRAMES": 4,
        "DATA.SAMPLING_RATE": 2,
        "DATA.TRAIN_CROP_SIZE": 32,
        "DATA.TEST_CROP_SIZE": 32,
        "DATA.TRAIN_JITTER_SCALES": [32, 36],
        "DATA_LOADER.NUM_WORKERS": 0,
        "TRAIN.BATCH_SIZE": 8,
        "X3D.DIM_C5": 64,
        "TRAIN.EVAL_PERIOD": 0,
        "TEST.BATCH_SIZE": 8,
        "TEST.NUM_ENSEMBLE_VIEWS": 2,
        "TEST.NUM_SPATIAL_CROPS": 1,
        "SOLVER.MAX_EPOCH": 1,
        "TENSORBOARD": False,
    }
    opts = [str(text) for pair in values.items() for text in pair]
    run(load_cfg(ROOT / "configs" / "base" / "HMDB51.yaml", opts))
    results = json.loads((tmp_path / "run" / "test_results.json").read_text())
    tested = Counter(name for name, _ in miniature.records_of("3", "test"))
    assert ("clap", miniature.ABSENT) in miniature.records_of("3", "test")
    assert results["counts"]["videos"] == tested.total()
    assert results["counts"]["evaluated_videos"] == tested.total() - 1
    (entry,) = results["not_evaluated"]
    assert (entry["id"], entry["reason"], entry["views"]) == (miniature.ABSENT, "absent", 2)
    videos = {each["name"]: each["count"] for each in results["per_class"]}
    assert list(videos) == list(NAMES)
    assert {name: count for name, count in videos.items() if count} == tested - Counter(["clap"])


def test_training_leaves_the_absent_clip_out(prepare):
    opts = ["DATA.PATH_TO_DATA_DIR", str(prepare()), "DATA.SPLIT", "2", "TRAIN.BATCH_SIZE", "4"]
    cfg = load_cfg(ROOT / "configs" / "base" / "HMDB51.yaml", opts)
    listed = [clip for _, clip in miniature.records_of("2", "train")]
    assert miniature.ABSENT in listed
    listed.remove(miniature.ABSENT)
    assert [record.id for record in build_loader(cfg, "train").records] == listed
