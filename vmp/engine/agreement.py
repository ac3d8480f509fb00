"""What the ranks tell each other beside the collectives: facts that must agree, and how they end.

It goes through a store, a table of texts that one process serves, so that it works before there is
a process group and after a collective has failed, and never waits longer than it is told to.
"""

import contextlib
import functools
import json
import math
import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch.distributed import Store  # type: ignore[attr-defined]  # documented, but not listed

from vmp.utils.cli import last_line
from vmp.utils.distributed import gather_objects
from vmp.utils.threads import run_in_time

# Seconds: between two signs of life of a rank; for ranks to say why they end; for them to read what
# others said before the store goes; until a rank whose main thread is stuck somewhere is ended
# after another has failed.
BEAT, GRACE, LINGER, PATIENCE = 1.0, 5.0, 3.0, 15.0
# Of what differs between ranks: keys that are told, ranks whose host is told, characters of a value
KEYS, HOSTS, LENGTH = 3, 4, 80

T = TypeVar("T")


class LostRankError(ConnectionError):
    """Another rank failed, is gone, does not answer or never came; the message says which."""


class Meeting:
    """The ranks of a run around a store.

    Args:
        store: that all of them reach.
        rank: of this process.
        world_size: how many ranks there are.
        line: a connection to the process that serves the store, not blocking, by which its end is
            noticed; None if that is this one, with which the store ends.
        timeout: seconds to wait for a rank, where nothing else is said.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        *,
        line: socket.socket | None,
        timeout: float = 600.0,
    ) -> None:
        self.rank, self.world_size, self.timeout = rank, world_size, timeout
        self.hosts = ["?"] * world_size
        self._open_store, self._line = store, line
        self._count = 0  # of exchanges, the same on all ranks
        self._marked = -math.inf  # when this rank last said that it gets on
        self._left = threading.Event()
        self._watch: threading.Thread | None = None

    @property
    def _store(self) -> Store:
        """The store; raises a ConnectionError if it has gone, which torch tells in many lines."""
        if self._line is not None:
            with contextlib.suppress(BlockingIOError):
                self._line.recv(1)
                raise ConnectionError("the store has gone")  # it never sends anything here
        return self._open_store

    def name(self, ranks: Sequence[int]) -> str:
        """Return `rank 1 (node1)`, or `ranks 0, 2-7` for many of them."""
        if len(ranks) > HOSTS or any(self.hosts[rank] == "?" for rank in ranks):
            return f"rank{'s' * (len(ranks) > 1)} {_spans(ranks)}"
        each = ", ".join(f"{rank} ({self.hosts[rank]})" for rank in ranks)
        return f"rank{'s' * (len(ranks) > 1)} {each}"

    def exchange(
        self, text: str, *, seconds: float, advice: str = "look into its log"
    ) -> list[str]:
        """Return the text of every rank, in rank order; all ranks call it in the same order.

        Args:
            text: of this rank.
            seconds: to wait for the others, from when one of them last said that it gets on.
            advice: what to do about a rank that does not come.

        Raises:
            LostRankError: a rank did not come in time, or one has failed meanwhile; on all ranks
                that came, with the same message.
        """
        self._count += 1
        keys = [f"exchange/{self._count}/{rank}" for rank in range(self.world_size)]
        self._ask(lambda: self._store.set(keys[self.rank], text), seconds + GRACE)
        texts: list[str] = []
        limit, marks = time.monotonic() + seconds, 0
        while not texts:
            over = time.monotonic() > limit
            look = functools.partial(self._look, keys, over, seconds, advice)
            texts, now = self._ask(look, seconds + GRACE)
            if now != marks:
                limit, marks = time.monotonic() + seconds, now
        return texts

    def _look(
        self, keys: list[str], over: bool, seconds: float, advice: str
    ) -> tuple[list[str], int]:
        """Wait up to BEAT for all texts; return them, [] if not there yet, and all ranks' marks."""
        limit, pause, closed = time.monotonic() + BEAT, 0.01, f"over/{self._count}"
        while self._store.check([closed]) or not self._store.check(keys):
            if trouble := self._trouble():
                raise LostRankError(trouble)
            if over:
                self._store.set(closed, "")  # for those that come yet
                missing = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
                who = self.name(missing) if missing else "a rank"
                self._post(
                    f"{who} of {self.world_size} did not come within {round(seconds, 1):g} s; "
                    f"{advice}"
                )
            elif time.monotonic() > limit:
                return [], self._store.add("marks", 0)
            else:
                time.sleep(pause)
                pause = min(0.2, 1.5 * pause)
        return [self._store.get(key).decode() for key in keys], 0

    def get_on(self, reason: str = "") -> str:
        """Say that this rank gets on with long work of its own, and hear whether all should stop.

        As often as one likes: the store is asked once every BEAT.

        Args:
            reason: why all should stop, "" if this rank knows none.

        Returns:
            A reason of any rank, "" if there is none.
        """
        if not reason and time.monotonic() < self._marked + BEAT:
            return ""
        told = self._ask(lambda: self._get_on(reason), self.timeout + GRACE)
        self._marked = time.monotonic()
        return told

    def _get_on(self, reason: str) -> str:
        self._store.add("marks", 1)
        if reason:
            self._store.set("stop", reason)
        return self._store.get("stop").decode() if self._store.check(["stop"]) else ""

    def _ask(self, work: Callable[[], T], seconds: float) -> T:
        """Return what `work` returns, or blame rank 0 if the store does not answer."""
        try:
            return run_in_time(work, seconds)
        except LostRankError:
            raise
        except (OSError, RuntimeError):
            raise LostRankError(self._gone([0])) from None

    def _gone(self, ranks: Sequence[int]) -> str:
        return (
            f"{self.name(ranks)} gave no sign of life: killed, out of memory, stopped, or the host "
            "is down; look into its log"
        )

    def _trouble(self) -> str:
        """Return what was posted first, "" if nothing was."""
        return self._store.get("trouble").decode() if self._store.check(["trouble"]) else ""

    def _post(self, text: str) -> str:
        """Say what ends the run, and return what counts: the first of all that is said."""
        if self._store.add("troubles", 1) == 1:
            self._store.set("trouble", text)
        while not self._trouble():  # who was first has not written it yet
            time.sleep(0.01)
        return self._trouble()

    def fail(self, error: Exception) -> str:
        """Let the others know that this rank ends with `error`.

        Returns:
            What ends the run: that, or what another rank said before; "" if the store has gone.
        """
        text = last_line(f"{type(error).__name__}: {error}")[1]
        if not isinstance(error, LostRankError):
            text = f"{self.name([self.rank])} failed with {type(error).__name__}: {text}"
        with contextlib.suppress(OSError, RuntimeError):
            return run_in_time(lambda: self._post(text), GRACE)
        return ""

    def explain(self, error: Exception, *, seconds: float) -> LostRankError:
        """Find out which rank made a collective of this one fail.

        Args:
            error: of the collective.
            seconds: for which it waited at most.
        """
        try:
            return LostRankError(self._ask(lambda: self._find_cause(error, seconds), 2 * GRACE))
        except LostRankError as lost:
            return lost

    def _find_cause(self, error: Exception, seconds: float) -> str:
        """Return the reason that a rank has posted, or find those without a sign of life."""
        time.sleep(0.1)  # where it is the store that goes, let it be gone
        ends = [f"end/{rank}" for rank in range(self.world_size)]
        self._store.set(ends[self.rank], "")
        before, limit = self._beats(), time.monotonic() + GRACE
        while not self._trouble() and not self._store.check(ends) and time.monotonic() < limit:
            time.sleep(0.1)
        going_on = [rank for rank, key in enumerate(ends) if not self._store.check([key])]
        after = self._beats()
        silent = [rank for rank in going_on if after[rank] == before[rank]]
        if silent:
            return self._post(self._gone(silent))
        if going_on:
            return self._post(
                f"{self.name(going_on)} did not come to a collective within {seconds:g} s and "
                "still runs; look into its log for what it does, or raise DIST_TIMEOUT"
            )
        reason = last_line(f"{type(error).__name__}: {error}")[1]
        return self._post(f"the connection between the ranks broke: {reason}")

    def _beats(self) -> list[int]:
        return [self._store.add(f"beat/{rank}", 0) for rank in range(self.world_size)]

    def watch(self, say: Callable[[str], None]) -> None:
        """Give signs of life, and end this process where another's trouble does not end it.

        Its main thread may be stuck, be it in a collective: a rank has no connection to each other.

        Args:
            say: called in another thread with the trouble, PATIENCE seconds after it was posted;
                then the process ends with status 1.
        """
        self._watch = threading.Thread(target=self._keep_watch, args=(say,), daemon=True)
        self._watch.start()

    def _keep_watch(self, say: Callable[[str], None]) -> None:
        limit = math.inf
        try:
            while time.monotonic() < limit:
                self._store.add(f"beat/{self.rank}", 1)
                trouble = self._trouble()
                if trouble:
                    limit = min(limit, time.monotonic() + PATIENCE)
                if self._left.wait(BEAT):
                    return
            say(trouble)
            self._bid_farewell()
        except (OSError, RuntimeError):  # the store has gone with its process
            if limit == math.inf:
                return
        os._exit(1)

    def leave(self) -> None:
        """End the watch; who serves the store waits for those that may still look into it."""
        self._left.set()
        if self._watch is not None:
            self._watch.join(LINGER)
        seconds = LINGER if self._line is not None else PATIENCE + 2 * LINGER
        with contextlib.suppress(OSError, RuntimeError):
            run_in_time(self._bid_farewell, seconds)

    def _bid_farewell(self) -> None:
        """Say that this rank needs the store no more; who serves it waits for those that may.

        That is while they live, but not much longer than their patience.
        """
        self._store.set(f"left/{self.rank}", "")
        if self._line is not None:
            return
        limit = time.monotonic() + PATIENCE + LINGER
        staying = [rank for rank in range(self.world_size) if rank != self.rank]
        beats, looked = self._beats(), time.monotonic()
        while staying and time.monotonic() < limit:
            time.sleep(0.05)
            staying = [rank for rank in staying if not self._store.check([f"left/{rank}"])]
            if time.monotonic() > looked + LINGER:
                before, beats, looked = beats, self._beats(), time.monotonic()
                staying = [rank for rank in staying if beats[rank] > before[rank]]


