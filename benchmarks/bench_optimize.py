# SPDX-License-Identifier: MIT
"""One step of sign-agnostic optimisation: ours against the original design, with the same trained weights and draws.

The original repeats the cloud for every draw of points, so that a batch of 16 draws costs 16 passes of the encoder,
and finds the points' cells anew in each of them. Losses are compared first. Weights and clouds are those of recorded
runs of the original systems, which lie outside the repository (OCC_SHARED).
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "occnets")]

import original  # noqa: E402

from convonet_cases import golden, golden_config  # noqa: E402
from occnets.models import build_model  # noqa: E402
from occnets.refine import PRESETS, OptimizeOptions  # noqa: E402
from occnets.refine.draws import Draw, ObjectDraws  # noqa: E402
from occnets.refine.sign_agnostic import _TrainedField  # noqa: E402

SYSTEMS = {
    "3 planes 64^2, preset object": ("convonet_3plane", "object"),
    "grid 32^3, preset scene": ("convonet_grid32", "scene"),
}


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """The number of threads asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OCC_BENCH_THREADS", before)))
    yield
    torch.set_num_threads(before)


@lru_cache(maxsize=1)
def load(system: str) -> tuple[nn.Module, Tensor, OptimizeOptions, Draw]:
    """A trained network, a cloud (3000, 3), the preset's options and the points of one step."""
    name, preset = SYSTEMS[system]
    run, note = golden(name)
    model = build_model(golden_config(note)).eval()
    model.load_state_dict({key[3:]: torch.from_numpy(run[key]) for key in run.files if key.startswith("sd/")})
    cloud, options = torch.from_numpy(run["in/inputs"])[1].clone(), PRESETS[preset]
    return model, cloud, options, ObjectDraws(cloud, options, seed=0)()


def ours(system: str) -> Callable[[], float]:
    """A step of this project."""
    model, cloud, options, draw = load(system)
    trained = _TrainedField(model, cloud, options, 1)
    optimizer = torch.optim.Adam(trained.parameters, lr=options.learning_rate)

    def step() -> float:
        optimizer.zero_grad()
        loss, _ = trained.loss(draw)
        optimizer.step()
        return loss

    return step


def theirs(system: str) -> Callable[[], float]:
    """A step as the original takes it."""
    model, cloud, options, draw = load(system)
    model = copy.deepcopy(model).train()
    network, count = original.OriginalConvONet(model), options.batch
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    on = draw.target == 0.5
    query = torch.cat([draw.query[part].view(count, -1, 3) for part in (on, ~on)], dim=1)
    target = torch.cat([draw.target[part].view(count, -1) for part in (on, ~on)], dim=1)
    clouds = cloud.expand(count, -1, -1).contiguous()

    def step() -> float:
        optimizer.zero_grad()
        logits = network.decode(query, network.encode(clouds))
        loss = functional.binary_cross_entropy_with_logits(logits.abs(), target, reduction="none").sum(-1).mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


PATHS = {"occkernels": ours, f"original design ({original.SCATTER}, cloud repeated)": theirs}


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("path", PATHS)
def test_step(benchmark: Any, system: str, path: str) -> None:
    first = [make(system)() for make in PATHS.values()]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    benchmark.group = f"one step of optimisation, {system}"
    benchmark.extra_info["path"] = path
    benchmark.pedantic(PATHS[path](system), rounds=5 if path == "occkernels" else 3, warmup_rounds=1)
