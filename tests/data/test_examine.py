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
from vmp.data.audit import STILL
from vmp.data.examine import (
    Damage,
    Job,
    Journal,
    StretchFacts,
    VideoFacts,
    examine,
    examine_all,
    motion,
    plan_jobs,
)
from vmp.data.records import VideoRecord


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


def made_up(path, num_frames=40, stretches=((0, None),), **changed):
    """What is seen of a sound video, without one."""
    facts = VideoFacts(
        path,
        state="1-1-0",
        fingerprint=path,
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


# --------------------------------------------------------------------------- many videos
def name_only(job):
    return made_up(job.path)


def die_over_some(job, marker):
    if Path(job.path).name.startswith("deadly"):
        os.kill(os.getpid(), signal.SIGKILL)
    with marker.open("a") as file:
        file.write(f"{os.getpid()}\n")
    status = os.stat(job.path)
    return made_up(job.path, state=f"{status.st_size}-{status.st_mtime_ns}-0")


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
@pytest.mark.slow
def test_a_full_look_finds_nothing_in_sound_real_files(shared):
    codecs = sorted((shared / "data" / "codecs").iterdir())
    sound = [path for path in codecs if path.name != "corrupted.mp4"]
    clips = sorted((shared / "data" / "ut_interaction").glob("*/*.avi"))
    assert len(clips) == 120
    found = Counter(look(path, full=True).damage for path in sound + clips)
    assert found == {(): len(sound) + 120}
