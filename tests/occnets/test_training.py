# SPDX-License-Identifier: MIT
"""Training: batches, the step, resuming, export, configuration errors."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
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
from occnets.training import ConfigError, TrainConfig, cli_main, fastpath, from_dict, load, runner
from occnets.training import module as module_file
from occnets.training.data import training_batch, validation_batches
from occnets.training.export import export, read_checkpoint
from occnets.training.losses import occupancy_loss, overlap
from occnets.training.module import OccupancyModule
from occnets.training.scan import HALF_BOX, Shape, cube_symmetry, draw_count, make_sample
from occnets.training.schedule import AveragedWeights, learning_rate, progress
from occnets.training.workers import Workers, split

MODEL = {
    "method": "conv_onet",
    "data": {"input_type": "pointcloud", "padding": 0.1, "dim": 3},
    "model": {
        "encoder": "pointnet_local_pool",
        "encoder_kwargs": {
            "hidden_dim": 8,
            "n_blocks": 2,
            "plane_type": "grid",
            "grid_resolution": 8,
            "local_coord": True,
            "unet3d": True,
            "unet3d_kwargs": {"variant": "light", "in_channels": 8, "out_channels": 4, "f_maps": [8, 16], "upscale": 2},
        },
        "decoder": "simple_local",
        "decoder_kwargs": {"hidden_size": 8, "n_blocks": 2},
        "c_dim": 8,
        "registration": "cells",
    },
}


class Ellipsoids:
    """A pool of ellipsoids; ``on_access`` is called with the number of shapes handed out so far."""

    def __init__(self, count: int = 12, on_access: Any = None) -> None:
        self.count, self.on_access, self.handed_out = count, on_access, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Shape:
        self.handed_out += 1
        if self.on_access is not None:
            self.on_access(self.handed_out)
        rng = np.random.default_rng(index)
        axes = rng.uniform(0.2, 0.5, 3)
        axes[index % 3] = 0.5
        sphere = rng.normal(size=(400, 3))
        sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
        normals = sphere / axes
        queries = rng.uniform(-HALF_BOX, HALF_BOX, (500, 3))
        inside = ((queries / axes) ** 2).sum(1) < 1
        return Shape(sphere * axes, normals / np.linalg.norm(normals, axis=1, keepdims=True), queries, inside)

    def refresh(self) -> int:
        return self.count


def make_config(folder: Path, **run: Any) -> TrainConfig:
    return from_dict(
        {
            "model": MODEL,
            "pool": {"held_out": 3, "refresh_seconds": 0.0},
            "batch": {"size": 2, "queries": 128},
            "scan": {"points": 200, "points_range": [50, 300]},
            "optimiser": {"learning_rate": 5e-3, "warmup_steps": 3, "ema_decay": 0.9},
            "run": {
                "output": str(folder),
                "name": "tiny",
                "threads": 2,
                "precision": "fp32",
                "device": "cpu",
                "max_steps": 8,
                "log_steps": 2,
                **run,
            },
        }
    )


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


# --- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    config, source = make_config(tmp_path), Ellipsoids()
    first, again = training_batch(source, config, 5), training_batch(source, config, 5)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["inputs"].shape[::2] == (2, 3) and first["queries"].shape == (2, 128, 3)
    assert first["occupied"].unique().tolist() == [0.0, 1.0]
    assert not torch.equal(first["queries"], training_batch(source, config, 6)["queries"])
    other = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=1))
    assert not torch.equal(first["queries"], training_batch(source, other, 5)["queries"])


def test_held_out_shapes_are_not_trained_on(tmp_path: Path) -> None:
    class Recorder(Ellipsoids):
        seen: set[int] = set()

        def __getitem__(self, index: int) -> Shape:
            self.seen.add(index)
            return super().__getitem__(index)

    config, source = make_config(tmp_path), Recorder()
    for index in range(60):
        training_batch(source, config, index)
    assert source.seen == set(range(3, 12))
    source.seen.clear()
    batches = list(validation_batches(source, config, 32))
    assert source.seen == {0, 1, 2} and len(batches) == 3
    assert batches[0]["queries"].shape == (1, 500, 3)


def test_samples_stay_consistent_under_augmentation(tmp_path: Path) -> None:
    """A sphere's labels can be recomputed after scale and symmetry."""
    scan = dataclasses.replace(
        make_config(tmp_path).scan, noise=(0.0, 0.0), noise_heavy=0.0, outlier_fraction=0.0, shift=0.0
    )
    rng = np.random.default_rng(0)
    points = rng.normal(size=(600, 3))
    points /= 2 * np.linalg.norm(points, axis=1, keepdims=True)
    queries = rng.uniform(-HALF_BOX, HALF_BOX, (800, 3))
    sphere = Shape(points, 2 * points, queries, np.linalg.norm(queries, axis=1) < 0.5)
    for seed in range(20):
        found, where, occupied = make_sample(np.random.default_rng(seed), sphere, scan, 150, 400)
        radii = np.linalg.norm(found, axis=1)
        np.testing.assert_allclose(radii, radii[0], rtol=1e-5)
        assert 0.425 - 1e-6 <= radii[0] <= 0.525 + 1e-6
        assert np.abs(where).max() <= HALF_BOX
        inner = np.abs(where).max(1) < HALF_BOX  # those on the border were moved there
        np.testing.assert_array_equal(np.linalg.norm(where[inner], axis=1) < radii[0], occupied[inner] > 0.5)
        assert not occupied[~inner].any()


