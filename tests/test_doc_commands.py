"""Every command in the documentation: run on something small, or read by the very tool it starts.

A command is a line of a fenced block (no language, bash, sh or console) that begins with a program
of PROGRAMS. Each is in one of two tables, by the words it begins with; the longest wins:

- RUN: run as it stands, in a folder of its own, but for what its entry makes smaller.
- NOT_RUN: why not. Its words are still read: tools by their own parser, with the config and the
  KEY VALUE pairs loaded; pytest's paths and markers, pip's extras and files, scripts by bash.
"""

import argparse
import importlib.util
import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT
from tests.test_docs import PAGES
from vmp.__main__ import programs
from vmp.config import load_cfg
from vmp.utils import signals

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
DRY_RUN = "--dry-run"
LANGUAGES = ("", "bash", "sh", "shell", "console")
PROGRAMS = {
    *("python", "python3", "bash", "pytest", "pip", "torchrun", "srun", "sbatch", "vmp"),
    *("tensorboard", "pre-commit", "docker", "apptainer", "sphinx-build", "uv", "qsub", "mpirun"),
    *("curl", "mkdir", "cd", "cat", "source", "ffmpeg", "git", "module", "rsync", "ruff", "mypy"),
}


class Command(NamedTuple):
    """A command of a page: its words, without variables set before it."""

    page: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return shlex.join(self.words)


class Run(NamedTuple):
    """What makes a command small: options set to other values, words put behind, how long it is."""

    options: dict[str, str] = {}
    more: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # the beginnings of commands that make what this one reads
    slow: bool = True


