"""What is wrong with a data set: each record is judged by what was seen of its video.

No video is opened here. What `vmp.data.examine` has written down is enough, whatever the config
says of clips.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fvcore.common.config import CfgNode

from vmp.data.examine import Damage, VideoFacts
from vmp.data.records import VideoRecord
from vmp.data.sampling import clip_frames, clip_span

# A stretch in which 99 % of the pixels differ by less, in levels of 0 to 255, shows no motion.
# A still picture, encoded, gives up to 3.3 (7 where the encoder is short of bits); eight frames in
# a row of UT-Interaction give at least 4.6, its whole clips at least 40.
STILL = 4.0
# More frames promised than decode: what headers of sound files do, being off by one or two, and
# what is missing. Durations are told less exactly than counts.
_SLACK_FRAMES, _SLACK_SHARE = 3, 0.02
_SLACK_SECONDS, _SLACK_DURATION_SHARE = 1.0, 0.05

# Kind of problem -> what it means, and what can be done. The first ones make a record unusable.
KINDS = {
    "excluded": "The index or DATA.QUARANTINE says not to read them; they were not opened.",
    "label": "Their class is not one of the model's; correct the list or MODEL.NUM_CLASSES.",
    "missing": "There is no such file.",
    "unreadable": "Not one frame can be had.",
    "beyond": "They begin after the last frame of their video: it is cut off, or another one.",
    "broken": "Frames within them do not decode.",
    "refused": "They are shorter than a clip, and DATA.SHORT_CLIP error ends the run at the first "
    "of them; set it to hold.",
    "damaged": "The decoder finds errors in them and gives wrong pictures; up to the next key "
    "frame what follows may be wrong as well. Get these files again.",
    "truncated": "Their file promises notably more frames than decode; it is read as far as it "
    "goes. Get these files again.",
    "overrun": "They end after the last frame of their video; they are read as far as it goes.",
    "still": "No motion, which is all that a motion prompt sees: between frames here and there "
    f"99 % of the pixels change by less than {STILL:g} of 255. Look at some.",
    "short": "They are shorter than a clip.",
}
UNUSABLE = ("excluded", "label", "missing", "unreadable", "beyond", "broken", "refused")
# What reading can't mend. The others are no matter of the file.
QUARANTINED = ("missing", "unreadable", "beyond", "broken")


class Clip(NamedTuple):
    """What the loader cuts out.

    Attributes:
        num_frames: of a clip, that of the prompt included.
        rate: distance of its frames at `target_fps`.
        target_fps: frames per second that `rate` refers to; 0: those of the source.
        policy: DATA.SHORT_CLIP, what happens where a record is shorter.
    """

    num_frames: int
    rate: int
    target_fps: float
    policy: str

    def frames_needed(self, fps: float) -> int:
        """Return how many frames of a video of `fps` a clip reaches over."""
        span = clip_span(self.num_frames, self.rate, fps, self.target_fps)
        return clip_frames(0.0, span, self.num_frames)[-1] + 1


def build_clip(cfg: CfgNode) -> Clip:
    """Return what the loader cuts out of a record."""
    return Clip(
        num_frames=cfg.DATA.NUM_FRAMES + (1 if cfg.PROMPT.ENABLE else 0),
        rate=cfg.DATA.SAMPLING_RATE,
        target_fps=cfg.DATA.TARGET_FPS,
        policy=cfg.DATA.SHORT_CLIP,
    )


class Problem(NamedTuple):
    """Something that is wrong with a record.

    Attributes:
        kind: one of KINDS.
        reason: what exactly, one line.
    """

    kind: str
    reason: str


class Judged(NamedTuple):
    """A record and what is wrong with it.

    Attributes:
        record: as the data set lists it.
        stretch: numbers of its frames that there are; none where that is not known.
        problems: of any kind.
    """

    record: VideoRecord
    stretch: range
    problems: tuple[Problem, ...]

    @property
    def obstacle(self) -> str:
        """In a word why it gives no clip: a kind of problem, or of exclusion; "" if it does."""
        kind = next((problem.kind for problem in self.problems if problem.kind in UNUSABLE), "")
        if kind == "excluded":
            return self.record.excluded.partition(":")[0] or kind
        return kind


class Split(NamedTuple):
    """The records of a split, judged.

    Attributes:
        name: "train" or "test".
        records: all of them.
        official: number of records that the release has; None if that is not known.
    """

    name: str
    records: list[Judged]
    official: int | None

    def usable(self) -> list[Judged]:
        """Return the records that give clips."""
        return [each for each in self.records if not each.obstacle]


# --------------------------------------------------------------------------- judging records
def judge_split(
    name: str,
    records: Iterable[VideoRecord],
    facts: Mapping[str, VideoFacts],
    *,
    clip: Clip,
    num_classes: int,
    official: int | None = None,
) -> Split:
    """Return what is wrong with each record of a split.

    Args:
        name: of the split.
        records: all of them.
        facts: path -> what was seen, of every record that is not excluded.
        clip: what the loader cuts out.
        num_classes: labels are below.
        official: number of records that the release has, if known.
    """
    judged = []
    for record in records:
        seen = None if record.excluded else facts[record.path]
        problems = tuple(_judge(record, seen, clip, num_classes))
        judged.append(Judged(record, _stretch(record, seen), problems))
    return Split(name, judged, official)


def _stretch(record: VideoRecord, facts: VideoFacts | None) -> range:
    there = 0 if facts is None else facts.num_frames
    return range(record.start, there if record.stop is None else min(record.stop, there))


def _judge(
    record: VideoRecord, facts: VideoFacts | None, clip: Clip, num_classes: int
) -> Iterator[Problem]:
    if not 0 <= record.label < num_classes:
        yield Problem("label", f"class {record.label} is not in 0 to {num_classes - 1}")
    if facts is None:
        yield Problem("excluded", record.excluded)
    elif facts.error:
        yield Problem("missing" if facts.missing else "unreadable", facts.error)
    else:
        if _lacks_frames(facts):
            promised, there = facts.promised, facts.num_frames
            yield Problem("truncated", f"the header promises {promised} frames, {there} decode")
        yield from _judge_stretch(record, facts, clip)


def _lacks_frames(facts: VideoFacts) -> bool:
    """Say whether a video has notably fewer frames than its header promises."""
    slack = max(_SLACK_FRAMES, _SLACK_SHARE * facts.promised)
    if not facts.exact:
        slack = max(_SLACK_SECONDS * facts.fps, _SLACK_DURATION_SHARE * facts.promised)
    return facts.promised - facts.num_frames > slack


def _judge_stretch(record: VideoRecord, facts: VideoFacts, clip: Clip) -> Iterator[Problem]:
    length = len(_stretch(record, facts))
    stop = facts.num_frames if record.stop is None else record.stop
    where = f"frames [{record.start}, {stop}) of {facts.num_frames}"
    if not length:
        yield Problem("beyond", where)
        return
    if stop > facts.num_frames:
        yield Problem("overrun", where)
    seen = next(part for part in facts.stretches if part[:2] == (record.start, record.stop))
    within = [each for each in facts.damage if each.first < stop and each.last >= record.start]
    # a full look names the frames; without it, those that were sampled tell
    if broken := _frames_of(each for each in within if not each.readable) or seen.error:
        yield Problem("broken", broken)
    if damaged := _frames_of(each for each in within if each.readable):
        yield Problem("damaged", damaged)
    if seen.motion is not None and seen.motion < STILL:
        told = f"changes by {seen.motion:g} of 255" if length > 1 else "a single frame"
        yield Problem("still", told)
    needed = clip.frames_needed(facts.fps)
    if length < needed:
        kind = "refused" if clip.policy == "error" else "short"
        yield Problem(kind, f"a clip reaches over {needed} frames, there are {length}")


def _frames_of(damage: Iterable[Damage]) -> str:
    """Return `frames 3, 8-12`; "" if there are none."""
    named = [
        f"{each.first}-{each.last}" if each.last > each.first else str(each.first)
        for each in damage
    ]
    return f"frames {', '.join(named)}" if named else ""


# --------------------------------------------------------------------------- records side by side
class Pair(NamedTuple):
    """Two records of the same frames.

    Attributes:
        first: a record.
        second: another, of the same split or the other one.
        kind: "same" frames, or frames that "overlap".
    """

    first: VideoRecord
    second: VideoRecord
    kind: str


def find_duplicates(split: Split, facts: Mapping[str, VideoFacts]) -> list[Pair]:
    """Return each record of frames that an earlier one has already, with that one.

    Videos of the same content are the same video, whatever their names.
    """
    first: dict[tuple[str, range], VideoRecord] = {}
    pairs = []
    for video, (record, stretch, _) in _by_content(split, facts):
        if (video, stretch) in first:
            pairs.append(Pair(first[video, stretch], record, "same"))
        first.setdefault((video, stretch), record)
    return pairs


def find_leaks(train: Split, test: Split, facts: Mapping[str, VideoFacts]) -> list[Pair]:
    """Return each test record of frames that are trained on, with one training record of them."""
    trained: dict[str, dict[range, Judged]] = defaultdict(dict)
    for video, judged in _by_content(train, facts):
        trained[video].setdefault(judged.stretch, judged)
    pairs = (
        _worst_overlap(judged, trained[video].values())
        for video, judged in _by_content(test, facts)
    )
    return [pair for pair in pairs if pair is not None]


def _by_content(split: Split, facts: Mapping[str, VideoFacts]) -> Iterator[tuple[str, Judged]]:
    """Yield each record of which there are frames, after the fingerprint of its video."""
    for judged in split.records:
        if judged.stretch:
            yield facts[judged.record.path].fingerprint, judged


def _worst_overlap(tested: Judged, near: Iterable[Judged]) -> Pair | None:
    """Return the record with that of `near` which shares the most frames; None if none does."""

    def shared(other: Judged) -> int:
        one, two = tested.stretch, other.stretch
        return min(one.stop, two.stop) - max(one.start, two.start)

    worst = max(near, key=shared, default=None)
    if worst is None or shared(worst) <= 0:
        return None
    kind = "same" if worst.stretch == tested.stretch else "overlap"
    return Pair(worst.record, tested.record, kind)


# --------------------------------------------------------------------------- what to write
def quarantine_lines(splits: Iterable[Split]) -> list[str]:
    """Return the list for DATA.QUARANTINE: what can't be read, and what was on the list before.

    A record without an id can't be named in it.
    """
    reasons: dict[str, str] = {}
    for judged in (each for split in splits for each in split.records if each.record.id):
        if reason := _reason_to_quarantine(judged):
            reasons.setdefault(judged.record.id, " ".join(reason.split()))
    return [f"{name}\t{reason}\n" for name, reason in reasons.items()]


def _reason_to_quarantine(judged: Judged) -> str:
    listed, _, reason = judged.record.excluded.partition(": ")
    if listed == "quarantined":
        return reason
    found = (problem for problem in judged.problems if problem.kind in QUARANTINED)
    return "; ".join(f"{problem.kind}: {problem.reason}" for problem in found)


def summarize(
    splits: Sequence[Split], facts: Mapping[str, VideoFacts], class_names: Sequence[str]
) -> dict[str, Any]:
    """Return all that is to be told of an audit, ready for JSON."""
    named = {split.name: split for split in splits}
    records = (each.record for split in splits for each in split.records)
    used = dict.fromkeys(record.path for record in records if not record.excluded)
    leaks = None
    if {"train", "test"} <= named.keys():
        leaks = [_pair(pair) for pair in find_leaks(named["train"], named["test"], facts)]
    return {
        "videos": _summarize_videos([facts[path] for path in used]),
        "splits": {split.name: _summarize_split(split, facts, class_names) for split in splits},
        "leaks": leaks,
        "verdict": verdict(named["test"]) if "test" in named else None,
    }


def _summarize_videos(videos: Sequence[VideoFacts]) -> dict[str, Any]:
    read = [video for video in videos if not video.error]
    return {
        "count": len(videos),
        "readable": len(read),
        "fully_decoded": sum(video.full for video in read),
        "frames": spread([video.num_frames for video in read]),
        "fps": _most_common(f"{video.fps:.4g}" for video in read),
        "sizes": _most_common(f"{video.width}x{video.height}" for video in read),
        "codecs": _most_common(video.codec for video in read),
        "frames_found_by": _most_common(video.scan for video in read),
        "promised_less_decoded": _most_common(
            str(video.promised - video.num_frames) if video.promised else "not told"
            for video in read
            if video.exact or not video.promised
        ),
    }


def _most_common(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return the least, the median and the most of some numbers; nothing if there are none."""
    ordered = sorted(values)
    if not ordered:
        return {}
    return {"min": ordered[0], "median": ordered[len(ordered) // 2], "max": ordered[-1]}


def _summarize_split(
    split: Split, facts: Mapping[str, VideoFacts], class_names: Sequence[str]
) -> dict[str, Any]:
    records, usable = [each.record for each in split.records], split.usable()
    lengths = [(len(each.stretch), facts[each.record.path].fps) for each in usable]
    excluded = (record.excluded.partition(":")[0] for record in records if record.excluded)
    total = Counter(record.label for record in records)
    there = Counter(each.record.label for each in usable)
    return {
        "records": len(records),
        "official": split.official,
        "usable": len(usable),
        "excluded": _most_common(excluded),
        "problems": _list_problems(split),
        "duplicates": [_pair(pair) for pair in find_duplicates(split, facts)],
        "frames": spread(length for length, _ in lengths),
        "seconds": spread(round(length / fps, 3) for length, fps in lengths),
        "classes": [
            {"label": label, "name": name, "records": total[label], "usable": there[label]}
            for label, name in enumerate(class_names)
        ],
    }


def _list_problems(split: Split) -> dict[str, list[dict[str, Any]]]:
    """Return the records that have each kind of problem; of those too short the shortest first."""
    listed: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for record, stretch, problems in split.records:
        entry = {"id": record.id, "path": record.path, "frames": len(stretch)}
        for problem in problems:
            listed[problem.kind].append(entry | {"reason": problem.reason})
    for kind in ("short", "refused"):
        listed[kind].sort(key=lambda entry: int(entry["frames"]))
    return {kind: entries for kind, entries in listed.items() if entries}


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "kind": pair.kind,
        "first": _named(pair.first),
        "second": _named(pair.second),
        "labels": [pair.first.label, pair.second.label],
    }


def _named(record: VideoRecord) -> str:
    return record.id or f"{record.path} [{record.start}, {record.stop})"


def verdict(test: Split) -> dict[str, Any]:
    """Say whether the evaluation set is whole, and in one line what is lacking."""
    total = len(test.records)
    obstacles = Counter(each.obstacle for each in test.records if each.obstacle)
    lacking = []
    if test.official is not None and total != test.official:
        lacking.append(f"{total:,} records are listed, {test.official:,} are official")
    if obstacles:
        counted = ", ".join(f"{count:,} {word}" for word, count in obstacles.most_common())
        lost = obstacles.total()
        lacking.append(f"{lost:,} of {total:,} records can't be evaluated ({counted})")
    if not total:
        lacking.append("it has no record")
    text = f"The evaluation set is whole: all {total:,} records can be read."
    if lacking:
        text = f"The evaluation set is not whole: {'; '.join(lacking)}."
    return {"whole": not lacking, "text": text}
