"""The runs that the paper's tables and studies are made of: which there are, and their configs."""

import fnmatch
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from fvcore.common.config import CfgNode

from vmp.config import load_cfg

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PAPER = Path(__file__).with_name("reproduce_table1.json")
# Keys that are a cell's own, with the option that sets them.
OWN = {
    "DATA.SPLIT": "--splits",
    "RNG_SEED": "--seeds",
    "OUTPUT_DIR": "--out",
    "DATA.PATH_TO_DATA_DIR": "--data",
}


class DataSet(NamedTuple):
    """A data set.

    Attributes:
        title: as the paper writes it.
        folder: that its prepare.py was told to write, in --data.
        splits: that are reported; "" for the only one.
        held_out: splits whose test part is a held-out part of the training, to choose settings on:
            official ones of the data set; () where one is made of each of `splits`.
        learned: m and n that the authors' site shows for it: what "fixed" means for the sigmoid;
            None for what the paper does not have.
    """

    title: str
    folder: str
    splits: tuple[str, ...]
    held_out: tuple[str, ...]
    learned: tuple[float, float] | None


# By the folder in configs/: those of the paper, and those that need neither its data nor weights.
PAPER_SETS = {
    "HMDB51": DataSet("HMDB-51", "hmdb51", ("1", "2", "3"), (), (0.2646, -0.6615)),
    "FineGym": DataSet("FineGym", "finegym", ("gym99",), (), (1.05, -2.67)),
    "MPIICooking2": DataSet("MPII Cooking 2", "mpii_cooking2", ("test",), ("val",), (0.257, 0.053)),
}
SCRATCH_SETS = {
    "MotionShapes": DataSet("MotionShapes", "motionshapes", ("",), (), None),
    "UTInteraction": DataSet("UT-Interaction", "ut_interaction", ("crossset", "seq"), (), None),
}
DATA_SETS = PAPER_SETS | SCRATCH_SETS


class Row(NamedTuple):
    """A row of Table 1.

    Attributes:
        name: as printed.
        recipe: file in configs/<data set>, without ".yaml".
        values: of the paper, in percent, one a column.
        printed_gains: over the baseline, as the paper prints them; () for a baseline.
    """

    name: str
    recipe: str
    values: tuple[float, ...]
    printed_gains: tuple[float | None, ...]

    @property
    def baseline(self) -> str:
        """Return the recipe without the prompt, "" if this is one."""
        name, prompted, _ = self.recipe.partition("_VMP")
        return name if prompted else ""


class Column(NamedTuple):
    """A column of Table 1: a metric of a split; split "mean" is the mean over all of them."""

    dataset: str
    split: str
    metric: str


class Setting(NamedTuple):
    """What a study changes in a recipe: its name ("" for nothing), and the overrides."""

    name: str = ""
    opts: tuple[str, ...] = ()


class Cell(NamedTuple):
    """One training run.

    Attributes:
        dataset: folder in configs/.
        recipe: file there, without ".yaml".
        split: DATA.SPLIT.
        seed: RNG_SEED.
        setting: of a study.
        held_out: tested on a part of the training split that is kept out of the training.
    """

    dataset: str
    recipe: str
    split: str
    seed: int
    setting: Setting = Setting()
    held_out: bool = False

    @property
    def name(self) -> str:
        """Return its folder below --out; cells of two studies that are the same run share it."""
        kept_out = "held-out" if self.held_out else ""
        split = f"split-{self.split}" if self.split else ""
        parts = (self.setting.name, kept_out, split, f"seed-{self.seed}")
        return f"{self.dataset}/{self.recipe}/{'_'.join(filter(None, parts))}"

    @property
    def config(self) -> Path:
        """Return the file of its recipe."""
        return CONFIGS / self.dataset / f"{self.recipe}.yaml"


class Places(NamedTuple):
    """Where things lie: prepared data sets, files of weights, and what is written."""

    data: Path
    weights: Path
    out: Path

    def data_of(self, cell: Cell) -> Path:
        """Return the folder of a cell's data set."""
        folder = DATA_SETS[cell.dataset].folder
        if cell.held_out and not DATA_SETS[cell.dataset].held_out:
            return self.out / "held_out" / folder
        return self.data / folder


def read_paper() -> tuple[list[Column], list[Row]]:
    """Return the columns and rows of the paper's Table 1."""
    content: dict[str, Any] = json.loads(PAPER.read_text(encoding="utf-8"))
    columns = [Column(*each) for each in content["columns"]]
    rows = [
        Row(row["name"], row["recipe"], tuple(row["values"]), tuple(row.get("printed_gains", ())))
        for row in content["rows"]
    ]
    return columns, rows


# ---------------------------------------------------------------- which runs there are