TINY = (
    *("X3D.WIDTH_FACTOR", "1.0", "X3D.DEPTH_FACTOR", "0.2", "X3D.DIM_C5", "64"),
    *("SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "TRAIN.BATCH_SIZE", "4"),
    *("TEST.NUM_ENSEMBLE_VIEWS", "1", "DATA_LOADER.NUM_WORKERS", "0", "LOG_PERIOD", "1"),
)
MAKE_DATA = "python datasets/motionshapes/prepare.py --out data/motionshapes"
FEW = {"--train": "16", "--test": "8"}
TRAIN = "python tools/run_net.py --cfg configs/MotionShapes/"
IN = " DATA.PATH_TO_DATA_DIR data/motionshapes OUTPUT_DIR "
TRAINED = f"{TRAIN}X3D_XS_VMP.yaml{IN}runs/x3d_xs_vmp"

# Words a page leaves to its reader, and what stands for them here; None: nothing.
STAND_IN = {
    "CONFIG": "configs/MotionShapes/X3D_XS.yaml",
    "CFG": "configs/MotionShapes/X3D_XS.yaml",
    "A.yaml": "configs/MotionShapes/X3D_XS.yaml",
    "B.yaml": "configs/MotionShapes/X3D_S.yaml",
    "recipe.yaml": "configs/HMDB51/X3D_M.yaml",
    "<recipe>.yaml": "configs/HMDB51/X3D_M.yaml",
    "KEY": None,
    "VALUE": None,
    "...": None,
}

RUN = {
    MAKE_DATA: Run(FEW, slow=False),
    "python tools/visualize.py curves": Run(slow=False),
    "python tools/visualize.py panels --video some.mp4 --out panel.png": Run(needs=(MAKE_DATA,)),
    "python tools/reproduce.py table1": Run(),
    "python -m vmp": Run(slow=False),
    f"{TRAIN}X3D_XS.yaml{IN}runs/x3d_xs": Run(
        more=(*TINY, "SOLVER.MAX_EPOCH", "5"), needs=(MAKE_DATA,)
    ),
    TRAINED: Run(more=TINY, needs=(MAKE_DATA,)),
    f"{TRAIN}X3D_XS_VMP.yaml{IN}runs/x3d_xs_prompt_only": Run(
        more=TINY, needs=(f"{TRAIN}X3D_XS.yaml{IN}runs/x3d_xs",)
    ),
    f"{TRAIN}X3D_XS_VMP.yaml{IN}runs/lambda": Run(more=TINY, needs=(MAKE_DATA,)),
    "python tools/convert.py runs/x3d_xs/checkpoints/epoch_00005.pth": Run(
        needs=(f"{TRAIN}X3D_XS.yaml{IN}runs/x3d_xs",)
    ),
    "python tools/visualize.py panels --video some.mp4 --out panel.png --checkpoint": Run(
        needs=(TRAINED,)
    ),
    "python tools/visualize.py history": Run(needs=(f"{TRAIN}X3D_XS_VMP.yaml{IN}runs/lambda",)),
    "python tools/visualize.py surfaces": Run(options={"--start": "0"}, needs=(MAKE_DATA,)),
    "python tools/visualize.py panels --video data/motionshapes": Run(
        needs=(MAKE_DATA, f"{TRAIN}X3D_XS_VMP.yaml{IN}runs/lambda")
    ),
    "python tools/visualize.py compare": Run(needs=(MAKE_DATA,)),
    "python tools/bench.py startup": Run(more=("--repeats", "2")),
    "python tools/extract_features.py --checkpoint runs/x3d_xs_vmp": Run(needs=(TRAINED,)),
    "python tools/demo.py --checkpoint runs/x3d_xs_vmp": Run(needs=(TRAINED,)),
    "python tools/summary.py runs": Run(needs=(f"{TRAIN}X3D_XS_VMP.yaml{IN}runs/lambda",)),
    "python tools/summary.py 'runs/lambda": Run(needs=(f"{TRAIN}X3D_XS_VMP.yaml{IN}runs/lambda",)),
    "vmp prepare_motionshapes": Run(FEW),
    "vmp run_net --cfg configs/MotionShapes/": Run(more=TINY, needs=(MAKE_DATA,)),
    "python tools/new_dataset.py": Run(needs=(MAKE_DATA,)),
    "python tools/run_net.py --cfg data/actions/": Run(
        more=TINY, needs=("python tools/new_dataset.py actions",)
    ),
}

# Why a command is only read. Pages say what each takes.
DATASET = "a data set that cannot be handed out"
GPU = "GPUs"
SLURM = "a batch system: tests/test_slurm.py"
MINUTES = "minutes of measuring on a quiet machine"
INSTALLS = "installs: tests/test_scripts.py, and by hand"
SHELL = "the shell's own"
CONTAINER = "a container engine"
LEFT_OUT = "words are left out"
WEIGHTS = "weights to be downloaded"
NOT_RUN = {
    "bash scripts/": INSTALLS,
    "pip": INSTALLS,
    "docker": CONTAINER,
    "apptainer": CONTAINER,
    "tensorboard": "does not end",
    "python -m sphinx": "the extra docs: tests/test_docs.py",
    "python3 -m venv": INSTALLS,
    "source": SHELL,
    "mkdir": SHELL,
    "cd": SHELL,
    "cat": "its file is written for the commands behind it",
    "curl": "a download",
    "pre-commit": "not a part of the environment",
    "pytest": "it is one of these tests",
    "python -m pytest": "it is one of these tests",
    "torchrun ...": LEFT_OUT,
    "torchrun": "several ranks: tests/engine/test_launch.py",
    "srun": SLURM,
    "python tools/submit.py": SLURM,
    "python tools/run_net.py --cfg CONFIG": "a recipe that its reader names",
    "python tools/run_net.py --cfg configs/MotionShapes/X3D_XS_VMP.yaml KEY VALUE": LEFT_OUT,
    "python tools/run_net.py --cfg '<recipe>.yaml'": "a recipe that its reader names",
    "python tools/run_net.py --cfg recipe.yaml": DATASET,
    "python tools/run_net.py --cfg release.yaml": DATASET,
    "python tools/run_net.py --cfg configs/UTInteraction/": DATASET,
    "python tools/run_net.py --cfg configs/HMDB51/": DATASET,
    "python tools/run_net.py --cfg hmdb51_x3d_m_vmp.yaml": DATASET,
    "python datasets/hmdb51/prepare.py": f"{DATASET}; a miniature: tests/data/test_hmdb51.py",
    "python datasets/finegym/prepare.py": f"{DATASET}; a miniature: tests/data/test_finegym.py",
    "python datasets/mpii_cooking2/prepare.py": f"{DATASET}: tests/data/test_mpii_cooking2.py",
    "python datasets/pack.py": f"{DATASET}; a small one: tests/data/test_pack.py",
    "python tools/doctor.py data": f"{DATASET}; a small one: tests/tools/test_doctor.py",
    "python tools/convert.py x3d_m.pyth": f"{WEIGHTS}: tests/tools/test_convert.py",
    f"{TRAIN}SLOWFAST": "minutes for each",
    "python tools/summary.py runs/look": "runs of minutes; a few small ones: tests/tools",
    "python tools/explorer.py": "a server, and does not end: tests/tools/test_explorer.py",
    "python tools/export.py": "the extra export: tests/tools/test_export.py",
    "python tools/extract_features.py --checkpoint x3d_m.pyth": WEIGHTS,
    "python tools/extract_features.py --checkpoint RUN": "a run that its reader names",
    "python tools/reproduce.py table1 --run": GPU,
    "python tools/reproduce.py scratch": "hours; small: tests/tools/test_reproduce_scratch.py",
    "python tools/reproduce.py table1 --collect": "finished runs: tests/tools",
    "python tools/bench.py": f"{MINUTES}: tests/tools/test_bench.py",
}


# ---------------------------------------------------------------- from pages to commands


def logical_lines(block):
    """Return the lines of a block with continued ones joined, without what a heredoc writes."""
    lines = re.sub(r"<<'?(\w+)'?\n.*?^\1$", "", block, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\\\n", " ", lines).splitlines()


def commands_in(page, block):
    """Return the commands of a block; those in a loop once for each value of its variable."""
    loops = {}
    for line in logical_lines(block):
        line = line.strip().removeprefix("$ ")
        loop = re.match(r"for (\w+) in ([^;]*)", line)
        if loop:
            loops[loop[1]] = loop[2].split()
            continue
        for part in re.split(r" && |(?<=\S); do |; ?done\b", line):
            part = re.sub(r"\$\{(\w+)\}", r"$\1", part)
            within = [name for name in loops if f"${name}" in part]
            for values in itertools.product(*(loops[name] for name in within)):
                made = part
                for name, value in zip(within, values, strict=True):
                    made = made.replace(f"${name}", value)
                yield from command_of(page, made)


def command_of(page, line):
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a quote without its twin: prose, or output shown
        return
    while words and re.fullmatch(r"[A-Z_]+=\S*|until|while|time|sudo|exec", words[0]):
        del words[0]
    if words and (words[0] in PROGRAMS or words[0].startswith("vmp-")):
        yield Command(page, tuple(words))


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def all_commands():
    """Return the commands of all pages, each once, in their order."""
    found = [
        command
        for page in PAGES
        for _, language, block in FENCED.findall(text_of(page))
        if language in LANGUAGES
        for command in commands_in(page, block)
    ]
    return list({command.text: command for command in reversed(found)}.values())[::-1]


def entry_of(text):
    """Return the key of a command in the tables: the longest that it begins with, or ""."""
    return max((key for key in {*RUN, *NOT_RUN} if text.startswith(key)), key=len, default="")


COMMANDS = all_commands()
RUNNABLE = [command for command in COMMANDS if entry_of(command.text) in RUN]


def of(commands):
    """Return parameters, named by page and words; those that take long are slow."""
    made = []
    for command in commands:
        run = RUN.get(entry_of(command.text))
        marks = [pytest.mark.slow] if run and run.slow else []
        made.append(pytest.param(command, id=f"{command.page}: {command.text}", marks=marks))
    return made


def test_the_pages_have_commands_of_every_kind():
    assert len(COMMANDS) > 70
    assert {"python", "bash", "pip", "torchrun", "srun"} <= {each.words[0] for each in COMMANDS}
    assert {each.page for each in COMMANDS} >= {"README.md", "INSTALL.md", "docs/clusters.md"}


def test_every_command_is_run_or_has_a_reason():
    lost = [f"{each.page}: {each.text}" for each in COMMANDS if not entry_of(each.text)]
    todo = "\nadd to RUN of this file what makes it small, or to NOT_RUN why it is only read"
    assert not lost, "\n".join(lost) + todo


def test_the_tables_name_nothing_that_no_page_has():
    assert {*RUN, *NOT_RUN} - {entry_of(command.text) for command in COMMANDS} == set()


# ---------------------------------------------------------------- read


class Parsed(Exception):  # noqa: N818  (no error)
    """Carries what a tool's parser made of the words."""


@pytest.fixture
def parse(monkeypatch):
    """Return a function that gives words to a program's own parser, and what that made of them."""

    def stopping(real):
        def stop(parser, *args, **kwargs):
            raise Parsed(real(parser, *args, **kwargs))

        return stop

    for name in ("parse_args", "parse_intermixed_args"):
        real = getattr(argparse.ArgumentParser, name)
        monkeypatch.setattr(argparse.ArgumentParser, name, stopping(real))

    def parse(path, words):
        monkeypatch.setattr(sys, "argv", [str(path), *words])
        monkeypatch.setattr(signals, "install", lambda: None)  # done when run_net is imported
        monkeypatch.syspath_prepend(str(path.parent))
        spec = importlib.util.spec_from_file_location(f"read_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with pytest.raises(Parsed) as told:
            module.main()
        return told.value.args[0]

    return parse


def program_and_words(words):
    """Return the file of the program of ours that a command starts, and its words; or None."""
    names = programs()
    by_file = {path.relative_to(ROOT).as_posix(): path for path in names.values()}
    for index, word in enumerate(words):
        if word in by_file:
            return by_file[word], words[index + 1 :]
        if word.endswith("train.sbatch"):
            return names["run_net"], words[index + 1 :]
    if words[0] == "vmp" or words[:3] == ("python", "-m", "vmp"):
        index = words.index("vmp") + 1
        return (names[words[index]], words[index + 1 :]) if words[index:] else None
    if words[0].startswith("vmp-"):
        return names[words[0][4:].replace("-", "_")], words[1:]
    return None


def stand_in(words):
    made = (STAND_IN.get(word, word) for word in words)
    return [word for word in made if word is not None]


@pytest.fixture
def page_files(tmp_path, monkeypatch):
    """Return a function that writes the files a page shows, into the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(page):
        text = text_of(page)
        for name, _, body in re.findall(
            r"^cat >\s*(\S+) <<'?(\w+)'?\n(.*?)^\2$", text, re.DOTALL | re.MULTILINE
        ):
            Path(name).write_text(body, encoding="utf-8")
        for shown in FENCED.finditer(text):
            named = re.findall(
                r"`([\w-]+\.yaml)`", text[max(0, shown.start() - 300) : shown.start()]
            )
            if shown[2] == "yaml" and named:
                Path(named[-1]).write_text(shown[3], encoding="utf-8")

    return write


def check_config(args, page_files):
    """Load what --cfg names with the KEY VALUE pairs, as the tool will."""
    files = getattr(args, "cfg", None)
    opts = stand_in(getattr(args, "opts", None) or [])
    opts = [word for word in opts if word != DRY_RUN]  # run_net.py takes it at the end, too
    for page in PAGES:  # a file may be shown on another page
        page_files(page)
    for file in stand_in(files if isinstance(files, list) else [files] if files else []):
        load_cfg(file, opts)


def check_pytest(words):
    markers = " ".join(PROJECT["tool"]["pytest"]["ini_options"]["markers"])
    for before, word in zip(("", *words), words, strict=False):
        if word.startswith("tests"):
            assert (ROOT / word.partition("::")[0]).exists(), word
        if before == "-m":
            for name in set(re.findall(r"\w+", word)) - {"not", "and", "or"}:
                assert re.search(rf"\b{name}: ", markers), name


def check_pip(words):
    extras = PROJECT["project"]["optional-dependencies"]
    for before, word in zip(("", *words), words, strict=False):
        if before in ("-c", "-r"):
            assert (ROOT / word).is_file(), word
        if re.match(r"(\.|vmp)\[", word):
            assert Requirement(word.replace(".[", "vmp[", 1)).extras <= set(extras), word


def check_script(words):
    script = next(word for word in words if word.endswith(".sh"))
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


@pytest.mark.parametrize("command", of(each for each in COMMANDS if each not in RUNNABLE))
def test_a_command_is_read_by_what_it_starts(command, parse, page_files):
    words = command.words
    ours = program_and_words(words)
    if words[1:2] == ("...",):
        assert NOT_RUN[entry_of(command.text)] == LEFT_OUT
    elif ours:
        check_config(parse(ours[0], stand_in(ours[1])), page_files)
    elif "pytest" in words:
        check_pytest(words[words.index("pytest") + 1 :])
    elif words[0] == "pip" or words[:3] == ("python", "-m", "pip"):
        check_pip(words)
    elif words[0] == "bash":
        check_script(words)
    else:
        assert entry_of(command.text) in NOT_RUN


@pytest.mark.parametrize(
    "words",
    [
        "python tools/run_net.py --config a.yaml",
        "python tools/run_net.py --cfg configs/MotionShapes/X3D_XS.yaml TRAIN.BATCHSIZE 8",
        "torchrun --nproc-per-node 4 tools/run_net.py --cfg configs/MotionShapes/NONE.yaml",
        "python tools/visualize.py portraits",
        "vmp run_net",
        "vmp-run-net --cfg configs/MotionShapes/X3D_XS.yaml NUM_GPUS",
        "sbatch --nodes 2 scripts/slurm/train.sbatch --gfc c",
        "pytest -m sloow tests",
        "pytest tests/nowhere.py",
        "pip install -e '.[nothing]'",
        "pip install . -c requirements/none.txt",
    ],
)
def test_a_wrong_command_is_found(words, parse, page_files):
    (command,) = command_of("a page", words)
    with pytest.raises((SystemExit, ValueError, AssertionError, pytest.fail.Exception)):
        test_a_command_is_read_by_what_it_starts(command, parse, page_files)


# ---------------------------------------------------------------- run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder like a checkout's, in which commands may write."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("tools", "configs", "datasets", "scripts", "requirements"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """Return a function that runs a command, after those it needs, each once."""
    done = []

    def run(command):
        entry = RUN[entry_of(command.text)]
        words = smaller(command.words, entry)
        if words in done:
            return
        done.append(words)
        for each in RUNNABLE:
            if each != command and each.text.startswith(entry.needs):
                run(each)
        bring_videos(folder)
        module = ["-m", "vmp"] if words[0] == "vmp" else []
        program = [sys.executable, "-W", "ignore", *module, *expand(words[1:], folder)]
        ended = subprocess.run(program, cwd=folder, capture_output=True, encoding="utf-8")
        assert ended.returncode == 0, f"{shlex.join(words)}\n{ended.stdout}\n{ended.stderr}"

    return run


def bring_videos(folder):
    """Put videos where pages take theirs from, once the command that makes some has run."""
    made = sorted(folder.glob("data/motionshapes/train/*.mp4"))
    if not made or (folder / "some.mp4").exists():
        return
    shutil.copy(made[0], folder / "some.mp4")
    shutil.copy(made[0], folder / "data/motionshapes/test/000001.mp4")  # there are fewer here
    rows = []
    for number, video in enumerate(made[:16]):
        name = ("waving", "walking")[number % 2]
        for place in (folder / "actions" / name, folder / "videos"):
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(video, place)
        rows.append(f"videos/{video.name},{name}\n")
    (folder / "videos.csv").write_text("".join(rows), encoding="utf-8")


def expand(words, folder):
    """Return words with patterns of files as a shell would have put them."""
    for word in words:
        found = sorted(folder.glob(word)) if "*" in word else []
        yield from [str(path.relative_to(folder)) for path in found] or [word]


def smaller(words, entry):
    made = list(words)
    for option, value in entry.options.items():
        if option in made:
            made[made.index(option) + 1] = value
    return [*made, *entry.more]


@pytest.mark.parametrize("command", of(RUNNABLE))
def test_a_command_works(command, run):
    run(command)


@pytest.mark.slow
def test_what_the_commands_promise_is_there(folder, run):
    for command in RUNNABLE:
        run(command)
    for command in RUNNABLE:
        for before, word in zip(("", *command.words), command.words, strict=False):
            if before in ("--out", "OUTPUT_DIR"):
                assert (folder / word).exists(), command.text
