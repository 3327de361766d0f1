# SPDX-License-Identifier: MIT
"""Parts of training: batches, losses, schedule, averaged weights, configuration."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning.pytorch")
pytest.importorskip("yaml")

from occnets.models import build_model
from occnets.training import ConfigError, cli_main, fastpath, from_dict, load, runner
from occnets.training.data import training_batch, validation_batches
from occnets.training.losses import occupancy_loss, overlap
from occnets.training.scan import HALF_BOX, Shape, cube_symmetry, draw_count, make_sample
from occnets.training.schedule import AveragedWeights, learning_rate, progress
from training_helpers import MODEL, Ellipsoids, make_config

# --- batches ---


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
