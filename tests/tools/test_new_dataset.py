"""tools/new_dataset.py: what it finds, how it parts, what it writes, what it refuses."""

import os
import shlex
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import new_dataset
import new_dataset_write
import pytest
import run_net
import yaml
from new_dataset_find import Video, find_videos
from new_dataset_recipe import Contents, baseline
from new_dataset_split import split_videos

from tests.conftest import ROOT
from tests.data.conftest import write_video
from vmp.config import load_cfg
from vmp.data.csv_list import class_names, csv
from vmp.engine.checkpoint import list_checkpoints
from vmp.utils.cli import run_cli


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    """Look into the videos here: processes take seconds to start."""
    monkeypatch.setattr(
        new_dataset_write, "examine_all", lambda jobs, look, workers: map(look, jobs)
    )


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Ten short videos, each another."""
    folder = tmp_path_factory.mktemp("clips")
    return [write_video(folder / f"{n}.mp4", 20, first=50 * n) for n in range(10)]


def lay(root, clips, names):
    """Put links to clips, each another, under these names."""
    for clip, name in zip(clips, names, strict=False):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(clip)
    return root


@pytest.fixture
def folder(tmp_path, clips):
    """Two classes of four videos."""
    names = [f"{label}/{number}.mp4" for label in ("jump", "run") for number in range(4)]
    return lay(tmp_path / "videos", clips, names)


def make(source, *more, out=None):
    out = out or source.parent / "out"
    new_dataset.main([str(source), "--out", str(out), *map(str, more)])
    return out


def refusal(*words):
    with pytest.raises(SystemExit) as caught:
        run_cli(lambda: new_dataset.main([str(word) for word in words]))
    (line,) = str(caught.value.code).splitlines()
    assert "--debug" not in line  # nothing unforeseen
    return line


def listed(out, part):
    return [(Path(each.path).name, each.label) for each in csv(str(out), part)]


# --------------------------------------------------------------------------- a folder
def test_a_folder_of_class_folders_becomes_lists_that_the_data_set_reads(folder, clips):
    out = make(folder, "--test-share", "0.25")
    assert class_names(str(out)) == ("jump", "run")
    assert Counter(label for _, label in listed(out, "train")) == {0: 3, 1: 3}
    assert Counter(label for _, label in listed(out, "test")) == {0: 1, 1: 1}
    records = csv(str(out), "train") + csv(str(out), "test")
    assert len({each.path for each in records}) == 8
    assert all(Path(each.path).parent.name == ("jump", "run")[each.label] for each in records)


def test_nothing_is_written_beside_the_videos(folder):
    def state():
        return {path: path.lstat().st_mtime_ns for path in [folder, *folder.rglob("*")]}

    before = state()
    make(folder)
    assert state() == before


def test_odd_names_come_back_as_they_are_and_others_are_passed_over(tmp_path, clips, capsys):
    names = ["two words/a b.mp4", "two words/UPPER.MP4", "two words/in/deep/x.avi"]
    names += ["grüßen é/1,5 m 3.mp4", "grüßen é/2.MoV", "grüßen é/'q' #%.mkv"]
    root = lay(tmp_path / "my videos", clips, names)
    for other in ("two words/notes.txt", "two words/.hidden.mp4", ".git/class/x.mp4", "top.mp4"):
        (root / other).parent.mkdir(parents=True, exist_ok=True)
        (root / other).write_text("no video")
    (root / "empty").mkdir()
    out = make(root)
    records = csv(str(out), "train") + csv(str(out), "test")
    assert {each.path for each in records} == {str(root / name) for name in names}
    assert class_names(str(out)) == ("grüßen é", "two words")
    told = capsys.readouterr().out
    assert "the folder 'empty' has no videos" in told
    assert "1 x .txt" in told


def test_a_name_that_no_list_can_hold_is_left_out_and_told(tmp_path, clips, capsys):
    root = lay(tmp_path / "v", clips, ["a/1.mp4", "a/2.mp4", "a/3\n4.mp4", "b/1.mp4", "b/2.mp4"])
    name = os.fsdecode(b"b/caf\xe9.mp4")
    lay(root, clips[6:], [name])
    out = make(root)
    assert len(csv(str(out), "train") + csv(str(out), "test")) == 4
    assert "2 left out: a line of a list can't hold their names" in capsys.readouterr().out


def test_where_no_name_can_be_listed_the_line_says_why(tmp_path, clips):
    above = tmp_path / os.fsdecode(b"caf\xe9")
    root = lay(above / "v", clips, ["a/1.mp4", "a/2.mp4", "b/1.mp4", "b/2.mp4"])
    line = refusal(root, "--out", tmp_path / "out")
    assert "has no video that can be listed: 4 left out" in line
    assert f"e.g. {str(root / 'a' / '1.mp4')!r}" in line
    assert not (tmp_path / "out").exists()


def test_a_class_of_which_no_name_can_be_listed_is_none(tmp_path, clips):
    root = lay(tmp_path / "v", clips, ["a/1.mp4", "a/2.mp4", "b/1\n.mp4", "b/2\n.mp4"])
    line = refusal(root, "--out", tmp_path / "out")
    assert "only one class, 'a'; each class needs its own folder" in line
    assert "(2 left out: " in line


def test_a_class_in_two_spellings_of_unicode_is_one(tmp_path, clips):
    names = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    root = lay(tmp_path / "v", clips, [f"{names[i % 2]}/{i}.mp4" for i in range(4)])
    lay(root, clips[4:], ["x/1.mp4", "x/2.mp4"])
    assert class_names(str(make(root))) == ("x", names[0])  # in the order of their code points


def test_links_are_followed_but_not_in_circles(tmp_path, clips):
    kept = lay(tmp_path / "elsewhere", clips, ["1.mp4", "2.mp4"])
    root = lay(tmp_path / "v", clips[2:], ["b/1.mp4", "b/2.mp4"])
    (root / "a").symlink_to(kept)
    (root / "b" / "again").symlink_to(root / "b")
    out = make(root)
    assert len(csv(str(out), "train") + csv(str(out), "test")) == 4


def test_paths_are_relative_where_the_videos_lie_in_the_output_folder(folder, tmp_path):
    make(folder, out=folder)
    assert not any(line.startswith("/") for line in (folder / "train.csv").read_text().split("\n"))
    folder.rename(tmp_path / "moved")
    assert all(Path(each.path).is_file() for each in csv(str(tmp_path / "moved"), "train"))


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "VAL"), ("training", "validation")])
def test_a_split_that_is_there_is_kept(names, tmp_path, clips):
    train, test = names
    places = [f"{train}/a/1.mp4", f"{train}/b/2.mp4", f"{test}/a/3.mp4", f"{test}/b/4.mp4"]
    out = make(lay(tmp_path / "v", clips, places))
    assert listed(out, "train") == [("1.mp4", 0), ("2.mp4", 1)]
    assert listed(out, "test") == [("3.mp4", 0), ("4.mp4", 1)]


def test_of_three_parts_the_validation_is_told_to_be_unused(tmp_path, clips, capsys):
    places = [f"{part}/{label}/1.mp4" for part in ("train", "val", "test") for label in "ab"]
    out = make(lay(tmp_path / "v", clips, places))
    assert len(csv(str(out), "train")) == len(csv(str(out), "test")) == 2
    assert "2 marked val are not used" in capsys.readouterr().out


def test_what_is_read_of_a_broken_video_is_told_and_it_is_left_out(folder, capsys):
    (folder / "jump" / "broken.mp4").write_text("this is a text")
    (folder / "run" / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    out = make(folder)
    told = capsys.readouterr().out
    assert "2 left out, which can't be read" in told
    assert "jump/broken.mp4: " in told
    assert "run/gone.mp4: there is no such file" in told
    assert len(csv(str(out), "train") + csv(str(out), "test")) == 8


def test_copies_stay_on_one_side_and_two_classes_of_one_video_are_told(tmp_path, clips, capsys):
    root = lay(tmp_path / "v", clips, [f"{c}/{n}.mp4" for c in "ab" for n in range(4)])
    lay(root, [clips[0]] * 3 + [clips[1]], ["a/copy.mp4", "a/more.mp4", "a/last.mp4", "b/x.mp4"])
    for seed in range(4):
        out = make(root, "--seed", seed, "--force")
        parts = {part: {name for name, _ in listed(out, part)} for part in ("train", "test")}
        copies = {"copy.mp4", "more.mp4", "last.mp4"}
        assert any(copies <= names for names in parts.values())
    assert "the same video in two classes: a/1.mp4 and b/x.mp4" in capsys.readouterr().out


# --------------------------------------------------------------------------- a CSV file
def csv_of(tmp_path, clips, lines, name="list.csv"):
    for clip in clips[:6]:
        link = tmp_path / clip.name
        if not link.exists():
            link.symlink_to(clip)
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path


PLAIN = ["0.mp4,b", "1.mp4,b", "2.mp4,a", "3.mp4,a"]


@pytest.mark.parametrize(
    "lines",
    [
        PLAIN,
        ["path,label", *PLAIN],
        ["my videos,what", *PLAIN],  # a title that nobody knows
        ["", "label,frames,video", *(f"{x[-1]},20,{x[:-2]}" for x in PLAIN), ""],
        [x.replace(",", "\t") for x in PLAIN],
        [x.replace(",", " ; ") for x in PLAIN],
        [x.replace(",", " ") for x in PLAIN],
        [f'"{x[:-2]}",{x[-1]}' for x in PLAIN],
    ],
)
def test_a_csv_in_any_usual_form_gives_the_same(lines, tmp_path, clips):
    out = make(csv_of(tmp_path, clips, lines))
    assert class_names(str(out)) == ("a", "b")
    records = csv(str(out), "train") + csv(str(out), "test")
    assert {(Path(e.path).name, e.label) for e in records} == {
        ("0.mp4", 1), ("1.mp4", 1), ("2.mp4", 0), ("3.mp4", 0),
    }  # fmt: skip


def test_a_first_line_that_only_looks_like_a_title_is_told(tmp_path, clips, capsys):
    make(csv_of(tmp_path, clips, ["", "clip1,a", *PLAIN]))
    assert "! line 2 was taken for a title: there is no file 'clip1'" in capsys.readouterr().out
    make(csv_of(tmp_path, clips, ["path,label", *PLAIN]), "--force")
    assert "title" not in capsys.readouterr().out


def test_numbers_of_classes_keep_their_order_and_need_not_be_whole(tmp_path, clips):
    lines = ["0.mp4,10", "1.mp4,10", "2.mp4,9", "3.mp4,9", "4.mp4,1", "5.mp4,1"]
    assert class_names(str(make(csv_of(tmp_path, clips, lines)))) == ("1", "9", "10")


def test_a_column_split_is_kept(tmp_path, clips):
    titles = "path,label,split"
    lines = [titles, "0.mp4,a,train", "1.mp4,b,train", "2.mp4,a,test", "3.mp4,b,test"]
    out = make(csv_of(tmp_path, clips, lines))
    assert listed(out, "test") == [("2.mp4", 0), ("3.mp4", 1)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0.mp4,a", "a,b,c.mp4"], "list.csv:2: 'a,b,c.mp4' is not `path,label`"),
        (["path,label"], "has a title and no line"),
        ([""], "has no line `path,label`"),
        (["0.mp4,a", "1.mp4,"], "list.csv:2: '1.mp4,' lacks the path or the label"),
        (["0.mp4,a", "1.mp4"], "list.csv:2"),
        (["0.mp4,a", "0.mp4,b"], "0.mp4 is 'b'"),
        (["path,label,split", "0.mp4,a,dev"], "'dev' is no split"),
        (["path,label,split", "0.mp4,a,train", "1.mp4,b,train"], "has no test video"),
        (["0.mp4,a", "1.mp4,a"], "only one class, 'a'; its label column must name at least two"),
        (["clip1,a", "0.mp4,b"], "(line 1 was taken for a title: there is no file 'clip1')"),
        (["no.mp4,a", "nor.mp4,b"], "none of 2 videos can be read"),
    ],
)
def test_what_is_wrong_with_a_csv_is_one_line(lines, message, tmp_path, clips):
    path = csv_of(tmp_path, clips, lines)
    assert message in refusal(path, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "train.csv").exists()


def test_a_line_said_twice_counts_once(tmp_path, clips, capsys):
    out = make(csv_of(tmp_path, clips, [*PLAIN, PLAIN[0]]))
    assert len(csv(str(out), "train") + csv(str(out), "test")) == 4
    assert "1 lines say again" in capsys.readouterr().out


# --------------------------------------------------------------------------- the split
def videos_of(counts):
    return [
        Video(f"/v/{label}/{number}.mp4", f"{label}/{number}.mp4", label, "")
        for label, count in counts.items()
        for number in range(count)
    ]


def parted(videos, **options):
    return split_videos(videos, {}, **({"share": 0.2, "seed": 0} | options))


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_each_class_has_its_share_and_is_in_both_parts(share):
    counts = {"a": 2, "b": 10, "c": 37}
    parts = parted(videos_of(counts), share=share)
    tested = Counter(video.label for video in parts["test"])
    for label, count in counts.items():
        assert tested[label] == min(max(1, round(share * count)), count - 1)
    assert len(parts["train"]) + len(parts["test"]) == 49


def test_the_split_follows_from_seed_and_names_and_a_new_video_moves_few():
    videos = videos_of({"a": 30, "b": 30})
    moved = [video._replace(path=f"/other{video.path}") for video in reversed(videos)]
    names = {video.name for video in parted(videos)["test"]}
    assert {video.name for video in parted(moved)["test"]} == names
    assert {video.name for video in parted(videos, seed=1)["test"]} != names
    more = [*videos, Video("/v/a/new.mp4", "a/new.mp4", "a", "")]
    assert len(names ^ {video.name for video in parted(more)["test"]}) <= 2


def test_groups_are_kept_together_across_classes():
    videos = [
        Video(f"/v/{label}/p{person}_{take}.mp4", f"{label}/p{person}_{take}.mp4", label, "")
        for label in "ab"
        for person in range(10)
        for take in range(3)
    ]
    parts = parted(videos, group_by=r"p(\d+)_")
    people = {p: {v.name.split("_")[0][2:] for v in listed} for p, listed in parts.items()}
    assert not people["train"] & people["test"]
    assert Counter(video.label for video in parts["test"]) == {"a": 6, "b": 6}


def test_groups_that_leave_a_class_on_one_side_are_refused():
    with pytest.raises(ValueError, match="class 'a': no video to .* on; take another --seed"):
        parted(videos_of({"a": 4, "b": 4}), group_by="a")


def test_a_class_of_one_video_is_refused(tmp_path, clips):
    root = lay(tmp_path / "v", clips, ["a/1.mp4", "a/2.mp4", "b/1.mp4"])
    line = refusal(root, "--out", tmp_path / "out")
    assert "class 'b': a single video; a class needs two" in line


def test_a_class_that_is_only_tested_is_refused(tmp_path, clips):
    root = lay(tmp_path / "v", clips, ["train/a/1.mp4", "test/a/2.mp4", "test/b/3.mp4"])
    assert "class 'b': no video to train on" in refusal(root, "--out", tmp_path / "out")


def test_a_class_that_is_only_trained_is_told(tmp_path, clips, capsys):
    make(lay(tmp_path / "v", clips, ["train/a/1.mp4", "train/b/2.mp4", "test/a/3.mp4"]))
    assert "no video to test on: b" in capsys.readouterr().out


def test_a_video_on_both_sides_of_a_split_is_told(tmp_path, clips, capsys):
    root = lay(tmp_path / "v", [*clips[:4], clips[0]], ["train/a/1.mp4", "train/b/2.mp4",
               "test/b/3.mp4", "test/a/4.mp4", "test/a/5.mp4"])  # fmt: skip
    make(root)
    assert "trained on and tested on: train/a/1.mp4 is the same as" in capsys.readouterr().out


# --------------------------------------------------------------------------- recipes
@pytest.mark.parametrize("small", [False, True])
def test_every_backbone_has_a_recipe_that_loads_and_its_twin_differs_in_the_prompt(small, folder):
    names = sorted(
        path.stem for path in new_dataset.BASES.glob("*.yaml") if "R101" not in path.stem
    )
    backbones = [name for name in names if name[:3] in ("C2D", "I3D", "SLO", "Tim", "X3D")]
    out = make(folder, "--recipe", *backbones, *(["--small"] if small else []))
    for name in backbones:
        plain, prompted = (load_cfg(out / f"{name}{twin}.yaml") for twin in ("", "_VMP"))
        assert plain.TRAIN.DATASET == "csv"
        assert plain.MODEL.NUM_CLASSES == 2
        assert str(out) == plain.DATA.PATH_TO_DATA_DIR
        assert prompted.PROMPT.ENABLE
        assert not plain.PROMPT.ENABLE
        differing = {key for key in plain if plain[key] != prompted[key]}
        assert differing <= {"PROMPT", "OUTPUT_DIR"}


def test_frames_come_closer_together_for_short_videos(folder):
    cfg = load_cfg(make(folder) / "X3D_S_VMP.yaml")
    # 20 frames at 25 a second are 0.8 s: 14 frames, 1 apart at 30 a second, are less than one of
    # the source apart, and 2 apart reach beyond the end
    assert cfg.DATA.SAMPLING_RATE == 2
    assert "20 frames, at 25 fps" in (folder.parent / "out" / "X3D_S.yaml").read_text()


@pytest.mark.parametrize(
    ("classes", "flip"), [(("turn_left", "turn_right"), False), (("bright", "dark"), True)]
)
def test_clips_are_not_mirrored_where_a_class_tells_left_from_right(classes, flip, tmp_path, clips):
    names = [f"{label}/{number}.mp4" for label in classes for number in range(2)]
    out = make(lay(tmp_path / "v", clips, names))
    assert load_cfg(out / "X3D_S.yaml").DATA.RANDOM_FLIP is flip


def test_a_recipe_names_its_base_so_that_the_checkout_can_be_moved_with_what_is_in_it(folder):
    base = new_dataset.BASES / "X3D_S.yaml"
    outside = yaml.safe_load((make(folder) / "X3D_S.yaml").read_text())
    assert Path(outside["_BASE_"]) == base
    inside = Contents(ROOT / "data" / "mine", ("a", "b"), 8, 90, 30.0)
    text = baseline(base, inside, small=False)
    assert yaml.safe_load(text)["_BASE_"] == "../../configs/base/X3D_S.yaml"


# --------------------------------------------------------------------------- refusals
def test_what_is_there_is_only_replaced_when_asked(folder):
    out = make(folder)
    line = refusal(folder, "--out", out)
    assert "has train.csv, test.csv, classes.txt, X3D_S.yaml, X3D_S_VMP.yaml already" in line
    (out / "mine.txt").write_text("mine")
    before = (out / "test.csv").read_text()
    make(folder, "--force")
    assert (out / "mine.txt").read_text() == "mine"
    assert (out / "test.csv").read_text() == before


def test_another_kind_of_list_in_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.txt").write_text("a.mp4 0\n")
    line = refusal(folder, "--out", tmp_path / "out", "--force")
    assert "train.txt is another list of videos to train on" in line


def test_a_wrong_source_is_one_line(tmp_path, clips):
    out = ["--out", tmp_path / "out"]
    assert "does not exist; name a folder" in refusal(tmp_path / "nowhere", *out)
    (tmp_path / "bare").mkdir()
    assert "it has no folder at all" in refusal(tmp_path / "bare", *out)
    loose = lay(tmp_path / "loose", clips, ["1.mp4", "2.mp4"])
    assert "but 2 beside each other; put those of a class" in refusal(loose, *out)
    nested = lay(tmp_path / "zip", clips, ["data/a/1.mp4", "data/b/2.mp4"])
    assert f"did you mean {nested / 'data'}?" in refusal(nested, *out)
    assert "can't be read as text in UTF-8" in refusal(clips[0], *out)
    texts = tmp_path / "texts" / "a"
    texts.mkdir(parents=True)
    assert "looked in a for .mp4" in refusal(tmp_path / "texts", *out)
    assert not (tmp_path / "out").exists()


def test_a_wrong_option_is_told(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "is a file; name a folder" in refusal(folder, "--out", tmp_path / "file")
    line = refusal(folder, "--out", tmp_path / "out", "--recipe", "X3D")
    assert "no backbone of that name; C2D_8x8_R50," in line
    assert "HMDB51" not in line
    for words, message in (
        (["--test-share", "1"], "--test-share is 1"),
        (["--group-by", "("], "no regular expression"),
        (["--workers", "0"], "--workers must be at least 1"),
    ):
        with pytest.raises(SystemExit, match="2"):
            new_dataset.main([str(folder), *words])
        assert message in capsys.readouterr().err


def test_the_output_folder_is_named_after_the_source(folder):
    assert new_dataset.parse_args([str(folder)]).out == Path("data/videos")
    assert new_dataset.parse_args(["x/list.csv"]).out == Path("data/list")


def test_nothing_is_found_twice(folder):
    assert len(find_videos(folder).videos) == len(set(find_videos(folder).videos)) == 8


# --------------------------------------------------------------------------- end to end
TINY = {
    "X3D.WIDTH_FACTOR": "1.0", "X3D.DEPTH_FACTOR": "0.2", "X3D.DIM_C5": "64",
    "DATA.NUM_FRAMES": "4", "SOLVER.MAX_EPOCH": "1", "SOLVER.WARMUP_EPOCHS": "0",
    "TRAIN.BATCH_SIZE": "2", "DATA_LOADER.NUM_WORKERS": "0", "TENSORBOARD": "False",
    "TEST.NUM_ENSEMBLE_VIEWS": "1",
}  # fmt: skip


def test_the_command_that_is_printed_trains(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(folder, "--small", out=Path("out"))
    told = capsys.readouterr().out
    command = next(
        line for line in told.splitlines() if "run_net.py" in line and "--dry-run" not in line
    )
    _, _, *words = shlex.split(command)
    overrides = [word for pair in TINY.items() for word in pair]
    monkeypatch.setattr(sys, "argv", ["run_net.py", *words, *overrides, "OUTPUT_DIR", "run"])
    run_net.main()
    assert list_checkpoints(tmp_path / "run")
    assert (tmp_path / "run" / "test_results.json").is_file()


def test_the_tool_itself_with_its_processes(folder, tmp_path):
    tool = ROOT / "tools" / "new_dataset.py"
    command = [sys.executable, str(tool), str(folder), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(csv(str(tmp_path / "out"), "train")) == 6
