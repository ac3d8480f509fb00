"""The house rules that a reader of one file cannot see, each shown to catch a planted violation."""

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

import pytest

from vmp.config import check, get_cfg
from vmp.data import CLASS_NAMES, DATASETS
from vmp.models import BACKBONES
from vmp.prompts import POWER_NORMS
from vmp.utils.registry import section_kwargs

ROOT = Path(__file__).parents[1]
FOLDERS = ("vmp", "tools", "datasets", "scripts")

# Who may import whom. A package of vmp, or a folder of programs; its own files are always allowed.
BELOW_ENGINE = {"models", "prompts", "data", "metrics", "solver", "utils"}
ALLOWED: dict[str, set[str]] = {
    "utils": set(),
    "config": {"utils"},
    "prompts": {"utils"},
    "models": {"prompts", "utils"},
    "data": {"utils"},
    "metrics": {"utils"},
    "solver": {"utils"},
    "engine": BELOW_ENGINE,
    "visualization": {"models", "prompts", "data", "metrics", "utils"},
    "vmp": {"utils"},  # what starts the tools; __init__ itself needs none
    "tools": BELOW_ENGINE | {"config", "engine", "visualization", "vmp"},
    "datasets": {"data", "utils"},
    "scripts": BELOW_ENGINE | {"config", "vmp"},
}
# config is for those who put a run together: these files and any build.py
CONFIG_READERS = {f"vmp/engine/{name}.py" for name in ("run", "training", "testing")}
# Files where cfg may be read outside of build_*: the composition roots
CFG_ROOTS = {
    "vmp/engine/run.py": {"run"},
    "vmp/engine/training.py": {"train"},
    "vmp/engine/testing.py": {"test"},
}
PYTORCHVIDEO_FILES = {f"vmp/models/{name}.py" for name in ("slowfast", "resnet", "x3d")}

Rule = Callable[[str, ast.Module], list[str]]


def owner(path: str) -> str:
    """Return the package or folder that a file belongs to: `data` for vmp/data/clips.py."""
    parts = PurePosixPath(path).parts
    return parts[1] if parts[0] == "vmp" and len(parts) > 2 else parts[0]


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every absolute import, at whatever depth it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, str(node.module)
            # `from vmp import data` means the module vmp.data
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def imported_owner(module: str) -> str:
    """Return the package or folder of an imported module, "" for those of other projects."""
    first, *rest = module.split(".")
    if first in (*FOLDERS, "tests") and first != "vmp":
        return first
    if first != "vmp":
        return ""
    return rest[0] if rest and rest[0] in ALLOWED else "vmp"


def imports_follow_the_graph(path: str, tree: ast.Module) -> list[str]:
    here = owner(path)
    found = []
    for line, module in imported_modules(tree):
        there = imported_owner(module)
        by_root = there == "config" and (path in CONFIG_READERS or path.endswith("/build.py"))
        if there in ("", here, "vmp") or there in ALLOWED[here] or by_root:
            continue
        found.append(f"{path}:{line}: {here} must not import {there} ({module})")
    return found