def test_disturbances_do_what_they_say(tmp_path: Path) -> None:
    base = make_config(tmp_path).scan
    quiet = dataclasses.replace(
        base, noise=(0.0, 0.0), noise_heavy=0.0, outlier_fraction=0.0, uneven_fraction=0.0, partial_fraction=0.0,
        symmetry=False, scale=(1.0, 1.0), shift=0.0,
    )  # fmt: skip
    shape = Ellipsoids()[0]
    clean, _, _ = make_sample(np.random.default_rng(0), shape, quiet, 300, 10)
    known = {tuple(row) for row in shape.points.astype(np.float32)}
    assert {tuple(row) for row in clean} <= known and len({tuple(row) for row in clean}) == 300

    noisy, _, _ = make_sample(np.random.default_rng(0), shape, dataclasses.replace(quiet, noise=(0.01, 0.01)), 300, 10)
    heavy = dataclasses.replace(quiet, outlier_fraction=1.0, outlier_range=(0.1, 0.1))
    stray, _, _ = make_sample(np.random.default_rng(0), shape, heavy, 300, 10)
    assert not {tuple(row) for row in noisy} & known
    assert len({tuple(row) for row in stray} & known) == 270

    partial = dataclasses.replace(quiet, partial_fraction=1.0)
    missing = [
        len(np.unique(make_sample(np.random.default_rng(s), shape, partial, 400, 10)[0], axis=0)) for s in range(8)
    ]
    assert min(missing) < 380 and min(missing) >= 50
    uneven = dataclasses.replace(quiet, uneven_fraction=1.0)
    picked, _, _ = make_sample(np.random.default_rng(3), shape, uneven, 100, 10)
    assert np.linalg.norm(picked.mean(0)) > np.linalg.norm(clean.mean(0)) + 0.02


def test_counts_and_symmetries_cover_their_range(tmp_path: Path) -> None:
    rng, scan = np.random.default_rng(0), make_config(tmp_path).scan
    counts = [draw_count(rng, scan, 250) for _ in range(400)]
    assert min(counts) >= 50 and max(counts) == 250
    assert 140 < counts.count(200) < 260
    matrices = {tuple(cube_symmetry(rng).flatten()) for _ in range(2000)}
    assert len(matrices) == 48
    for matrix in matrices:
        square = np.reshape(matrix, (3, 3))
        np.testing.assert_array_equal(square @ square.T, np.eye(3))


# --- loss, schedule, average, configuration -------------------------------------------------------------------------


def test_losses_and_overlap() -> None:
    logits, truth = torch.tensor([[0.0, 2.0], [0.0, -2.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    single = torch.log1p(torch.exp(torch.tensor([0.0, 2.0, 0.0, -2.0])))
    torch.testing.assert_close(occupancy_loss(logits, truth), single.mean())
    torch.testing.assert_close(occupancy_loss(logits, truth, reduction="sum"), single.sum() / 2)
    torch.testing.assert_close(occupancy_loss(logits, truth, positive_weight=3.0), (single.sum() + 2 * single[0]) / 4)
    with pytest.raises(ValueError, match="reduction"):
        occupancy_loss(logits, truth, reduction="max")
    with pytest.raises(ValueError, match="one shape"):
        occupancy_loss(logits, truth[:, :1])
    found = overlap(logits, truth, torch.tensor([0.4, 0.6]))
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.0], [0.0, 1.0]]))


