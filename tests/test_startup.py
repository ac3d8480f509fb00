"""Nothing is imported before it is needed: what a start has in sys.modules, no matter how fast."""

import json
import subprocess
import sys

import convert
import doctor
import pytest

from tests.conftest import ROOT
from vmp.data import records
from vmp.models import BACKBONES
from vmp.models import convert as names

# What takes long to import, torch's compiler included, and is needed by some runs only.
RARE = {"torchvision", "torch._dynamo", "matplotlib", "tensorboard", "decord", "h5py"}
TOOLS = sorted(
    path
    for path in (ROOT / "tools").glob("*.py")
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
)
SAY = "print(json.dumps([status, sorted(sys.modules)]))\n"
# Both say at the end what is loaded: after an import, and after a tool as `python` runs it.
IMPORTED = "import json, sys\n{}\nstatus = 0\n" + SAY
RUN = (
    """
import json, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
    status = None
except SystemExit as end:
    status = end.code
"""
    + SAY
)


def loaded(code: str, *words: str) -> tuple[object, set[str], str]:
    """Return the exit status, the modules and the error output of a new process."""
    command = [sys.executable, "-c", code, *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    status, modules = json.loads(ended.stdout.splitlines()[-1])
    return status, set(modules), ended.stderr


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
@pytest.mark.parametrize(("words", "wanted"), [(["--help"], 0), (["--no-such-option"], 2)])
def test_a_tool_answers_a_question_or_a_wrong_command_without_torch(tool, words, wanted):
    status, modules, _ = loaded(RUN, str(tool), *words)
    assert status == wanted
    assert not modules & (RARE | {"torch", "av"})


@pytest.mark.parametrize(
    ("words", "wanted"), [([], None), (["run_net", "--help"], 0), (["run_net"], 2)]
)
def test_the_package_lists_and_starts_tools_without_torch(words, wanted):
    status, modules, _ = loaded(RUN, str(ROOT / "vmp" / "__main__.py"), *words)
    assert status == wanted
    assert not modules & (RARE | {"torch", "av"})


def test_what_is_wrong_with_a_config_is_told_without_torch(tmp_path):
    (tmp_path / "wrong.yaml").write_text("TRAIN: {BATCH_SIZES: 8}\n")
    path = str(ROOT / "tools" / "run_net.py")
    status, modules, _ = loaded(RUN, path, "--cfg", str(tmp_path / "wrong.yaml"))
    assert "BATCH_SIZES" in str(status)
    assert "torch" not in modules


@pytest.mark.parametrize("code", ["import vmp", "import vmp.config", "import vmp.utils.files"])
def test_the_package_its_configs_and_its_files_do_without_torch(code):
    assert not loaded(IMPORTED.format(code))[1] & (RARE | {"torch", "av"})


def test_the_motion_prompt_needs_torch_and_none_of_the_rest():
    _, modules, _ = loaded(IMPORTED.format("from vmp.prompts import MotionPrompt, attach"))
    modules -= loaded(IMPORTED.format("import torch"))[1]
    extra = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    assert extra <= {"vmp", "torch"}
    assert not modules & (RARE | {"triton", "av"})


def test_training_and_testing_load_nothing_that_only_some_runs_need():
    _, modules, _ = loaded(IMPORTED.format("import vmp.engine"))
    assert "vmp.engine.run" in modules
    assert not modules & (RARE | {"pytorchvideo"})


def test_all_backbones_are_registered_before_any_is_imported_from_elsewhere():
    assert {name for name, _ in BACKBONES} == {"c2d", "i3d", "slowfast", "timesformer", "x3d"}


def test_the_signals_are_caught_before_torch_is_there():
    """A batch system may signal in the seconds that torch takes; processes started here, too."""
    code = "import runpy, signal\nrunpy.run_path('tools/run_net.py', run_name='__mp_main__')\n"
    code += "assert signal.getsignal(signal.SIGUSR1).__name__ == '_note'"
    assert "torch" not in loaded(IMPORTED.format(code))[1]


def test_the_choices_of_a_command_line_are_those_of_what_it_starts():
    assert names.TARGETS == convert.TARGETS
    assert records.SPLITS == doctor.SPLITS


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("convert", ["in", "out.pth", "--to", "nobody"]),
        ("doctor", ["data", "--cfg", "c", "--splits", "nobody"]),
        ("bench", ["decode", "--backends", "nobody"]),
        ("bench", ["nobody"]),
    ],
)
def test_a_choice_that_there_is_not_is_refused(tool, words):
    status, _, told = loaded(RUN, str(ROOT / "tools" / f"{tool}.py"), *words)
    assert status == 2
    assert "invalid choice: 'nobody'" in told