def imports_are_absolute(path: str, tree: ast.Module) -> list[str]:
    return [
        f"{path}:{node.lineno}: relative import"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def pytorchvideo_stays_behind_three_files(path: str, tree: ast.Module) -> list[str]:
    found = []
    for line, module in imported_modules(tree):
        if module.split(".")[0] != "pytorchvideo":
            continue
        if path not in PYTORCHVIDEO_FILES:
            found.append(f"{path}:{line}: pytorchvideo is for {sorted(PYTORCHVIDEO_FILES)}")
        elif not module.startswith("pytorchvideo.models"):
            found.append(f"{path}:{line}: only pytorchvideo.models imports on a new torchvision")
    return found


def nothing_prints(path: str, tree: ast.Module) -> list[str]:
    if not path.startswith("vmp/"):
        return []
    return [
        f"{path}:{node.lineno}: print; use logging"
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "print"
    ]


def is_cfg(node: ast.AST, names: set[str]) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def cfg_names(function: ast.AST) -> set[str]:
    """Return the names under which a function takes a config: `cfg`, or annotated CfgNode."""
    arguments = getattr(function, "args", None)
    if not isinstance(arguments, ast.arguments):
        return set()
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return {arg.arg for arg in every if arg.annotation and "CfgNode" in ast.dump(arg.annotation)}


def reads_of_cfg(node: ast.AST, names: set[str], roots: set[str]) -> Iterator[int]:
    """Yield the lines below `node`, outside of `roots` and build_*, where a config is read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            name = getattr(child, "name", "")
            if not (name.startswith("build_") or name in roots):
                yield from reads_of_cfg(child, names | cfg_names(child), roots)
            continue
        if isinstance(child, ast.Attribute | ast.Subscript) and is_cfg(child.value, names):
            yield child.lineno
        yield from reads_of_cfg(child, names, roots)


def cfg_is_read_by_builders_only(path: str, tree: ast.Module) -> list[str]:
    if owner(path) == "config" or not path.startswith("vmp/"):
        return []
    lines = sorted(set(reads_of_cfg(tree, {"cfg"}, CFG_ROOTS.get(path, set()))))
    return [f"{path}:{line}: cfg is read outside of a build_* function" for line in lines]


def nobody_stores_cfg(path: str, tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign):
            targets, value = [node.target], node.value
        else:
            continue
        for target in targets:
            kept = isinstance(target, ast.Attribute)
            if kept and (target.attr.strip("_") == "cfg" or is_cfg(value, {"cfg"})):
                found.append(f"{path}:{node.lineno}: cfg is stored on an object")
    return found


def nobody_reads_a_stored_cfg(path: str, tree: ast.Module) -> list[str]:
    if not path.startswith("vmp/"):
        return []  # `args.cfg` of a command line is a file name
    return [
        f"{path}:{node.lineno}: cfg is read from an object"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.strip("_") == "cfg"
    ]


RULES: tuple[Rule, ...] = (
    imports_follow_the_graph,
    imports_are_absolute,
    pytorchvideo_stays_behind_three_files,
    nothing_prints,
    cfg_is_read_by_builders_only,
    nobody_stores_cfg,
    nobody_reads_a_stored_cfg,
)
# (rule, a file it could be in, source that breaks it)
PLANTED: tuple[tuple[Rule, str, str], ...] = (
    (imports_follow_the_graph, "vmp/data/clips.py", "from vmp.models import build_model"),
    (imports_follow_the_graph, "vmp/data/clips.py", "def f():\n    import vmp.prompts.layer"),
    (imports_follow_the_graph, "vmp/metrics/tables.py", "from vmp import data"),
    (imports_follow_the_graph, "vmp/solver/loss.py", "from vmp.config import get_cfg"),
    (imports_follow_the_graph, "vmp/engine/step.py", "from vmp.visualization import panel"),
    (imports_follow_the_graph, "vmp/utils/files.py", "from tools import run_net"),
    (imports_follow_the_graph, "vmp/engine/run.py", "import datasets.motionshapes.prepare"),
    (imports_follow_the_graph, "vmp/engine/run.py", "from tests.conftest import shared"),
    (imports_follow_the_graph, "vmp/__init__.py", "from vmp.models import build_model"),
    (imports_follow_the_graph, "datasets/csv/prepare.py", "from vmp.engine import train"),
    (imports_are_absolute, "vmp/data/clips.py", "from .decode import VideoReader"),
    (imports_are_absolute, "tools/run_net.py", "from . import submit"),
    (pytorchvideo_stays_behind_three_files, "vmp/models/build.py", "import pytorchvideo.models"),
    (
        pytorchvideo_stays_behind_three_files,
        "vmp/models/x3d.py",
        "from pytorchvideo.transforms import Div255",
    ),
    (nothing_prints, "vmp/engine/step.py", "print('loss')"),
    (nothing_prints, "vmp/engine/step.py", "log = print"),
    (cfg_is_read_by_builders_only, "vmp/data/clips.py", "def load(cfg): return cfg.DATA"),
    (cfg_is_read_by_builders_only, "vmp/data/clips.py", "def load(c: CfgNode): return c['DATA']"),
    (cfg_is_read_by_builders_only, "vmp/models/x3d.py", "WIDTH = cfg.X3D.WIDTH_FACTOR"),
    (
        cfg_is_read_by_builders_only,
        "vmp/engine/step.py",
        "class A:\n    def run(self, cfg):\n        return lambda: cfg.SOLVER",
    ),
    (nobody_stores_cfg, "vmp/engine/step.py", "class A:\n    def f(self, cfg): self.cfg = cfg"),
    (nobody_stores_cfg, "vmp/engine/step.py", "class A:\n    def f(self, cfg): self.c = cfg"),
    (
        nobody_stores_cfg,
        "vmp/data/clips.py",
        "class A:\n    def f(self, c): self._cfg: CfgNode = c",
    ),
    (nobody_reads_a_stored_cfg, "vmp/engine/step.py", "rate = runner.cfg.SOLVER.BASE_LR"),
)


def python_files() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def parsed_files() -> Iterable[tuple[str, ast.Module]]:
    for path in python_files():
        text = path.read_text(encoding="utf-8")
        yield path.relative_to(ROOT).as_posix(), ast.parse(text)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule):
    broken = [line for path, tree in parsed_files() for line in rule(path, tree)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(("rule", "path", "source"), PLANTED)
def test_a_planted_violation_is_caught(rule, path, source):
    assert rule(path, ast.parse(source))


def test_every_rule_has_a_planted_violation():
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


def test_what_the_house_allows_passes_every_rule():
    source = (
        "from vmp.config import load_cfg\n"
        "from vmp.prompts import MotionPrompt\n"
        "def build_model(cfg):\n"
        "    return [cfg[name] for name in cfg.MODEL.NAMES]\n"
        "def launch(run, cfg):\n"
        "    return run(cfg)\n"
    )
    assert not [line for rule in RULES for line in rule("vmp/models/build.py", ast.parse(source))]


def test_the_allowed_imports_have_no_cycle():
    left = {name: set(below) for name, below in ALLOWED.items()}
    while free := [name for name, below in left.items() if not below & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_every_package_and_program_folder_has_its_line_in_the_table():
    packages = {path.parent.name for path in (ROOT / "vmp").glob("*/__init__.py")}
    assert packages <= set(ALLOWED)
    assert {path.relative_to(ROOT).parts[0] for path in python_files()} <= set(ALLOWED)


def defaults_of(made: Callable[..., object], given: set[str]) -> dict[str, object]:
    """Return the keyword-only arguments of `made` with their defaults, less those in `given`."""
    parameters = inspect.signature(made).parameters.values()
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
    return {each.name: each.default for each in parameters if each.name not in given}


@pytest.mark.parametrize("name", sorted(name for name, _ in BACKBONES))
def test_a_backbones_section_is_its_signature(name):
    given = {"num_classes", "num_frames", "crop_size", "dropout_rate"}
    assert section_kwargs(get_cfg()[name.upper()]) == defaults_of(BACKBONES.get(name), given)


@pytest.mark.parametrize("name", sorted(name for name, _ in POWER_NORMS))
def test_a_power_norms_section_is_its_signature(name):
    section = get_cfg().PROMPT[name.upper()]
    assert section_kwargs(section) == defaults_of(POWER_NORMS.get(name), set())


def test_the_choices_of_the_config_are_the_registries():
    assert set(check.CHOICES["MODEL.NAME"]) == {name for name, _ in BACKBONES}
    assert set(check.CHOICES["PROMPT.POWER_NORM"]) == {name for name, _ in POWER_NORMS}
    assert set(check.CHOICES["TRAIN.DATASET"]) == {name for name, _ in DATASETS}
    assert {name for name, _ in CLASS_NAMES} == {name for name, _ in DATASETS}
