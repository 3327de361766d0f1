# SPDX-License-Identifier: MIT
"""Timing two sides in turns: what else the machine does falls on both, so their ratio holds where medians drift."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[], Any]


def measure(
    pair: tuple[Run, Run], repeats: int, clock: Callable[[], float] = time.perf_counter, warmups: int = 2
) -> tuple[list[float], list[float]]:
    """Seconds of both sides, taking turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + warmups):
        for run, into in zip(pair, seconds, strict=True):
            start = clock()
            run()
            if turn >= warmups:
                into.append(clock() - start)
    return seconds


def bench(benchmark: Any, run: Run, ours: Run | None, rounds: int, warmups: int = 1) -> None:
    """Times ``run`` with pytest-benchmark and, before each of its rounds, ``ours`` with warm caches (the second of two
    calls). ``extra_info["in_turns"]`` is the median of the rounds' ratios. ``ours`` is None when ``run`` is ours."""
    seconds: list[float] = []

    def setup() -> None:
        assert ours is not None
        ours()
        start = time.perf_counter()
        ours()
        seconds.append(time.perf_counter() - start)

    benchmark.pedantic(run, setup=None if ours is None else setup, rounds=rounds, warmup_rounds=warmups)
    if ours is not None:
        theirs = benchmark.stats.stats.data
        ratios = [a / b for a, b in zip(theirs, seconds[-len(theirs) :], strict=True)]
        benchmark.extra_info["in_turns"] = statistics.median(ratios)


def bench_pair(benchmark: Any, pair: tuple[Run, Run], side: str, rounds: int) -> None:
    """`bench` of one side of (theirs, ours); ``side`` is its path, ``"occkernels"`` for ours."""
    theirs, ours = pair
    benchmark.extra_info["path"] = side
    bench(benchmark, *((ours, None) if side == "occkernels" else (theirs, ours)), rounds=rounds)
