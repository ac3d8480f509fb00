import os
import signal
import struct
import sys
import tracemalloc
from collections import Counter
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from vmp.data import VideoReader
from vmp.data.audit import (
    KINDS,
    OFFICIAL_COUNTS,
    QUARANTINED,
    STILL,
    UNUSABLE,
    Clip,
    Damage,
    Job,
    Journal,
    StretchFacts,
    VideoFacts,
    examine,
    examine_all,
    find_duplicates,
    find_leaks,
    is_usable,
    judge_split,
    motion,
    official_count,
    plan_jobs,
    quarantine_lines,
    summarize,
    verdict,
)
from vmp.data.records import DATASETS, VideoRecord, quarantine, read_quarantine

CLIP = Clip(num_frames=4, rate=2, target_fps=0.0, policy="hold")  # reaches over 8 frames


def look(path, *stretches, full=False):
    job = Job(str(path), stretches or ((0, None),))
    return examine(job, open_video=VideoReader, full=full)


def flip_in_frame(path, number):
    """Flip a bit in the length of the picture's data: nothing of that frame can be decoded."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
    place = sorted(packets, key=lambda packet: packet.pts)[number].pos
    data = bytearray(path.read_bytes())
    data[place + 1] ^= 0x40
    path.write_bytes(data)


def lie_about_frames(path, more):
    """Make the header of an AVI promise more frames."""
    data = bytearray(path.read_bytes())
    place = data.index(b"strh") + 8 + 32
    (count,) = struct.unpack_from("<I", data, place)
    struct.pack_into("<I", data, place, count + more)
    path.write_bytes(data)


def write_still(path, num_frames=30):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (12, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "23", "g": "6"})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for _ in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def cut_off(path, copy):
    """Copy a video of which the second half is lost, while its header, in front, is whole."""
    with (
        av.open(str(path)) as source,
        av.open(str(copy), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    copy.write_bytes(copy.read_bytes()[: copy.stat().st_size * 6 // 10])
    return copy


# --------------------------------------------------------------------------- one video
def test_noise_is_no_motion_and_a_small_thing_that_moves_is():
    rng = np.random.default_rng(0)
    scene = np.stack([rng.integers(60, 200, (64, 96, 3))] * 5)
    noisy = scene + rng.normal(0, 1, scene.shape)
    assert motion(noisy.round().astype(np.uint8)) < STILL
    for number in range(5):
        noisy[number, 10:18, 10 * number : 10 * number + 8] = 255
    assert motion(noisy.round().astype(np.uint8)) > 10 * STILL
    assert motion(noisy[:1].round().astype(np.uint8)) == 0


def test_an_encoded_still_picture_is_still_and_a_moving_one_is_not(tmp_path, make_video):
    assert look(write_still(tmp_path / "still.mp4")).stretches[0].motion < STILL
    assert look(make_video(tmp_path / "moving.mp4", 30)).stretches[0].motion > 10 * STILL


def test_a_sound_video_is_described(tmp_path, make_video):
    facts = look(make_video(tmp_path / "a.mp4", 20), (0, None), (3, 9))
    assert (facts.error, facts.num_frames, facts.promised, facts.exact) == ("", 20, 20, True)
    assert (facts.fps, facts.height, facts.width, facts.codec) == (25, 48, 64, "h264")
    assert facts.scan == "packets"
    assert [part[:2] for part in facts.stretches] == [(0, None), (3, 9)]
    assert not facts.damage


def test_missing_and_unreadable_files_are_told_apart_with_the_reason(tmp_path):
    missing = look(tmp_path / "no.mp4")
    assert missing.missing
    assert "No such file" in missing.error
    for name, content in {"text.mp4": b"hello, this is no video\n" * 99, "empty.mp4": b""}.items():
        (tmp_path / name).write_bytes(content)
        facts = look(tmp_path / name)
        assert not facts.missing
        assert facts.error


def test_a_video_that_was_cut_off_is_truncated(tmp_path, make_video):
    cut = cut_off(make_video(tmp_path / "whole.mp4", 60), tmp_path / "cut.mp4")
    facts = look(cut)
    assert facts.promised == 60
    assert 5 < facts.num_frames < 50
    assert kinds(facts, VideoRecord(str(cut), 0)) == ["truncated"]
    last = facts.num_frames
    assert kinds(facts, VideoRecord(str(cut), 0, 0, last)) == ["truncated"]
    assert kinds(facts, VideoRecord(str(cut), 0, 0, last + 1)) == ["truncated", "overrun"]
    assert kinds(facts, VideoRecord(str(cut), 0, last, last + 9)) == ["truncated", "beyond"]


@pytest.mark.parametrize(("more", "found"), [(2, []), (3, []), (4, ["truncated"])])
def test_a_header_may_lie_a_little(tmp_path, make_video, more, found):
    path = make_video(tmp_path / "a.avi", 40, codec="mpeg4", options={"g": "12"})
    lie_about_frames(path, more)
    facts = look(path)
    assert (facts.num_frames, facts.promised) == (40, 40 + more)
    assert kinds(facts, VideoRecord(str(path), 0)) == found


def test_a_duration_is_believed_less_than_a_count(tmp_path, make_video):
    facts = look(make_video(tmp_path / "a.mkv", 40))
    assert (facts.num_frames, facts.promised, facts.exact) == (40, 40, False)
    record = VideoRecord(facts.path, 0)
    assert kinds(facts._replace(promised=65), record) == []  # one second of 25 fps
    assert kinds(facts._replace(promised=66), record) == ["truncated"]


def test_only_a_full_look_finds_a_flipped_bit_in_the_middle(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", 60)
    assert not look(path, full=True).damage
    flip_in_frame(path, 20)
    quick, full = look(path), look(path, full=True)
    assert (quick.scan, quick.num_frames, quick.damage) == ("packets", 60, ())
    assert kinds(quick, VideoRecord(str(path), 0)) == []
    assert any(damage.first <= 20 <= damage.last for damage in full.damage)
    assert all(damage.first >= 18 and damage.last < 24 for damage in full.damage)  # between keys
    assert full.full
    with pytest.raises(Exception, match="frame 20"), VideoReader(path) as reader:
        reader.read([20])
    assert kinds(full, VideoRecord(str(path), 0)) == ["broken"]
    assert kinds(full, VideoRecord(str(path), 0, 30, 50)) == []


def test_a_picture_with_errors_in_it_is_damaged_but_readable(tmp_path, make_video):
    path = make_video(tmp_path / "a.avi", 60, codec="mpeg4", options={"g": "12", "b": "2000k"})
    with av.open(str(path)) as container:
        packet = list(container.demux(video=0))[20]
    data = bytearray(path.read_bytes())
    middle = packet.pos + 8 + packet.size // 2
    data[middle : middle + 6] = b"\xff" * 6
    path.write_bytes(data)
    assert not look(path).error
    damage = look(path, full=True).damage
    assert [each.readable for each in damage] == [True]
    assert abs(damage[0].first - 20) <= 1
    assert kinds(look(path, full=True), VideoRecord(str(path), 0)) == ["damaged"]


def test_a_frame_that_is_sampled_and_does_not_decode_breaks_its_records_only(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", 60)
    flip_in_frame(path, 20)
    facts = look(path, (0, 12), (20, 24))
    assert facts.stretches[0].error == ""
    assert "does not decode" in facts.stretches[1].error
    assert kinds(facts, VideoRecord(str(path), 0, 0, 12)) == []
    assert kinds(facts, VideoRecord(str(path), 0, 20, 24)) == ["broken", "short"]


# --------------------------------------------------------------------------- records
def kinds(facts, record, clip=CLIP, num_classes=2):
    """The kinds of problems of a record; a stretch that was not looked at is taken for moving."""
    seen = {part[:2] for part in facts.stretches}
    if not facts.error and (record.start, record.stop) not in seen:
        added = StretchFacts(record.start, record.stop, 99.0, "")
        facts = facts._replace(stretches=(*facts.stretches, added))
    split = judge_split("test", [record], {record.path: facts}, clip=clip, num_classes=num_classes)
    return [problem.kind for problem in split.problems[0]]


def made_up(path, num_frames=40, stretches=((0, None),), **changed):
    facts = VideoFacts(
        path,
        fingerprint="1-1-0",
        digest=path,
        num_frames=num_frames,
        promised=num_frames,
        exact=True,
        fps=25.0,
        height=48,
        width=64,
        codec="h264",
        scan="packets",
        stretches=tuple(StretchFacts(*part, 99.0, "") for part in stretches),
    )
    return facts._replace(**changed)


def judge(records, facts, name="test", **changed):
    options = {"clip": CLIP, "num_classes": 2, **changed}
    return judge_split(name, records, {each.path: each for each in facts}, **options)


def test_a_video_is_looked_at_once_for_all_its_records_and_never_if_excluded():
    records = [
        VideoRecord("b", 0, 5, 9),
        VideoRecord("b", 1, 0, None),
        VideoRecord("b", 0, 5, 9),
        VideoRecord("b", 0, 0, 7),
        VideoRecord("a", 0),
        VideoRecord("c", 0, excluded="absent"),
    ]
    assert plan_jobs(records) == [Job("b", ((0, 7), (0, None), (5, 9))), Job("a", ((0, None),))]


@pytest.mark.parametrize(("length", "found"), [(8, []), (7, ["short"]), (1, ["short"])])
def test_a_record_shorter_than_the_clip_is_short(length, found):
    facts = made_up("a", stretches=((5, 5 + length),))
    assert kinds(facts, VideoRecord("a", 0, 5, 5 + length)) == found


def test_how_long_a_clip_is_depends_on_the_frame_rates():
    assert CLIP.frames_needed(25.0) == CLIP.frames_needed(50.0) == 8
    timed = CLIP._replace(target_fps=25.0)
    assert (timed.frames_needed(25.0), timed.frames_needed(50.0)) == (8, 16)


def test_a_short_record_can_not_be_used_where_the_policy_is_error():
    record = VideoRecord("a", 0, 0, 7, id="a")
    split = judge([record], [made_up("a", stretches=((0, 7),))], clip=CLIP._replace(policy="error"))
    assert [problem.kind for problem in split.problems[0]] == ["refused"]
    assert not verdict(split)["whole"]
    assert not quarantine_lines([split])


def test_damage_counts_for_the_records_it_is_in():
    facts = made_up(
        "a",
        stretches=((0, 10), (10, 30)),
        damage=(Damage(3, 3, True), Damage(8, 12, False), Damage(15, 16, True)),
    )
    assert kinds(facts, VideoRecord("a", 0, 0, 10)) == ["broken", "damaged"]
    assert kinds(facts, VideoRecord("a", 0, 10, 30)) == ["broken", "damaged"]
    assert kinds(facts, VideoRecord("a", 0, 17, 40)) == []
    split = judge([VideoRecord("a", 0, 0, 10)], [facts])
    assert [problem.reason for problem in split.problems[0]] == ["frames 8-12", "frames 3"]


def test_a_label_without_a_class_is_found_also_of_what_is_excluded():
    split = judge([VideoRecord("a", 2, excluded="absent"), VideoRecord("b", -1)], [made_up("b")])
    found = [[problem.kind for problem in each] for each in split.problems]
    assert found == [["label", "excluded"], ["label"]]


def test_every_kind_that_is_unusable_or_quarantined_is_known():
    assert set(QUARANTINED) < set(UNUSABLE) < set(KINDS)


def test_the_same_frames_under_two_names_are_duplicates_and_two_stretches_are_not():
    records = [
        VideoRecord("a", 0, id="a"),
        VideoRecord("a", 1, 0, 40, id="a to its end"),
        VideoRecord("copy of a", 0, 0, 99, id="copy"),
        VideoRecord("a", 0, 0, 20, id="half"),
        VideoRecord("b", 0, id="b"),
        VideoRecord("gone", 0, id="gone"),
        VideoRecord("gone", 0, id="gone too"),
    ]
    facts = [
        made_up("a", stretches=((0, None), (0, 40), (0, 20))),
        made_up("copy of a", stretches=((0, 99),), digest="a"),
        made_up("b"),
        VideoFacts("gone", error="No such file"),
    ]
    split = judge(records, facts)
    pairs = find_duplicates(split, {each.path: each for each in facts})
    assert [(pair.second.id, pair.first.id) for pair in pairs] == [
        ("a to its end", "a"),
        ("copy", "a"),
    ]


def test_a_leak_is_named_with_the_training_record_that_shares_most():
    train = [
        VideoRecord("a", 0, 0, 10, id="0-10"),
        VideoRecord("a", 0, 10, 30, id="10-30"),
    ]
    test = [
        VideoRecord("a", 0, 10, 30, id="same"),
        VideoRecord("a", 0, 5, 20, id="overlaps"),
        VideoRecord("a", 0, 30, 40, id="after"),
        VideoRecord("b", 0, 0, 10, id="another"),
    ]
    every = (*(record[2:4] for record in train + test),)
    facts = {name: made_up(name, stretches=every) for name in ("a", "b")}
    options = {"clip": CLIP, "num_classes": 2}
    leaks = find_leaks(
        judge_split("train", train, facts, **options),
        judge_split("test", test, facts, **options),
        facts,
    )
    assert [(pair.second.id, pair.first.id, pair.kind) for pair in leaks] == [
        ("same", "10-30", "same"),
        ("overlaps", "10-30", "overlap"),
    ]


def test_the_quarantine_names_what_can_not_be_read_and_keeps_what_was_in_it(tmp_path):
    records = [
        VideoRecord("gone", 0, id="gone"),
        VideoRecord("text", 0, id="text"),
        VideoRecord("short", 0, 0, 3, id="short"),
        VideoRecord("short", 0, 50, 60, id="beyond"),
        VideoRecord("old", 0, id="old", excluded="quarantined: blurred: all of it"),
        VideoRecord("absent", 0, id="absent", excluded="absent"),
        VideoRecord("gone", 0),
    ]
    facts = [
        VideoFacts("gone", error="No such\tfile"),
        VideoFacts("text", fingerprint="1-1-0", error="Invalid data"),
        made_up("short", stretches=((0, 3), (50, 60))),
    ]
    split = judge(records, facts)
    (tmp_path / "list").write_text("".join(quarantine_lines([split, split])))
    reasons = read_quarantine(tmp_path / "list")
    assert reasons == {
        "gone": "missing: No such file",
        "text": "unreadable: Invalid data",
        "beyond": "beyond: frames [50, 60) of 40",
        "old": "blurred: all of it",
    }
    again = quarantine(records, reasons)
    assert [bool(record.excluded) for record in again] == [1, 1, 0, 1, 1, 1, 0]


def test_the_verdict_tells_what_is_lacking():
    fine, gone = made_up("a"), VideoFacts("gone", error="No such file")
    whole = judge([VideoRecord("a", 0)], [fine], official=1)
    assert verdict(whole) == {
        "whole": True,
        "text": "The evaluation set is whole: all 1 records can be read.",
    }
    records = [VideoRecord("a", 0), VideoRecord("gone", 2), VideoRecord("b", 1, excluded="absent")]
    text = verdict(judge(records, [fine, gone], official=4))["text"]
    assert text == (
        "The evaluation set is not whole: 3 records are listed, 4 are official; 2 of 3 records "
        "can't be evaluated (1 label, 1 absent)."
    )
    assert not verdict(judge([], []))["whole"]
    assert verdict(judge([VideoRecord("a", 0)], [fine._replace(promised=90)]))["whole"]


def test_the_summary_counts_usable_records_of_each_class():
    records = [VideoRecord("a", 0), VideoRecord("gone", 0), VideoRecord("a", 2)]
    facts = {"a": made_up("a"), "gone": VideoFacts("gone", error="No such file")}
    split = judge_split("train", records, facts, clip=CLIP, num_classes=3)
    summary = summarize([split], facts, ("x", "y", "z"))
    classes = summary["splits"]["train"]["classes"]
    assert [(each["records"], each["usable"]) for each in classes] == [(2, 1), (0, 0), (1, 1)]
    assert summary["splits"]["train"]["usable"] == 2
    assert summary["splits"]["train"]["seconds"] == {"min": 1.6, "median": 1.6, "max": 1.6}
    assert (summary["videos"]["count"], summary["videos"]["readable"]) == (2, 1)
    assert summary["leaks"] is None
    assert summary["verdict"] is None


def test_of_short_records_the_shortest_come_first():
    stretches = ((0, 5), (10, 13), (20, 21), (30, 37))
    records = [VideoRecord("a", 0, *part, id=str(part[0])) for part in stretches]
    facts = {"a": made_up("a", stretches=stretches)}
    split = judge_split("test", records, facts, clip=CLIP, num_classes=1)
    summary = summarize([split], facts, ("x",))["splits"]["test"]["problems"]
    assert [(entry["id"], entry["frames"]) for entry in summary["short"]] == [
        ("20", 1),
        ("10", 3),
        ("0", 5),
        ("30", 7),
    ]
    assert summary["short"][0]["reason"] == "a clip reaches over 8 frames, there are 1"


def test_the_official_counts_are_those_of_known_data_sets_and_their_variants():
    assert set(OFFICIAL_COUNTS) <= {name for name, _ in DATASETS}
    assert official_count("hmdb51", "", "train") == official_count("hmdb51", "3", "train") == 3570
    assert official_count("finegym", "", "test") == 8521
    assert official_count("finegym", "gym288", "test") == 9646
    assert official_count("mpiicooking2", "", "test") is None
    assert official_count("utinteraction", "seq", "test") is None


# --------------------------------------------------------------------------- many videos
def name_only(job):
    return made_up(job.path)


def die_over_some(job, marker):
    if Path(job.path).name.startswith("deadly"):
        os.kill(os.getpid(), signal.SIGKILL)
    with marker.open("a") as file:
        file.write(f"{os.getpid()}\n")
    status = os.stat(job.path)
    return made_up(job.path, fingerprint=f"{status.st_size}-{status.st_mtime_ns}-0")


def fail(job):
    raise RuntimeError(f"a bug, met in {job.path}")


def leave(job):
    sys.exit(3)


def test_a_video_that_kills_its_process_is_named_and_the_others_are_looked_at(tmp_path):
    names = ["a", "deadly 1.mp4", "b", "deadly 2.mp4", "c", "d"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    jobs = [Job(str(tmp_path / name), ((0, None),)) for name in names]
    work = partial(die_over_some, marker=tmp_path / "marker")
    found = {Path(facts.path).name: facts for facts in examine_all(jobs, work, 2)}
    assert set(found) == set(names)
    for name, facts in found.items():
        assert ("SIGKILL" in facts.error) == name.startswith("deadly")
        assert not facts.missing
    assert len((tmp_path / "marker").read_text().split()) == 4
    journal = Journal(tmp_path / "videos.jsonl")
    for facts in found.values():
        journal.add(facts)
    journal.close()
    known = {Path(job.path).name for job in jobs if journal.knows(job, full=False)}
    assert known == {"a", "b", "c", "d"}  # it may have been the memory


def test_an_error_of_our_own_is_not_taken_for_a_broken_video():
    with pytest.raises(RuntimeError, match="a bug, met in a"):
        list(examine_all([Job("a", ())], fail, 1))
    with pytest.raises(RuntimeError, match="ended with status 3"):
        list(examine_all([Job("a", ())], leave, 1))


def test_ten_thousand_videos_are_asked_for_one_by_one_and_little_is_kept(tmp_path):
    asked = 0

    def jobs():
        nonlocal asked
        for asked in range(1, 10_001):
            yield Job(f"video {asked}", ((0, None),))

    tracemalloc.start()
    journal = Journal(tmp_path / "videos.jsonl")
    most_ahead = 0
    for done, facts in enumerate(examine_all(jobs(), name_only, 2), start=1):
        most_ahead = max(most_ahead, asked - done)
        journal.add(facts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    journal.close()
    assert done == 10_000
    assert most_ahead <= 2
    assert peak < 30e6
    again = Journal(tmp_path / "videos.jsonl")
    again.close()
    assert again.facts == journal.facts


# --------------------------------------------------------------------------- the journal
@pytest.fixture
def known(tmp_path, make_video):
    """A journal with one video, its job, and what was seen of it."""
    path = make_video(tmp_path / "a.mp4", 12)
    job = Job(str(path), ((0, 6), (0, None)))
    facts = look(path, *job.stretches)
    journal = Journal(tmp_path / "out" / "videos.jsonl")
    journal.add(facts)
    journal.close()
    return journal.path, job, facts


def test_a_journal_gives_back_what_was_seen(known):
    path, job, facts = known
    facts = facts._replace(damage=(Damage(3, 4, True),), path="odd \udce9 name")
    journal = Journal(path)
    journal.add(facts)
    journal.close()
    again = Journal(path)
    again.close()
    assert again.facts["odd \udce9 name"] == facts
    assert again.knows(job, full=False)


def test_a_line_that_was_cut_off_is_left_out_and_spoils_nothing(known):
    path, job, facts = known
    with path.open("a") as file:
        file.write('{"version": 1, "path": "half a li')
    journal = Journal(path)
    assert set(journal.facts) == {job.path}
    journal.add(facts._replace(path="next"))
    journal.close()
    again = Journal(path)
    again.close()
    assert set(again.facts) == {job.path, "next"}


def test_what_has_changed_or_was_not_asked_before_is_looked_at_again(known):
    path, job, facts = known
    journal = Journal(path)
    assert journal.knows(job, full=False)
    assert journal.knows(Job(job.path, job.stretches[:1]), full=False)
    assert not journal.knows(job, full=True)
    assert not journal.knows(Job(job.path, ((0, 7),)), full=False)
    assert not journal.knows(Job("another", ((0, None),)), full=False)
    journal.add(facts._replace(full=True))
    assert journal.knows(job, full=False)
    assert journal.knows(job, full=True)
    journal.close()
    os.utime(job.path, ns=(1, 1))
    assert not journal.knows(job, full=False)


def test_a_missing_video_is_looked_for_again_and_a_broken_one_is_not(tmp_path):
    (tmp_path / "text.mp4").write_text("no video" * 50)
    journal = Journal(tmp_path / "videos.jsonl")
    for name, known_now in (("text.mp4", True), ("gone.mp4", False)):
        job = Job(str(tmp_path / name), ((0, None),))
        journal.add(look(job.path))
        assert journal.knows(job, full=False) == known_now
    journal.close()


# --------------------------------------------------------------------------- real clips
@pytest.mark.data
def test_what_is_known_of_real_files_is_found(shared):
    codecs = shared / "data" / "codecs"
    corrupt = look(codecs / "corrupted.mp4")
    assert (corrupt.promised, corrupt.num_frames) == (50, 28)
    assert kinds(corrupt, VideoRecord(corrupt.path, 0)) == ["truncated"]
    one_more = look(codecs / "hmdb51_ride.avi")
    assert one_more.promised == one_more.num_frames + 1
    assert kinds(one_more, VideoRecord(one_more.path, 0)) == []
    assert kinds(look(codecs / "unordered.mov"), VideoRecord("x", 0)) == ["still", "short"]


@pytest.mark.data
@pytest.mark.slow
def test_a_full_look_finds_nothing_in_sound_real_files(shared):
    codecs = sorted((shared / "data" / "codecs").iterdir())
    sound = [path for path in codecs if path.name != "corrupted.mp4"]
    clips = sorted((shared / "data" / "ut_interaction").glob("*/*.avi"))
    assert len(clips) == 120
    found = Counter(look(path, full=True).damage for path in sound + clips)
    assert found == {(): len(sound) + 120}


def test_usable_is_what_has_no_problem_that_forbids_it():
    split = judge([VideoRecord("a", 0, 0, 3)], [made_up("a", stretches=((0, 3),))])
    assert [problem.kind for problem in split.problems[0]] == ["short"]
    assert is_usable(split.problems[0])
    assert split.usable() == [True]
