"""Where each run stands, and what it lacks to be started: data, weights, disk; what it costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import simplejson
from fvcore.common.config import CfgNode
from preflight_disk import build_bytes, build_network_name
from preflight_disk import free_bytes as free_bytes
from reproduce_cells import (
    DATA_SETS,
    Cell,
    Places,
    build_cell_config,
    file_name,
    weights_address,
)
from reproduce_heldout import SOURCES, hold_out

from vmp.config import get_cfg
from vmp.data.build import build_official_records
from vmp.data.release import official_count
from vmp.engine.checkpoint import list_checkpoints
from vmp.engine.provenance import deciding_config
from vmp.models import build_model, model_cost

RESULTS = "test_results.json"
# Keys that say where a file lies; of the weights the name of the file is compared.
WHERE = ("TRAIN.INIT_FROM", "TRAIN.INIT_SHA256", "DATA.FRAME_INDEX_DIR")
# Forward and backward pass of an update, in forward passes.
PASSES = 3
# Networks that were looked at, by what decides their size.
_multiply_adds: dict[str, int] = {}
FORMULA = (
    "GPU hours = (3 x multiply-adds of a training view x clips x epochs + those of the batches "
    "behind precise batch statistics + multiply-adds of a test view x views x test clips) / --rate"
)


class Data(NamedTuple):
    """What there is of a data set's split.

    Attributes:
        lack: why it can't be used; "" if it can.
        train: (usable, official) records; official is None if the release does not tell.
        test: likewise.
    """

    lack: str
    train: tuple[int, int | None]
    test: tuple[int, int | None]


class State(NamedTuple):
    """Where a cell stands.

    Attributes:
        cell: which.
        stage: "finished", "started", "new", or "other" for a folder with another run's results.
        lacks: what it needs and is not there: "data", "weights", "disk"; () once finished.
        details: what to do about it, a line each.
        bytes: that its folder takes.
        hours: of a GPU; None without --rate, or where the number of clips is not known.
        data: what there is of its split.
    """

    cell: Cell
    stage: str
    lacks: tuple[str, ...]
    details: tuple[str, ...]
    bytes: int
    hours: float | None
    data: Data


def build_states(
    cells: Sequence[Cell], places: Places, opts: Sequence[str], rate: float | None = None
) -> list[State]:
    """Return where each cell stands.

    Args:
        cells: which.
        places: of data, weights and runs.
        opts: KEY VALUE pairs of every cell.
        rate: multiply-adds a second of one GPU; None: no hours are told.

    Raises:
        ValueError: a config is wrong.
    """
    found: dict[tuple[str, str, bool], Data] = {}
    states = []
    free = free_bytes(places.out)
    for cell in cells:
        cfg = build_cell_config(cell, places, opts)
        key = (cell.dataset, cell.split, cell.held_out)
        if key not in found:
            found[key] = build_data(cell, cfg, places)
        state = build_state(cell, cfg, found[key], places, rate)
        if not state.lacks and state.stage in ("new", "started"):
            free -= state.bytes
            if free < 0:
                detail = f"disk: {places.out} is too small for the runs from here on"
                state = state._replace(lacks=("disk",), details=(detail,))
        states.append(state)
    return states


def build_state(cell: Cell, cfg: CfgNode, data: Data, places: Places, rate: float | None) -> State:
    """Return where one cell stands, the disk left aside."""
    folder = places.out / cell.name
    lacks, details = [], []
    if data.lack:
        lacks.append("data")
        details.append(data.lack)
    source = cfg.TRAIN.INIT_FROM  # an address, if one is given, is fetched by the run
    if source and "://" not in source and not Path(source).expanduser().is_file():
        lacks.append("weights")
        details.append(f"weights: {source} is not there; get {weights_address(cell.config)}")
    stage = "started" if list_checkpoints(folder) else "new"
    if (folder / RESULTS).is_file():
        complaint = complaint_about(read_results(folder), cfg.dump(), cfg.SOLVER.MAX_EPOCH)
        stage = "other" if complaint else "finished"
        lacks, details = [], [complaint] if complaint else []
    hours = None if rate is None else build_hours(cfg, data, rate)
    size = build_bytes(cfg)
    return State(cell, stage, tuple(lacks), tuple(details), size, hours, data)


# ---------------------------------------------------------------- data


def build_data(cell: Cell, cfg: CfgNode, places: Places) -> Data:
    """Count what the data set of a cell has; nothing is written."""
    name = cfg.TRAIN.DATASET
    official = [official_count(name, cell.split, split) for split in ("train", "test")]
    plain = cfg.clone()
    plain.defrost()
    plain.DATA.PATH_TO_DATA_DIR = str(places.data / DATA_SETS[cell.dataset].folder)
    derived = cell.held_out and not DATA_SETS[cell.dataset].held_out
    try:
        train = build_official_records(plain, "train")
        test = [] if derived else build_official_records(plain, "test")
        if derived:
            train, test = hold_out(train, SOURCES[cell.dataset])
            official = [len(train), len(test)]
    except ValueError as error:
        # a held-out part is of another size, which the release does not tell
        known = [None, None] if derived else official
        return Data(f"data: {error}", (0, known[0]), (0, known[1]))
    usable = [sum(not record.excluded for record in records) for records in (train, test)]
    totals = [count or len(records) for count, records in zip(official, (train, test), strict=True)]
    lack = "" if all(usable) else f"data: {plain.DATA.PATH_TO_DATA_DIR} has no readable videos"
    return Data(lack, (usable[0], totals[0]), (usable[1], totals[1]))


# ---------------------------------------------------------------- what it costs


def build_hours(cfg: CfgNode, data: Data, rate: float) -> float | None:
    """Return the GPU hours of a run by FORMULA; None if it is not known how many clips there are.

    Where the data is not there, the official numbers are taken.
    """
    train = data.train[0] or data.train[1]
    test = data.test[0] or data.test[1]
    if train is None or test is None:
        return None
    view = build_multiply_adds(cfg, cfg.DATA.TRAIN_CROP_SIZE)
    test_view = build_multiply_adds(cfg, cfg.DATA.TEST_CROP_SIZE)
    epochs = cfg.SOLVER.MAX_EPOCH
    clips = PASSES * train * epochs
    if cfg.BN.USE_PRECISE_STATS:
        batches = min(cfg.BN.NUM_BATCHES_PRECISE, -(-train // cfg.TRAIN.BATCH_SIZE))
        times = -(-epochs // cfg.TRAIN.CHECKPOINT_PERIOD)
        clips += batches * cfg.TRAIN.BATCH_SIZE * times
    views = cfg.TEST.NUM_ENSEMBLE_VIEWS * cfg.TEST.NUM_SPATIAL_CROPS
    return float((view * clips + test_view * views * test) / rate / 3600)


def build_multiply_adds(cfg: CfgNode, crop: int) -> int:
    """Return the multiply-adds of a forward pass of one view; each network is run once."""
    key = f"{build_network_name(cfg)} {cfg.DATA.NUM_FRAMES} {crop}"
    if key not in _multiply_adds:
        _multiply_adds[key] = model_cost(build_model(cfg), cfg.DATA.NUM_FRAMES, crop).multiply_adds
    return _multiply_adds[key]


# ---------------------------------------------------------------- results


def read_results(folder: Path) -> dict[str, Any]:
    """Return the test_results.json of a run.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = folder / RESULTS
    try:
        results: dict[str, Any] = simplejson.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read ({error}); run its test again") from error
    return results


def complaint_about(results: Mapping[str, Any], config: str, epochs: int) -> str:
    """Return why results are not those of the cell, "" if they are.

    Args:
        results: of a run.
        config: the cell's, dumped.
        epochs: of its training.
    """
    there = flatten_defaults() | results["config"]
    here = deciding_config(config)
    differences = [
        f"{key} ({there.get(key)} there, {here.get(key)} here)"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and key not in WHERE
    ]
    names = [file_name(str(each["TRAIN.INIT_FROM"])) for each in (there, here)]
    if names[0] != names[1]:
        differences.append(f"TRAIN.INIT_FROM ({names[0]} there, {names[1]} here)")
    if differences:
        return f"another config: {', '.join(differences)}"
    trained = results["trained"]
    if trained.get("config_sha256") != results["config_sha256"]:
        return "the weights are of another training, or the file does not tell of which"
    if trained["epoch"] != epochs:
        return f"tested after epoch {trained['epoch']} of {epochs}"
    return ""


def flatten_defaults() -> dict[str, Any]:
    """Return {dotted key: default} of what decides numbers: a run may be older than a key."""
    return deciding_config(get_cfg().dump())