PENALTIES = (0.0, 0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0)  # of the authors' site
# The paper's grid (its Appendix D) is not available: these are ours. One constant at a time.
SENSITIVITY = {
    "ALPHA": (1.0, 2.5, 10.0, 20.0),
    "BETA": (0.15, 0.3, 0.6, 0.9),
    "GAMMA": (0.2, 0.4, 0.8, 1.0),
}
POWER_NORMS = ("sigmoid", "gamma", "maxexp", "sigme", "asinhe")


def study_settings(study: str, dataset: str, recipe: str) -> list[Setting]:
    """Return what a study changes in a prompted recipe of a data set."""
    if study == "lambda":
        return [Setting(f"lambda-{each:g}", ("PROMPT.PENALTY", f"{each}")) for each in PENALTIES]
    if study == "sensitivity":
        return [Setting(), *_constants()]
    if study == "scratch":
        return list(_scratch(recipe))
    learned = DATA_SETS[dataset].learned
    if study == "power-norms" and learned:
        return [*_power_norms(*learned)]
    if study == "ablations" and learned:
        return [Setting(), _fixed(*learned), *_ablations(recipe)]
    return [Setting()]


def _constants() -> Iterator[Setting]:
    for key, values in SENSITIVITY.items():
        for value in values:
            yield Setting(f"{key.lower()}-{value:g}", (f"PROMPT.SIGMOID.{key}", f"{value}"))


def _power_norms(m: float, n: float) -> Iterator[Setting]:
    """Yield each power normalisation learned and fixed; the paper's, learned, is the recipe."""
    for name in POWER_NORMS:
        section = f"PROMPT.{name.upper()}"
        chosen = ("PROMPT.POWER_NORM", name)
        if name == "sigmoid":
            yield Setting()
            yield _fixed(m, n)
        else:
            yield Setting(f"{name}-learned", (*chosen, f"{section}.LEARNABLE", "True"))
            yield Setting(f"{name}-fixed", (*chosen, f"{section}.LEARNABLE", "False"))


def _fixed(m: float, n: float) -> Setting:
    section = "PROMPT.SIGMOID"
    fixed = (f"{section}.LEARNABLE", "False", f"{section}.M", f"{m}", f"{section}.N", f"{n}")
    return Setting("sigmoid-fixed", fixed)


def _ablations(recipe: str) -> Iterator[Setting]:
    """Yield what the paper lacks, beside the recipe and fixed a and b; values are ours."""
    yield Setting("identity", ("PROMPT.POWER_NORM", "identity"))
    # f(0) is 0.994 then
    yield Setting("start-open", ("PROMPT.SIGMOID.M", "1.0", "PROMPT.SIGMOID.N", "-1.0"))
    yield Setting("prompt-frozen", ("PROMPT.LR_MULT", "0.0"))
    # all of a network's blocks are what comes after its stem
    blocks = "12" if recipe.startswith("TimeSformer") else "4"
    parts = ("TRAIN.PARTS", "['prompt', 'last_blocks']", "TRAIN.LAST_BLOCKS", blocks)
    yield Setting("stem-frozen", parts)
    for value in (0.1, 10.0):
        yield Setting(f"lr-{value:g}", ("PROMPT.LR_MULT", f"{value}"))
    yield Setting("decay-0.0001", ("PROMPT.WEIGHT_DECAY", "0.0001"))  # the release's [C]
    yield Setting("frobenius", ("PROMPT.REDUCTION", "frobenius"))  # with the recipe's lambda


# Recipes of the study from scratch: X3D with everything, SlowFast for its pathways.
SLOWFAST = ("SLOWFAST", "SLOWFAST_VMP_slow", "SLOWFAST_VMP_fast", "SLOWFAST_VMP_slowfast")
SCRATCH = {
    "MotionShapes": (*SLOWFAST, "X3D_XS", "X3D_XS_VMP"),
    "UTInteraction": ("X3D_S", "X3D_S_VMP", *SLOWFAST),
}


def _scratch(recipe: str) -> Iterator[Setting]:
    """Yield the baseline, or what is measured beside it: one change at a time from lambda 0."""
    if "_VMP" not in recipe:
        yield Setting()
        return
    plain = ("PROMPT.PENALTY", "0.0")
    identity = Setting("identity", (*plain, "PROMPT.POWER_NORM", "identity"))
    opened = ("PROMPT.SIGMOID.M", "1.0", "PROMPT.SIGMOID.N", "-1.0")
    yield Setting("lambda-0", plain)
    if recipe in ("SLOWFAST_VMP_slow", "SLOWFAST_VMP_fast"):
        return
    yield identity
    yield Setting("start-open", (*plain, *opened))
    if recipe.startswith("SLOWFAST"):
        return
    yield Setting("lambda-2.5", ("PROMPT.PENALTY", "2.5"))
    yield Setting("lr-10", (*plain, "PROMPT.LR_MULT", "10.0"))
    for name in POWER_NORMS[1:]:
        learned = ("PROMPT.POWER_NORM", name, f"PROMPT.{name.upper()}.LEARNABLE", "True")
        yield Setting(f"{name}-learned", (*plain, *learned))


