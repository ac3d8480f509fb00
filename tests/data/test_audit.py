import av
import pytest

from tests.data.test_examine import cut_off, flip_in_frame, lie_about_frames, look, made_up
from vmp.data import VideoReader
from vmp.data.audit import (
    KINDS,
    QUARANTINED,
    UNUSABLE,
    Clip,
    find_duplicates,
    find_leaks,
    judge_split,
    quarantine_lines,
    summarize,
    verdict,
)
from vmp.data.examine import Damage, StretchFacts, VideoFacts
from vmp.data.records import VideoRecord, quarantine, read_quarantine

CLIP = Clip(num_frames=4, rate=2, target_fps=0.0, policy="hold")  # reaches over 8 frames


def kinds(facts, record, clip=CLIP, num_classes=2):
    """The kinds of problems of a record; a stretch that was not looked at is taken for moving."""
    seen = {part[:2] for part in facts.stretches}
    if not facts.error and (record.start, record.stop) not in seen:
        added = StretchFacts(record.start, record.stop, 99.0, "")
        facts = facts._replace(stretches=(*facts.stretches, added))
    split = judge_split("test", [record], {record.path: facts}, clip=clip, num_classes=num_classes)
    return [problem.kind for problem in split.records[0].problems]


def judge(records, facts, name="test", **changed):
    options = {"clip": CLIP, "num_classes": 2, **changed}
    return judge_split(name, records, {each.path: each for each in facts}, **options)


# --------------------------------------------------------------------------- videos
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
    assert [problem.kind for problem in split.records[0].problems] == ["refused"]
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
    assert [problem.reason for problem in split.records[0].problems] == ["frames 8-12", "frames 3"]


def test_a_record_is_broken_once_and_a_full_look_tells_where():
    facts = made_up("a", stretches=())._replace(
        stretches=(StretchFacts(0, None, None, "frame 8 does not decode"),)
    )
    split = judge([VideoRecord("a", 0)], [facts])
    assert split.records[0].problems == (("broken", "frame 8 does not decode"),)
    split = judge([VideoRecord("a", 0)], [facts._replace(damage=(Damage(8, 12, False),))])
    assert split.records[0].problems == (("broken", "frames 8-12"),)


def test_a_label_without_a_class_is_found_also_of_what_is_excluded():
    split = judge([VideoRecord("a", 2, excluded="absent"), VideoRecord("b", -1)], [made_up("b")])
    found = [[problem.kind for problem in each.problems] for each in split.records]
    assert found == [["label", "excluded"], ["label"]]


def test_usable_is_what_has_no_problem_that_forbids_it():
    records = [VideoRecord("a", 0, 0, 3), VideoRecord("a", 9, 0, 3)]
    split = judge(records, [made_up("a", stretches=((0, 3),))])
    found = [[problem.kind for problem in each.problems] for each in split.records]
    assert found == [["short"], ["label", "short"]]
    assert [each.obstacle for each in split.records] == ["", "label"]
    assert split.usable() == split.records[:1]


def test_a_stretch_is_what_there_is_of_a_record():
    stretches = ((0, None), (30, 99), (40, 50))
    records = [VideoRecord("a", 0, *part) for part in stretches]
    records.append(VideoRecord("a", 0, 0, 9, excluded="absent"))
    split = judge(records, [made_up("a", stretches=stretches)])
    assert [len(each.stretch) for each in split.records] == [40, 10, 0, 0]
    assert split.records[1].stretch == range(30, 40)


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
        made_up("copy of a", stretches=((0, 99),), fingerprint="a"),
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
        VideoFacts("text", state="1-1-0", error="Invalid data"),
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
