"""What `tools/new_dataset.py` does: find, look into each video, part, write, say how to go on."""

import os
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from new_dataset_find import Video, class_names, find_videos
from new_dataset_recipe import Contents, check_bases, recipe_files, recipe_texts
from new_dataset_split import Parts, split_videos
from tqdm import tqdm

from vmp.data.audit import STILL
from vmp.data.csv_list import ENDINGS as LIST_ENDINGS
from vmp.data.csv_list import NAMES_FILE, csv
from vmp.data.decode import VideoReader
from vmp.data.examine import Job, VideoFacts, examine, examine_all
from vmp.data.release import FRAME_INDEX_FOLDER
from vmp.utils.files import write_text
from vmp.utils.processes import cores

Facts = Mapping[str, VideoFacts]
NAMED = 5  # videos in a line of the report
LONGEST = 32  # characters of a class's name in the table


def make_dataset(
    source: Path,
    out: Path,
    *,
    test_share: float,
    seed: int,
    group_by: str | None,
    recipes: Sequence[str],
    bases: Path,
    small: bool,
    workers: int | None,
    force: bool,
) -> None:
    """Write lists and recipes of the videos in `source` to `out`; print what there is.

    Args:
        source: folder of class folders, or CSV file; only read.
        out: folder for what is written.
        test_share: of each class.
        seed: of the split.
        group_by: regular expression, see `split_videos`.
        recipes: names of backbones.
        bases: folder of the backbones' files.
        small: recipes for a CPU.
        workers: processes that look into videos; None: the cores there are.
        force: replace what is in `out`.

    Raises:
        ValueError: what is wrong with the videos, the split, the recipes or `out`, and what to do.
    """
    check_bases(recipes, bases)
    check_out(out, recipe_files(recipes), force=force)
    found = find_videos(source)
    facts = look_at(found.videos, out, workers)
    readable = [video for video in found.videos if not facts[video.path].error]
    if not readable:
        first = facts[found.videos[0].path]
        raise ValueError(f"none of {len(found.videos)} videos can be read: {told(first)}, ...")
    same = {path: fact.fingerprint for path, fact in facts.items()}
    parts = split_videos(readable, same, share=test_share, seed=seed, group_by=group_by)
    names = class_names(parts["train"])
    written = write_lists(out, parts, names)
    contents = describe(out, names, parts, facts)
    for name in recipes:
        written += write_recipes(out, name, bases / f"{name}.yaml", contents, small=small)
    notes = [*found.notes, *judge(found.videos, parts, facts)]
    say(report(parts, names, facts, notes, written))
    say(how_to_train(out / f"{recipes[0]}_VMP.yaml"))


