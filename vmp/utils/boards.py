"""Where the numbers and pictures of a run are shown: TensorBoard, and Weights & Biases.

No board is worth a training: what fails is told once and then left alone.
"""

import contextlib
import logging
import os
import queue
import secrets
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from vmp.utils.files import write_text
from vmp.utils.mappings import flatten
from vmp.utils.signals import Interrupted

logger = logging.getLogger(__name__)

WANDB_ID = "wandb_id.txt"
FINISH_SECONDS = 15.0  # for uploads at the end; without a network they would never end
SENDER = "vmp-wandb"  # name of the thread that sends


class Board(Protocol):
    """Shows a run somewhere."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show numbers of update `step`."""

    def picture(self, step: int, name: str, picture: Any) -> None:
        """Show a picture, (H, W, 3) uint8."""

    def close(self) -> None:
        """Show all of it, and let go."""


class Boards:
    """Shows a run on several boards; one that fails is told of once and left out from then on.

    Args:
        boards: by the name they are told of.
    """

    def __init__(self, boards: Mapping[str, Board]) -> None:
        self._boards = dict(boards)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Show the numbers among `values` (numbers, texts, mappings of them) as `kind/name`."""
        scalars = {f"{kind}/{name}": value for name, value in numbers(values).items()}
        self._each(lambda board: board.scalars(step, scalars))

    def draw(self, step: int, make: Callable[[], Mapping[str, Any]]) -> None:
        """Show the pictures that `make` returns, (H, W, 3) uint8 by name.

        Without a board `make` is not called. An error of it is a warning.
        """
        if not self._boards:
            return
        try:
            pictures = make()
        except Exception as error:
            logger.warning("no pictures of step %d: %s", step, error)
            logger.debug("their error", exc_info=True)
            return
        for name, picture in pictures.items():
            self._each(lambda board: board.picture(step, name, picture))  # noqa: B023

    def close(self) -> None:
        """Close them all."""
        self._each(lambda board: board.close())
        self._boards = {}

    def _each(self, show: Callable[[Board], None]) -> None:
        for name, board in list(self._boards.items()):
            try:
                show(board)
            except Exception as error:
                _give_up(name, error)
                del self._boards[name]


def _give_up(name: str, error: Exception) -> None:
    """Say, while `error` is handled, that a board gets no more."""
    logger.warning("%s gets no more of this run: %s", name, error)
    logger.debug("its error", exc_info=True)


def open_boards(
    folder: str | Path,
    *,
    tensorboard: bool,
    wandb: str = "",
    config: Mapping[str, Any] | None = None,
    hparams: Mapping[str, Any] | None = None,
    purge_step: int | None = None,
) -> Boards:
    """Return the boards that are asked for; for rank 0 alone. One that can't be opened is left out.

    Args:
        folder: of the run.
        tensorboard: show it in TensorBoard, from `folder`/tensorboard.
        wandb: project of Weights & Biases, "": none. See `check_wandb`.
        config: what Weights & Biases is to know of the run.
        hparams: {name: value} for TensorBoard's table of hyper-parameters.
        purge_step: what TensorBoard has of this step and later is to be forgotten.
    """
    wanted: dict[str, Callable[[], Board]] = {}
    if tensorboard:
        events = Path(folder, "tensorboard")
        wanted["TensorBoard"] = lambda: TensorBoard(events, hparams or {}, purge_step)
    if wandb:
        wanted["Weights & Biases"] = lambda: WeightsAndBiases(folder, wandb, config or {})
    boards: dict[str, Board] = {}
    for name, make in wanted.items():
        try:
            boards[name] = make()
        except Exception as error:
            _give_up(name, error)
    return Boards(boards)


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among nested `values`, as {names joined by "/": number}."""
    flat = flatten(values, "/").items()
    return {name: float(value) for name, value in flat if isinstance(value, int | float)}


