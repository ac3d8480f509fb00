"""Fixtures for all tests: the random state restored, and the folder of shared reference data."""

import importlib.util
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from vmp.utils import signals

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _restored_random_state() -> Iterator[None]:
    """Give every test the same random state, and leave none behind."""
    state, torch_state = random.getstate(), torch.get_rng_state()
    numpy_state = np.random.get_state()  # noqa: NPY002  (libraries draw from it)
    torch.manual_seed(0)
    yield
    random.setstate(state)
    np.random.set_state(numpy_state)  # noqa: NPY002
    torch.set_rng_state(torch_state)


@pytest.fixture(scope="session", autouse=True)
def _plain_signals() -> None:
    """Give pytest its signals back: tools/run_net.py, which tests import, takes note of them."""
    for name in signals.DEFAULT.split(","):
        signal.signal(signal.Signals[name], signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder with `data/` (real clips) and `golden/` (reference outputs), or skip."""
    beside = ROOT.parent / "shared"
    folder = Path(os.environ.get("VMP_SHARED", beside))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no reference data in {folder}; set VMP_SHARED to the folder that has it")
    return folder


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Have torch use one thread: networks as small as those of tests only lose by a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load_module(name: str, path: Path) -> Iterator[ModuleType]:
    """Import a file that is in no package, for as long as the fixture lasts."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # processes it starts look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture(scope="session")
def fill(shared: Path) -> Iterator[ModuleType]:
    """Return the formula behind the reference outputs."""
    yield from load_module("golden_fill", shared / "golden" / "fill.py")


@pytest.fixture(scope="session")
def prepare() -> Iterator[ModuleType]:
    """Return datasets/motionshapes/prepare.py."""
    path = ROOT / "datasets" / "motionshapes" / "prepare.py"
    yield from load_module("motionshapes_prepare", path)


@pytest.fixture(scope="session")
def motionshapes(prepare: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a very small MotionShapes: 32 training and 16 test videos."""
    folder = tmp_path_factory.mktemp("motionshapes")
    counts = {"train": 32, "test": 16}
    prepare.make_dataset(folder, counts, seed=0, num_frames=12, size=32, workers=1)
    return folder
