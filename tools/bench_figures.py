"""How the parts of `tools/bench.py` measure and tell; torch is imported where it is used."""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def check_repeats(repeats: int) -> None:
    """Raise ValueError for fewer rounds than quartiles need."""
    if repeats < 2:
        raise ValueError(f"--repeats is {repeats}; quartiles need 2 or more")


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Return median and quartiles as text."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{form.format(middle)} ({form.format(low)} to {form.format(high)})"


def as_words(settings: Mapping[str, object]) -> list[str]:
    """Return `KEY VALUE KEY VALUE ...`, the overrides of a config."""
    return [str(word) for setting in settings.items() for word in setting]


def pick_device(wanted: str | None) -> str:
    """Return the device of --device, or "cuda" where there is a GPU, else "cpu"."""
    import torch

    return wanted or ("cuda" if torch.cuda.is_available() else "cpu")


def synchronize(device: str) -> None:
    """Wait until a device, "cpu" or "cuda", has done what it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def extra_peak(device: str, work: Callable[[], object]) -> int:
    """Return the most bytes that torch allocates during `work` on top of what was there."""
    if device == "cpu":
        return cpu_peak(work)
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def cpu_peak(work: Callable[[], object]) -> int:
    """Return the most bytes that torch has allocated on the CPU at one time during `work`."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    kineto: Any = profiler.profiler
    events = [e for e in kineto.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(max(itertools.accumulate(event.nbytes() for event in events), default=0))