class TensorBoard:
    """Writes event files.

    Args:
        folder: of the files.
        hparams: for the table that sets runs against their metrics. The table takes the last value
            of a scalar for the metric, so nothing is to be written at the end.
        purge_step: what older files have of this step and later is not shown.
    """

    def __init__(
        self, folder: Path, hparams: Mapping[str, Any], purge_step: int | None = None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        if hparams:
            from torch.utils.tensorboard.summary import hparams as summaries

            # SummaryWriter.add_hparams would make a run of its own for them, in a folder below.
            # Without a summary of the experiment TensorBoard finds out by itself what differs.
            start = summaries({name: _plain(value) for name, value in hparams.items()}, {})[1]
            assert self._writer.file_writer is not None  # before `close`
            self._writer.file_writer.add_summary(start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: Any) -> None:
        """Write a picture."""
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Write what waits."""
        with contextlib.suppress(OSError):  # of a full disk it was told before
            self._writer.close()


class WeightsAndBiases:
    """Sends a run to Weights & Biases, or with WANDB_MODE=offline to OUTPUT_DIR/wandb.

    A thread does it, so that a slow network or none has nobody wait. Entity, mode, name, tags and
    the like come from the environment variables that `wandb` reads.

    Args:
        folder: of the run; it keeps the id, so that a resumed training goes on in the same run.
        project: where it is shown.
        config: of the run, nested or flat.
        finish_seconds: how long `close` waits for the rest to be sent.

    Raises:
        ConnectionError: this process still sends what came before, as the training when its test
            is done; `wandb` has one run a process.
        OSError: the id can't be kept.
    """

    def __init__(
        self,
        folder: str | Path,
        project: str,
        config: Mapping[str, Any],
        finish_seconds: float = FINISH_SECONDS,
    ) -> None:
        if any(thread.name == SENDER for thread in threading.enumerate()):
            raise ConnectionError("what came before is still being sent")
        self._folder, self._finish_seconds = Path(folder), finish_seconds
        self._error = ""
        self._failed = False
        self._queue: queue.SimpleQueue[Callable[[Any], object] | None] = queue.SimpleQueue()
        facts = {"project": project, "config": dict(config), "id": _wandb_id(self._folder)}
        self._thread = threading.Thread(target=self._work, args=(facts,), name=SENDER, daemon=True)
        self._thread.start()

    def _work(self, facts: dict[str, Any]) -> None:
        try:
            run = self._begin(facts)
            # steps of a run that went on from a checkpoint come twice, which its own count refuses
            run.define_metric("step", hidden=True)
            run.define_metric("*", step_metric="step")
            while (show := self._queue.get()) is not None:
                show(run)
            run.finish(exit_code=int(self._failed))
        except Exception as error:
            self._error = _one_line(error)

    def _begin(self, facts: dict[str, Any]) -> Any:
        import wandb

        settings = wandb.Settings(
            console="off",  # the terminal is ours: its lines are in log.txt
            silent=True,
            finish_timeout=self._finish_seconds,
        )
        facts |= {"dir": self._folder, "resume": "allow", "settings": settings}
        facts["name"] = os.environ.get("WANDB_NAME") or str(self._folder)
        try:
            return wandb.init(**facts)
        except Exception as error:
            logger.warning(
                "Weights & Biases can't be reached (%s); what it is to show is kept in %s, and "
                "`wandb sync` sends it later",
                *(_one_line(error), self._folder / "wandb"),
            )
            wandb.teardown()  # forget the id, which this process has else in use
            return wandb.init(**facts, mode="offline")

    def _put(self, show: Callable[[Any], object]) -> None:
        if self._error:
            raise ConnectionError(self._error)
        self._queue.put(show)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers."""
        self._put(lambda run: run.log({**values, "step": step}))

    def picture(self, step: int, name: str, picture: Any) -> None:
        """Send a picture."""

        def show(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(picture), "step": step})

        self._put(show)

    def close(self) -> None:
        """Send the rest, as far as that goes in `finish_seconds`; in an error's wake as failed.

        A run that was asked to stop has not failed: it goes on when it is started again.
        """
        error = sys.exc_info()[1]
        self._failed = error is not None and not isinstance(error, Interrupted)
        self._queue.put(None)
        self._thread.join(self._finish_seconds)
        if self._thread.is_alive():
            raise ConnectionError(
                f"not all was sent within {self._finish_seconds:g} s; `wandb sync` of what is in "
                f"{self._folder / 'wandb'} sends it later"
            )
        if self._error:
            raise ConnectionError(self._error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _plain(value: Any) -> float | str:
    return value if type(value) in (int, float) else str(value)


def check_wandb(project: str) -> str:
    """Return what is missing for Weights & Biases, "" if nothing; in a terminal it may ask.

    Args:
        project: "" if it is not wanted.
    """
    if not project:
        return ""
    spec = find_spec("wandb")
    if spec is None or spec.origin is None:  # none: a plain folder of that name, as a run's own
        return (
            f"WANDB.PROJECT is {project!r}, which needs the extra wandb: pip install 'vmp[wandb]', "
            "or set WANDB.PROJECT ''"
        )
    if os.environ.get("WANDB_MODE", "online").lower() not in ("online", "shared"):
        return ""
    import wandb

    try:
        wandb.login(verify=False)  # verified when the run is begun, beside the training
    except Exception as error:
        return (
            f"WANDB.PROJECT is {project!r}, and nobody is logged in ({error}); `wandb login`, set "
            "WANDB_API_KEY or WANDB_MODE=offline, or set WANDB.PROJECT ''"
        )
    return ""


def _wandb_id(folder: Path) -> str:
    """Return the id of the run's page, kept in its folder from the first time on."""
    path = folder / WANDB_ID
    if path.is_file() and (kept := path.read_text(encoding="utf-8").strip()):
        return kept
    made = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    write_text(path, made + "\n")
    return made
