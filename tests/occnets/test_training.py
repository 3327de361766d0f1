# SPDX-License-Identifier: MIT
"""Training runs: learning, resuming, export, the step."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning.pytorch")
pytest.importorskip("yaml")

from occnets.checkpoints import CheckpointError, load_pretrained
from occnets.models import build_model
from occnets.training import ConfigError, cli_main, fastpath, runner
from occnets.training import module as module_file
from occnets.training.data import training_batch
from occnets.training.export import export, read_checkpoint
from occnets.training.module import OccupancyModule
from occnets.training.workers import Workers, split
from training_helpers import MODEL, Ellipsoids, make_config


@pytest.fixture(autouse=True)
def restore_threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 40 steps."""
    folder = tmp_path_factory.mktemp("run")
    assert runner.train(make_config(folder, max_steps=40), source=Ellipsoids(), command="occnets train tiny.yaml")
    return folder


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_decays(finished: Path) -> None:
    lines = [line for line in lines_of(finished) if "loss" in line]
    assert lines[-1]["step"] == 40
    assert np.mean([line["loss"] for line in lines[-5:]]) < 0.8 * np.mean([line["loss"] for line in lines[:3]])
    assert lines[-1]["learning_rate"] < 0.01 * 5e-3
    assert list(finished.glob("tensorboard/events*"))
    assert [line for line in lines_of(finished) if line.get("validation_shapes") == 3]


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert runner.train(make_config(whole), source=Ellipsoids()) == whole / "tiny"

    def interrupt(handed_out: int) -> None:
        if handed_out == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert runner.train(make_config(parts), source=Ellipsoids(on_access=interrupt)) is None
    assert signal.getsignal(signal.SIGTERM) is before
    stopped = read_checkpoint(parts / "last.ckpt")
    assert 0 < stopped["step"] < 8
    assert not (parts / "tiny").exists()

    runner.train(make_config(parts), resume=parts / "last.ckpt", source=Ellipsoids())
    first, second = read_checkpoint(whole / "last.ckpt"), read_checkpoint(parts / "last.ckpt")
    assert first["step"] == second["step"] == 8
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    for name, value in first["average"]["mean"].items():
        assert torch.equal(value, second["average"]["mean"][name]), name
        assert not torch.equal(value, first["weights"][name]) or value.abs().max() == 0, name
    assert second["seconds"] > stopped["seconds"]


def test_the_exported_model_is_the_averaged_one(finished: Path) -> None:
    from safetensors.torch import load_file

    folder = finished / "tiny"
    weights = load_file(folder / "model.safetensors")
    model, config = load_pretrained(folder)
    assert config["model"]["encoder_kwargs"] == MODEL["model"]["encoder_kwargs"]  # type: ignore[index]
    mean = read_checkpoint(finished / "last.ckpt")["average"]["mean"]
    for name, value in model.named_parameters():
        assert weights[name].dtype == torch.float16
        torch.testing.assert_close(value.detach(), mean[name], rtol=2**-10, atol=1e-7)
    card = (folder / "README.md").read_text()
    assert "`occnets train tiny.yaml`" in card and "IoU" in card and "2 CPU threads" in card
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.yaml", "model.safetensors"]