def recipes_of(study: str, dataset: str) -> list[str]:
    """Return the recipes of a data set that a study runs, in the order of its table."""
    if study == "scratch":
        return list(SCRATCH[dataset])
    return [row.recipe for row in read_paper()[1] if study == "table1" or row.baseline]


def list_cells(
    study: str,
    *,
    datasets: Sequence[str] = (),
    rows: Sequence[str] = (),
    splits: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
) -> list[Cell]:
    """Return the runs of a study, in the order of Table 1.

    Args:
        study: "table1", "lambda", "sensitivity", "power-norms" or "ablations", of which all but the
            first are of the prompted recipes; or "scratch", on other data sets.
        datasets: folders in configs/; () for all.
        rows: names of recipes, which may have *, ? and [] as in a shell; () for all.
        splits: names; () for all.
        seeds: one run each.

    Raises:
        ValueError: something asked for is not there.
    """
    there = SCRATCH_SETS if study == "scratch" else PAPER_SETS
    for name in datasets:
        if name not in there:
            raise ValueError(f"--dataset {name} is none of {study}'s: {', '.join(there)}")
    known = {name: splits_of(study, name) for name in datasets or there}
    recipes = {name: recipes_of(study, name) for name in known}
    chosen = _select([each for names in recipes.values() for each in names], rows, "--rows")
    if splits:
        _select([split for each in known.values() for split in each], splits, "--splits")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {' '.join(map(str, seeds))} names one twice; name each once")
    return [
        Cell(dataset, recipe, split, seed, setting, held_out=study == "lambda")
        for dataset in known
        for recipe in recipes[dataset]
        if recipe in chosen
        for setting in study_settings(study, dataset, recipe)
        for split in known[dataset]
        if split in splits or not splits
        for seed in seeds
    ]


def splits_of(study: str, dataset: str) -> tuple[str, ...]:
    """Return the splits of a data set that a study runs on."""
    facts = DATA_SETS[dataset]
    return facts.held_out or facts.splits if study == "lambda" else facts.splits


def _select(names: Sequence[str], patterns: Sequence[str], option: str) -> list[str]:
    """Return the names that fit a pattern, or all without one; each pattern must fit some."""
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            known = ", ".join(dict.fromkeys(names))
            raise ValueError(f"{option} {pattern} is none of these: {known}")
    return [
        name
        for name in names
        if not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]


# ---------------------------------------------------------------- their configs


def options_of(cell: Cell, places: Places, opts: Sequence[str]) -> list[str]:
    """Return the KEY VALUE pairs that make a cell's recipe the cell, `opts` among them.

    The recipe's weights, an address, are taken from the file of that name in `places.weights`.

    Raises:
        ValueError: `opts` has a key that is the cell's own.
    """
    for key in opts[::2]:
        if key in OWN or key in cell.setting.opts[::2]:
            way = OWN.get(key, "the study itself")
            raise ValueError(f"{key} is given, but set by {way}; leave it out")
    values = [*opts, *cell.setting.opts]
    values += ["DATA.SPLIT", cell.split, "RNG_SEED", str(cell.seed)]
    values += ["DATA.PATH_TO_DATA_DIR", str(places.data_of(cell))]
    values += ["OUTPUT_DIR", str(places.out / cell.name)]
    if places.data_of(cell).parent != places.data:  # the videos' own index is not made anew
        scans = places.data / DATA_SETS[cell.dataset].folder / "frame_index"
        values += ["DATA.FRAME_INDEX_DIR", str(scans)]
    address = weights_address(cell.config)
    if address and "TRAIN.INIT_FROM" not in opts[::2]:
        values += ["TRAIN.INIT_FROM", str(places.weights / file_name(address))]
    return values


def build_cell_config(cell: Cell, places: Places, opts: Sequence[str]) -> CfgNode:
    """Return the checked config of a cell.

    Raises:
        ValueError: a key or value is wrong, or as in `options_of`.
    """
    return load_cfg(cell.config, options_of(cell, places, opts))


@cache
def weights_address(config: Path) -> str:
    """Return where the weights are published that a recipe names, "" if it starts from none."""
    return str(load_cfg(config).TRAIN.INIT_FROM)


def file_name(source: str) -> str:
    """Return the name of the file that a path or an address leads to."""
    return PurePosixPath(urlsplit(source).path).name