def check_out(out: Path, files: Sequence[str], *, force: bool) -> None:
    """Raise ValueError where something would be overwritten, or another list be found there."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; name a folder")
    ours = ["train.csv", "test.csv", NAMES_FILE, *files]
    there = [name for name in ours if (out / name).exists()]
    if there and not force:
        raise ValueError(
            f"{out} has {', '.join(there)} already; --force replaces them, --out takes another "
            "folder"
        )
    for part in ("train", "test"):
        for ending in LIST_ENDINGS:
            if ending != ".csv" and (out / f"{part}{ending}").exists():
                raise ValueError(
                    f"{out / part}{ending} is another list of videos to {part} on; take another "
                    "folder with --out, or remove it"
                )


def look_at(videos: Sequence[Video], out: Path, workers: int | None) -> dict[str, VideoFacts]:
    """Open each video once; path -> what was seen."""
    jobs = [Job(video.path, ((0, None),)) for video in videos]
    look = partial(
        examine, open_video=partial(VideoReader, index_dir=out.absolute() / FRAME_INDEX_FOLDER)
    )
    count = min(workers or cores(), len(jobs))
    silent = not sys.stderr.isatty()
    bar = tqdm(examine_all(jobs, look, count), total=len(jobs), unit=" videos", disable=silent)
    return {facts.path: facts for facts in bar}


# --------------------------------------------------------------------------- files
def write_lists(out: Path, parts: Parts, names: Sequence[str]) -> list[Path]:
    """Write train.csv, test.csv and classes.txt; return their paths.

    Paths are relative where the videos lie in `out`, so that the whole may be moved.
    """
    written = []
    label = {name: number for number, name in enumerate(names)}
    for part, videos in parts.items():
        lines = [f"{_listed_path(video.path, out)} {label[video.label]}\n" for video in videos]
        write_text(out / f"{part}.csv", "".join(lines))
        read = [(os.path.normpath(each.path), each.label) for each in csv(str(out), part)]
        meant = [
            (os.path.normpath(out / _listed_path(each.path, out)), label[each.label])
            for each in videos
        ]
        assert read == meant
        written.append(out / f"{part}.csv")
    write_text(out / NAMES_FILE, "".join(f"{name}\n" for name in names))
    return [*written, out / NAMES_FILE]


def _listed_path(path: str, out: Path) -> str:
    folder = str(out.absolute())
    inside = os.path.commonpath([path, folder]) == folder
    return os.path.relpath(path, folder) if inside else path


def describe(out: Path, names: Sequence[str], parts: Parts, facts: Facts) -> Contents:
    """Return what the recipes need to know."""
    seen = [facts[video.path] for listed in parts.values() for video in listed]
    ordered = sorted(seen, key=lambda each: each.num_frames / each.fps)
    median = ordered[len(ordered) // 2]
    return Contents(out, names, len(parts["train"]), median.num_frames, median.fps)


def write_recipes(
    out: Path, name: str, base: Path, contents: Contents, *, small: bool
) -> list[Path]:
    """Write a recipe and its twin; return their paths."""
    texts = recipe_texts(name, base, contents, small=small)
    for file, text in texts.items():
        write_text(out / file, text)
    return [out / file for file in texts]


# --------------------------------------------------------------------------- the report
def judge(videos: Sequence[Video], parts: Parts, facts: Facts) -> list[str]:
    """Return what is doubtful about the videos, a line each."""
    notes = []
    if bad := [video for video in videos if facts[video.path].error]:
        listed = "; ".join(told(facts[video.path]) for video in bad[:NAMED])
        more = f"; and {len(bad) - NAMED} more" if bad[NAMED:] else ""
        notes.append(f"{len(bad)} left out, which can't be read: {listed}{more}")
    used = [video for listed in parts.values() for video in listed]
    left = [v for v in videos if v not in used and not facts[v.path].error]
    if left:
        notes.append(f"{len(left)} marked val are not used: test.csv is what is marked test")
    if lacking := {v.label for v in parts["train"]} - {v.label for v in parts["test"]}:
        notes.append(f"no video to test on: {', '.join(sorted(lacking))}")
    if lost := {v.label for v in videos} - {v.label for v in used}:
        notes.append(f"no video that can be read, so no class: {', '.join(sorted(lost))}")
    still = [v for v in used if (facts[v.path].stretches[0].motion or 0.0) < STILL]
    if still:
        notes.append(f"{len(still)} show no motion, e.g. {still[0].name}; look at some")
    notes += _judge_copies(parts, facts)
    return notes


def _judge_copies(parts: Parts, facts: Facts) -> list[str]:
    copies: dict[str, list[tuple[str, Video]]] = defaultdict(list)
    for part, listed in parts.items():
        for video in listed:
            copies[facts[video.path].fingerprint].append((part, video))
    several = [group for group in copies.values() if len(group) > 1]
    notes = []
    for group in several:
        (_, one), (_, other) = group[0], group[-1]
        if one.label != other.label:
            notes.append(f"the same video in two classes: {one.name} and {other.name}")
        elif group[0][0] != group[-1][0]:
            notes.append(f"trained on and tested on: {one.name} is the same as {other.name}")
    if len(several) > len(notes):
        one, other = several[0][0][1], several[0][-1][1]
        notes.append(
            f"{len(several)} videos are there more than once, e.g. {one.name}, {other.name}"
        )
    return notes


def told(facts: VideoFacts) -> str:
    """Return a video and what is wrong with it."""
    return f"{facts.path}: {'there is no such file' if facts.missing else facts.error}"


def report(
    parts: Parts,
    names: Sequence[str],
    facts: Facts,
    notes: Sequence[str],
    written: Sequence[Path],
) -> str:
    """Return what there is, as text."""
    counts = {part: Counter(v.label for v in listed) for part, listed in parts.items()}
    width = min(max(map(len, names)), LONGEST)
    lines = [f"{'':4} {'class':{width}} {'train':>6} {'test':>6}"]
    for number, name in enumerate(names):
        each = f"{counts['train'][name]:6} {counts['test'][name]:6}"
        lines.append(f"{number:4} {name[:LONGEST]:{width}} {each}")
    totals = f"{len(parts['train']):6} {len(parts['test']):6}"
    lines.append(f"{'':4} {'':{width}} {totals}")
    seen = [facts[v.path] for listed in parts.values() for v in listed]
    frames = sorted(each.num_frames for each in seen)
    rates = Counter(f"{each.fps:.4g}" for each in seen)
    sides = sorted(min(each.width, each.height) for each in seen)
    lines += [
        "",
        f"{_spread(frames)} frames, short side {_spread(sides)} pixels (min / median / max), "
        f"mostly {rates.most_common(1)[0][0]} fps",
        *(f"! {note}" for note in notes),
        "",
        *(f"wrote {path}" for path in written),
    ]
    return "\n".join(lines)


def _spread(ordered: Sequence[int]) -> str:
    return f"{ordered[0]} / {ordered[len(ordered) // 2]} / {ordered[-1]}"


def how_to_train(recipe: Path) -> str:
    """Return the commands that go on from here."""
    tool = Path(__file__).with_name("run_net.py")
    near = os.path.relpath(tool)
    shown = near if not near.startswith("..") else str(tool)
    command = f"python {shlex.quote(shown)} --cfg {shlex.quote(str(recipe))}"
    return (
        f"\nLook before you train, then train and test:\n  {command} --dry-run\n  {command}\n"
        f"Without the motion prompt: {str(recipe).replace('_VMP.yaml', '.yaml')}"
    )


def say(text: str) -> None:
    """Print a text; what the terminal can't show (odd names) is spelled out."""
    coding = sys.stdout.encoding or "utf-8"
    print(text.encode(coding, "backslashreplace").decode(coding))