def test_export_on_demand_from_the_command_line(finished: Path, tmp_path: Path, capsys: Any) -> None:
    assert cli_main(["--export", str(finished / "last.ckpt"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    for name in ("config.yaml", "README.md"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / "tiny" / name).read_bytes()
    first, second = (load_pretrained(folder)[0].state_dict() for folder in (tmp_path / "out", finished / "tiny"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_diverged_model_is_not_exported(finished: Path, tmp_path: Path) -> None:
    content = torch.load(finished / "last.ckpt", weights_only=True)
    name = next(iter(content["occnets"]["average"]["mean"]))
    content["occnets"]["average"]["mean"][name][0] = float("nan")
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match=f"{name} does not fit"):
        export(tmp_path / "bad.ckpt", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_the_clock_ends_a_run_decayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(module_file, "time", SimpleNamespace(monotonic=lambda: 0.25 * next(ticks)))
    config = make_config(tmp_path, max_steps=0, max_minutes=0.5, log_steps=1)
    assert runner.train(config, source=Ellipsoids()) == tmp_path / "tiny"
    lines = [line for line in lines_of(tmp_path) if "loss" in line]
    assert 10 < len(lines) < 120
    assert lines[-1]["done"] > 0.9 and lines[-1]["learning_rate"] < 0.05 * 5e-3
    assert 30 <= read_checkpoint(tmp_path / "last.ckpt")["seconds"] < 34


def test_checkpoints_of_other_models_and_foreign_files_are_refused(finished: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path)
    other = copy.deepcopy(MODEL)
    other["model"]["encoder_kwargs"]["n_blocks"] = 3  # type: ignore[index]
    with pytest.raises(ConfigError, match="model configuration differs"):
        runner.train(dataclasses.replace(config, model=other), resume=finished / "last.ckpt", source=Ellipsoids())
    torch.save({"model": {}}, tmp_path / "foreign.pt")
    with pytest.raises(ConfigError, match="no `occnets` entry"):
        runner.train(config, resume=tmp_path / "foreign.pt", source=Ellipsoids())
    with pytest.raises(ConfigError, match="no such checkpoint"):
        export(tmp_path / "absent.ckpt", tmp_path / "out")


def test_a_small_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 4 shapes.*found 3"):
        runner.train(make_config(tmp_path), source=Ellipsoids(3))


# --- the step -------------------------------------------------------------------------------------------------------


def rough_model(registration: str, scatter: str = "max") -> torch.nn.Module:
    """A model whose zero-initialised layers do something."""
    config = copy.deepcopy(MODEL)
    config["model"]["registration"] = registration  # type: ignore[index]
    config["model"]["encoder_kwargs"]["scatter_type"] = scatter  # type: ignore[index]
    torch.manual_seed(0)
    model = build_model(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("registration", ["corners", "cells"])
@pytest.mark.parametrize("scatter", ["max", "mean"])
def test_the_fast_path_is_the_model(registration: str, scatter: str) -> None:
    model = rough_model(registration, scatter).double()
    assert fastpath.why_not_fast(model) is None
    points = torch.rand(3, 90, 3, dtype=torch.float64) * 1.3 - 0.65  # some beyond the box
    query = torch.rand(3, 70, 3, dtype=torch.float64) * 1.3 - 0.65
    results = []
    for compute in (lambda: model(query, points), lambda: fastpath.fast_logits(model, query, points)):
        model.zero_grad()
        logits = compute()
        logits.square().sum().backward()
        results.append([logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 10
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_other_models_train_without_the_fast_path(tmp_path: Path) -> None:
    config = make_config(tmp_path, max_steps=2)
    plain = copy.deepcopy(MODEL)
    plain["model"]["encoder_kwargs"]["unet3d"] = False  # type: ignore[index]
    assert "UNet3DLight" in str(fastpath.why_not_fast(build_model(plain)))
    assert runner.train(dataclasses.replace(config, model=plain), source=Ellipsoids()) is not None


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_are_those_of_the_whole_batch(tmp_path: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    config = make_config(tmp_path)
    config = dataclasses.replace(config, batch=dataclasses.replace(config.batch, size=3))
    module = OccupancyModule(rough_model("cells"), config)
    batches = [training_batch(Ellipsoids(), config, index) for index in (0, 1)]
    workers = Workers(module)
    assert workers.count == threads
    loss, gradients = workers.gradients(batches)
    workers.close()
    expected = torch.stack([module.piece_loss(batch) for batch in batches]).mean()
    torch.testing.assert_close(loss, expected.detach())
    for found, wanted in zip(gradients, torch.autograd.grad(expected, workers.parameters), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_split_keeps_order_and_never_makes_empty_parts() -> None:
    batch = {"inputs": torch.arange(5)[:, None], "occupied": torch.arange(5)}
    parts = split(batch, 8)
    assert len(parts) == 5
    assert torch.equal(torch.cat([part["inputs"] for part in split(batch, 2)]), batch["inputs"])