_meeting: Meeting | None = None


def set_meeting(meeting: Meeting | None) -> None:
    """Make `meeting` that of this process; None after it."""
    global _meeting
    _meeting = meeting


def exchange(text: str, *, seconds: float | None = None) -> list[str]:
    """Return the text of every rank, in rank order; waits at most `seconds` for the others.

    They are counted from when one of the others last said, by `get_on`, that it gets on; without a
    number they are those of a collective. In a process group that `launch` did not make, it waits
    as long as the group's collectives.

    Raises:
        LostRankError: a rank did not come in time, or has failed.
    """
    if _meeting is None:
        return gather_objects(text)
    return _meeting.exchange(text, seconds=_meeting.timeout if seconds is None else seconds)


def get_on(reason: str = "") -> str:
    """Say that this rank gets on with long work of its own; return why all should stop, or ""."""
    return reason if _meeting is None else _meeting.get_on(reason)


def name_ranks(ranks: Sequence[int]) -> str:
    """Return `rank 1 (node1)`: the ranks with their hosts, where these are known."""
    if _meeting is None:
        return f"rank{'s' * (len(ranks) > 1)} {_spans(ranks)}"
    return _meeting.name(ranks)


def check_agreement(facts: Mapping[str, str], *, seconds: float | None = None) -> None:
    """Compare small facts between the ranks: all must have the same.

    Args:
        facts: name -> value of this rank: hash of the config, number of records, versions ...
        seconds: to wait for the others, as in `exchange`.

    Raises:
        ValueError: they differ; on all ranks, with which rank differs in what.
        LostRankError: a rank did not come in time, or has failed.
    """
    texts = exchange(json.dumps(dict(facts)), seconds=seconds)
    complaint = describe_differences([json.loads(text) for text in texts])
    if complaint:
        raise ValueError(
            f"the ranks do not agree: {complaint}; give all of them the same config, data and "
            "installation"
        )


def describe_differences(facts: Sequence[Mapping[str, str]]) -> str:
    """Return `key is 'a' on rank 1 (node1), 'b' on ranks 0, 2-7`, the rarest first; "" if equal."""
    told = []
    for key in dict.fromkeys(key for each in facts for key in each):
        ranks = defaultdict(list)
        for rank, each in enumerate(facts):
            ranks[repr(each[key]) if key in each else "missing"].append(rank)
        if len(ranks) > 1:
            rarest_first = sorted(ranks.items(), key=lambda item: (len(item[1]), -item[1][0]))
            values = (f"{value[:LENGTH]} on {name_ranks(where)}" for value, where in rarest_first)
            told.append(f"{key} is {', '.join(values)}")
    more = f"; and {len(told) - KEYS} more" if len(told) > KEYS else ""
    return "; ".join(told[:KEYS]) + more


def _spans(ranks: Sequence[int]) -> str:
    """Return `0, 2-7`."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
