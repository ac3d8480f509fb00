"""A worker's memory: bounded, and no larger after many clips than after some."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import bench_decode
import pytest

ROOT = Path(__file__).parents[2]
# A worker as DataLoader forks it: it says what it holds after each clip.
WORKER = """
import sys
import torch
from torch.utils.data import DataLoader, Dataset
from vmp.data.clips import ClipDataset
from vmp.data.records import VideoRecord
from vmp.data.sampling import RandomClip
from vmp.data.transforms import RandomCrop

def resident():
    lines = open("/proc/self/status", encoding="utf-8").read().splitlines()
    named = dict(line.split(":") for line in lines)
    return {name: int(named[name].split()[0]) // 1024 for name in ("VmRSS", "VmHWM")}

class Watched(ClipDataset):
    def __getitem__(self, key):
        before = resident()["VmRSS"]
        super().__getitem__(key)
        return before, resident()["VmRSS"], resident()["VmHWM"]

clips, paths = int(sys.argv[1]), sys.argv[2:]
dataset = Watched(
    [VideoRecord(paths[item % len(paths)], 0) for item in range(clips)],
    num_views=1,
    pick_frames=RandomClip(32, 2, 30.0, "hold"),
    transform=RandomCrop((256, 320), 224, flip=True),
    seed=0,
)
keys = [[(0, item)] for item in range(clips)]
loader = DataLoader(dataset, batch_sampler=keys, num_workers=1, collate_fn=lambda batch: batch[0])
for seen in loader:
    print(*seen)
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two videos of the size of MPII Cooking 2's, long enough for 32 frames 2 apart."""
    size = (1224, 1624)
    form = bench_decode.Format("MPII", "avi", "mpeg4", size, Fraction(147, 5), 80, 12, 2_500_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bench_decode.FORMATS, "mpii", form)
        return bench_decode.make_videos(tmp_path_factory.mktemp("videos"), "mpii", 2)


def run_worker(clips, videos):
    """Return (before, after, peak) of each clip, resident MB."""
    command = [sys.executable, "-c", WORKER, str(clips), *map(str, videos)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [tuple(map(int, line.split())) for line in done.stdout.splitlines()]


def check(seen):
    inherited = seen[0][0]  # of the parent: torch alone is 300 MB
    peak = seen[-1][2]
    assert peak - inherited < 150
    middle = len(seen) // 2
    later = max(after for _, after, _ in seen[middle:])
    earlier = max(after for _, after, _ in seen[:middle])
    assert later - earlier < 12  # less than the frames of one clip
    return inherited, peak


def test_a_worker_holds_little_more_than_one_clip(videos):
    check(run_worker(24, videos))


@pytest.mark.slow
def test_two_thousand_clips_do_not_make_a_worker_grow(videos):
    inherited, peak = check(run_worker(2000, videos))
    assert peak < 400, f"{inherited} MB of them inherited"
