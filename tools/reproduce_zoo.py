"""The measured parts of MODEL_ZOO.md, made of the summaries of runs in docs/runs.

Each part stands between `<!-- runs: NAME -->` and `<!-- end -->`; what is around them is written by
hand, and stays.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import reproduce_scratch as scratch
from reproduce_cells import DATA_SETS, SCRATCH_SETS, Setting, list_cells
from reproduce_collect import Results, make_entries
from reproduce_summary import RunSummary, read_summaries
from reproduce_tables import compact_table1, markdown, setting_name, short_commit

from vmp.utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "MODEL_ZOO.md"
RUNS = ROOT / "docs" / "runs"
PART = re.compile(r"(<!-- runs: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
SETTINGS = {
    "": "the recipe as it is, without a prompt",
    "lambda-0": "the paper's prompt, m and n drawn at random as in the paper, no penalty",
    "lambda-2.5": "the same with the penalty",
    "lr-10": "m and n have ten times the learning rate",
    "identity": "attention 1 everywhere: the frames after the first, the same training otherwise",
    "start-open": "m and n start where a still pixel has the attention 0.994",
    "gamma-learned": "Gamma in place of the paper's sigmoid, likewise below",
    "maxexp-learned": "MaxExp",
    "sigme-learned": "SigmE",
    "asinhe-learned": "AsinhE",
}


def write_page(page: Path = PAGE, runs: Path = RUNS) -> list[str]:
    """Bring the measured parts of a page up to date; return the names of the parts.

    Raises:
        ValueError: a part that is not known, or summaries that can't be read.
    """
    text = page.read_text(encoding="utf-8")
    write_text(page, fill(text, runs))
    return [name for _, name, _ in PART.findall(text)]


def fill(text: str, runs: Path) -> str:
    """Return a page with its measured parts made anew.

    Args:
        text: of the page.
        runs: folder of summaries; a study that is not there has no runs.

    Raises:
        ValueError: as `write_page`.
    """
    return PART.sub(lambda found: f"{found[1]}{_part(found[2], runs)}\n{found[3]}", text)


def _part(name: str, runs: Path) -> str:
    if name not in PARTS:
        raise ValueError(f"`<!-- runs: {name} -->` is not known; there are: {', '.join(PARTS)}")
    study, make = PARTS[name]
    return make(read_study(runs, study))


def read_study(runs: Path, study: str) -> list[RunSummary]:
    """Return the summaries of a study: of <study>.json and <study>_*.json, each run once.

    Raises:
        ValueError: one of them can't be read.
    """
    paths = sorted({*runs.glob(f"{study}.json"), *runs.glob(f"{study}_*.json")})
    found = {each.cell: each for path in paths for each in read_summaries(path)}
    return list(found.values())


def table1(summaries: Sequence[RunSummary]) -> str:
    """Return the paper's Table 1 beside ours."""
    return compact_table1(make_entries(_results(summaries))) + _origin(summaries)


def scratch_tables(summaries: Sequence[RunSummary]) -> str:
    """Return the tables of the study from scratch, and where they come from."""
    seeds = sorted({each.cell.seed for each in summaries}) or [0]
    cells = list_cells("scratch", seeds=seeds)
    groups = scratch.make_trials(cells, _results(summaries))
    return f"{scratch.tables(groups)}\n{_origin(summaries)}"


def scratch_settings(summaries: Sequence[RunSummary]) -> str:
    """Return what the settings of the study from scratch are, and how to run one."""
    cells = list_cells("scratch", datasets=list(SCRATCH_SETS))
    settings = dict.fromkeys(cell.setting for cell in cells)
    rows = [[setting_name(each), sets(each), SETTINGS[each.name]] for each in settings]
    return markdown(["setting", "KEY VALUE", "what it is"], rows)


def sets(setting: Setting) -> str:
    """Return the KEY VALUE pairs of a setting as they are typed, "" if there are none."""
    return f"`{' '.join(setting.opts)}`" if setting.opts else ""


def _results(summaries: Sequence[RunSummary]) -> Results:
    return {each.cell: each.result for each in summaries}


def _origin(summaries: Sequence[RunSummary]) -> str:
    """Return what was run where, in a paragraph; nothing of no runs."""
    if not summaries:
        return ""
    machines = dict.fromkeys(describe_machine(each.machine) for each in summaries)
    commits = dict.fromkeys(short_commit(each.result.commit) for each in summaries)
    evaluated = all(each.result.evaluated == each.result.official for each in summaries)
    whole = "every test video was evaluated" if evaluated else "some test videos were not evaluated"
    datasets = dict.fromkeys(DATA_SETS[each.cell.dataset].title for each in summaries)
    return (
        f"{len(summaries)} runs ({', '.join(datasets)}), {whole}. Machine: {'; '.join(machines)}. "
        f"Commit {', '.join(commits)}.\n"
    )


def describe_machine(machine: Mapping[str, str]) -> str:
    """Return a machine as a log has it, in words."""
    gpu = machine.get("gpu", "none")
    name = f"{machine['cpu']}, " if machine.get("cpu") else ""
    device = f"{machine.get('threads', '?')} CPU thread(s) a run" if gpu == "none" else gpu
    return f"{name}{device}, torch {machine.get('torch', '?')}"


PARTS: dict[str, tuple[str, Callable[[Sequence[RunSummary]], str]]] = {
    "table1": ("table1", table1),
    "scratch": ("scratch", scratch_tables),
    "scratch-settings": ("scratch", scratch_settings),
}