def test_schedule_follows_steps_or_the_clock(tmp_path: Path) -> None:
    config = make_config(tmp_path, max_steps=100, max_minutes=1.0)
    assert progress(config.run, 50, 0.0) == 0.5
    assert progress(config.run, 10, 45.0) == 0.75
    assert progress(config.run, 10, 90.0) == 1.0
    rates = [learning_rate(config.optimiser, step, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(5e-3 / 3, rel=1e-3) and max(rates) == rates[2]
    assert rates[-1] == pytest.approx(config.optimiser.final_learning_rate)
    assert all(a > b for a, b in zip(rates[2:], rates[3:], strict=False))


def test_average_follows_and_swaps() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    average = AveragedWeights(model, 0.5)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1.0
    average.update()
    kept = 2 / 11  # (1 + n) / (10 + n) at the first update
    torch.testing.assert_close(average.weights()["weight"], start + 1 - kept)
    average.swap()
    torch.testing.assert_close(model.weight.detach(), start + 1 - kept)
    average.swap()
    torch.testing.assert_close(model.weight.detach(), start + 1)
    with pytest.raises(ValueError, match="parameters of this model"):
        average.load_state_dict({"updates": 1, "mean": {}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": {"sise": 4}}, "batch.sise: unknown key; did you mean 'size'"),
        ({"batsh": {}}, "batsh: unknown key; did you mean 'batch'"),
        ({"batch": {"size": 0}}, "batch.size: expected a count"),
        ({"batch": {"size": "4"}}, "batch.size: expected int, got '4'"),
        ({"batch": 4}, "batch: expected a mapping"),
        ({"scan": {"noise": [0.01]}}, "scan.noise: expected a list of 2 numbers"),
        ({"scan": {"noise": [0.02, 0.01]}}, "scan.noise: expected two lengths"),
        ({"optimiser": {"learning_rate": "1e-3"}}, "write 1.0e-3"),
        ({"optimiser": {"reduction": "max"}}, "optimiser.reduction: expected 'mean' or 'sum'"),
        ({"run": {"max_steps": 0}}, "run.max_steps, run.max_minutes: expected at least one limit"),
        ({"run": {"max_steps": 1, "precision": "fp16"}}, "run.precision"),
    ],
)
def test_wrong_configurations_say_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        from_dict({"model": MODEL, "run": {"max_steps": 1}, **change})


def test_model_is_needed() -> None:
    with pytest.raises(ConfigError, match="model: missing"):
        from_dict({"run": {"max_steps": 1}})


def test_the_bundled_training_configuration_builds_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    import occnets

    path = Path(occnets.__path__[0]) / "configs" / "train" / "convonet-grid.yaml"
    config = load(path, ["batch.size=2", "run.seed=7"])
    assert config.batch.size == 2 and config.run.seed == 7
    assert from_dict(config.to_dict()) == config
    assert fastpath.why_not_fast(build_model(config.model)) is None
    with pytest.raises(ConfigError, match="section.key=value"):
        load(path, ["seed"])


def test_command_line_errors_are_one_line_and_status_two(tmp_path: Path, capsys: Any) -> None:
    assert cli_main([str(tmp_path / "absent.yaml")]) == 2
    assert "no such configuration file" in capsys.readouterr().err
    path = tmp_path / "train.yaml"
    path.write_text(json.dumps({"model": MODEL, "run": {"max_steps": 1}}))
    assert cli_main([str(path), "--pool", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]) == 2
    assert "pool.path" in capsys.readouterr().err
    path.write_text("model: [")
    assert cli_main([str(path)]) == 2
    assert "not readable as YAML" in capsys.readouterr().err


def test_automatic_precision_asks_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert runner.choose_precision("auto", "cpu") == "fp32"
    assert runner.choose_precision("bf16", "cpu") == "bf16"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert runner.choose_precision("auto", "cpu") == "bf16"


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom occnets.training import cli_main\n"
        "try:\n    cli_main(['--help'])\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--max-minutes" in done.stdout
