# SPDX-License-Identifier: MIT
"""What training adds for single families: auxiliary terms, batch norms, latent codes, voxels, teachers, inheritance."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning.pytorch")
pytest.importorskip("yaml")

from bracket_cases import FAMILIES, Brackets, bracket, family_run, shape_of
from occnets.checkpoints import load_pretrained
from occnets.data.pool import PoolConfig, ShapePool, voxel_centers, write_pool
from occnets.models import build_model
from occnets.models.latent import kl_to_prior
from occnets.training import ConfigError, TrainConfig, from_dict, load, runner
from occnets.training.data import PoolSource, training_batch, validation_batches
from occnets.training.export import read_checkpoint
from occnets.training.losses import distillation_loss, occupancy_loss
from occnets.training.module import OccupancyModule
from occnets.training.scan import make_voxel_sample
from occnets.training.schedule import AveragedWeights
from occnets.training.workers import Workers
from training_helpers import Ellipsoids, make_config

ONET: dict[str, Any] = {
    "method": "onet",
    "data": {"input_type": "pointcloud", "dim": 3},
    "model": {
        "encoder": "pointnet_resnet",
        "encoder_kwargs": {"hidden_dim": 16},
        "encoder_latent": "simple",
        "z_dim": 4,
        "decoder": "cbatchnorm",
        "decoder_kwargs": {"hidden_size": 16},
        "c_dim": 16,
    },
}
PLANES: dict[str, Any] = {
    "method": "dynamic_planes_conv_onet",
    "data": {"input_type": "pointcloud", "dim": 3, "padding": 0.1},
    "model": {
        "encoder": "dynamic_pointnet_local_pool",
        "encoder_kwargs": {"hidden_dim": 8, "plane_resolution": 8, "n_channels": 3},
        "decoder": "dynamic_simple_local",
        "decoder_kwargs": {"hidden_size": 8},
        "c_dim": 8,
    },
}


@pytest.fixture(autouse=True)
def restore_threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def config_of(model: dict[str, Any], folder: Path, reduction: str = "mean", **run: Any) -> TrainConfig:
    base = make_config(folder, **run)
    optimiser = dataclasses.replace(base.optimiser, reduction=reduction)
    return dataclasses.replace(base, model=model, optimiser=optimiser)


@pytest.mark.parametrize("model", [ONET, PLANES])
def test_auxiliary_terms_keep_their_weight_against_the_sum_over_queries(model: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_model(model)
    losses = {}
    for reduction in ("sum", "mean"):
        config = config_of(model, tmp_path, reduction)
        batch = training_batch(Ellipsoids(), config, 0)
        torch.manual_seed(1)
        losses[reduction] = OccupancyModule(network, config).piece_loss(batch)
        torch.manual_seed(1)
        logits, terms = network.training_outputs(batch["queries"], batch["inputs"], batch["occupied"])
        assert list(terms) == (["kl"] if model is ONET else ["similarity"])
        assert all(term.item() > 1e-4 for term in terms.values())
    expected = occupancy_loss(logits, batch["occupied"], reduction="sum") + sum(terms.values())
    torch.testing.assert_close(losses["sum"], expected)
    torch.testing.assert_close(losses["mean"] * batch["queries"].shape[1], expected)


def test_terms_of_the_latent_code_and_the_planes_are_the_published_ones(tmp_path: Path) -> None:
    config = config_of(ONET, tmp_path)
    batch = training_batch(Ellipsoids(), config, 0)
    model = build_model(ONET)
    _, terms = model.training_outputs(batch["queries"], batch["inputs"], batch["occupied"])
    posterior = model.infer_latent(batch["queries"], batch["occupied"], model.encode(batch["inputs"])["c"])
    torch.testing.assert_close(terms["kl"], kl_to_prior(*posterior).mean())
    planes = build_model(PLANES)
    axes = torch.tensor([[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [3**-0.5] * 3]])
    torch.testing.assert_close(
        planes.auxiliary_losses({"normals": axes})["similarity"], torch.tensor(0.0823046), rtol=1e-4, atol=0
    )


def test_the_family_switch_turns_the_similarity_off(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_model(PLANES)
    off = {**PLANES, "training": {"similarity": False}}
    batch = training_batch(Ellipsoids(), config_of(PLANES, tmp_path), 0)
    logits = network(batch["queries"], batch["inputs"])
    plain = occupancy_loss(logits, batch["occupied"])
    torch.testing.assert_close(OccupancyModule(network, config_of(off, tmp_path)).piece_loss(batch), plain)
    assert OccupancyModule(network, config_of(PLANES, tmp_path)).piece_loss(batch).item() > plain.item() + 1e-6


def test_batch_norms_see_the_whole_batch_and_their_statistics_are_averaged(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    config = config_of(ONET, tmp_path)
    module = OccupancyModule(build_model(ONET), config)
    assert Workers(module).count == 1
    assert Workers(OccupancyModule(build_model(PLANES), config_of(PLANES, tmp_path))).count == 2

    norm = torch.nn.BatchNorm1d(3)
    average = AveragedWeights(norm, 0.5)
    assert set(average.weights()) == {"weight", "bias", "running_mean", "running_var"}
    norm(torch.randn(8, 3) + 5.0)
    average.update()
    kept = 2 / 11
    torch.testing.assert_close(average.weights()["running_mean"], norm.running_mean * (1 - kept))


def test_a_latent_run_continues_as_if_it_had_not_been_interrupted(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert runner.train(config_of(ONET, whole), source=Ellipsoids()) == whole / "tiny"

    def interrupt(handed_out: int) -> None:
        if handed_out == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    assert runner.train(config_of(ONET, parts), source=Ellipsoids(on_access=interrupt)) is None
    runner.train(config_of(ONET, parts), resume=parts / "last.ckpt", source=Ellipsoids())
    first, second = (read_checkpoint(folder / "last.ckpt") for folder in (whole, parts))
    assert first["step"] == second["step"] == 8
    for kind in (lambda own: own["weights"], lambda own: own["average"]["mean"]):
        assert all(torch.equal(value, kind(second)[name]) for name, value in kind(first).items())


def test_unconditional_networks_train_without_inputs(tmp_path: Path) -> None:
    model = copy.deepcopy(ONET)
    model["data"]["input_type"] = None
    model["model"] |= {"encoder": None, "encoder_kwargs": {}}
    assert runner.train(config_of(model, tmp_path), source=Ellipsoids()) is not None


# --- voxels ----------------------------------------------------------------------------------------------------------


def test_voxels_turn_with_their_queries(tmp_path: Path) -> None:
    shape = shape_of(bracket(1), 1, 100, 4000, voxels=32)
    scan = make_config(tmp_path).scan
    for seed in range(12):
        voxels, queries, occupied = make_voxel_sample(np.random.default_rng(seed), shape, scan, 3000)
        cell = np.floor((queries + 0.5) * 32).astype(int)
        within = ((cell >= 0) & (cell < 32)).all(axis=1)
        found = voxels[tuple(cell[within].T)]
        assert (found == occupied[within]).mean() > 0.75  # queries lie near the surface, cells are coarse
        assert voxels.sum() == shape.voxels.sum()  # type: ignore[union-attr]


def test_a_pool_keeps_voxels(tmp_path: Path) -> None:
    for folder, side in (("with", 8), ("without", 0)):
        list(write_pool(tmp_path / folder, 2, seed=3, sizes=PoolConfig(200, 200, voxels=side)))
    pool = ShapePool(tmp_path / "with")
    from occnets.data.procedural import random_shape

    solid = random_shape(pool.seed(1))
    assert torch.equal(pool[1].voxels, solid.occupancy(voxel_centers(8)).view(8, 8, 8))
    assert pool[0].voxels.any() and ShapePool(tmp_path / "without")[0].voxels is None
    config = config_of({"method": "onet", "data": {"input_type": "voxels"}, "model": {}}, tmp_path)
    with pytest.raises(ConfigError, match="--voxels 32"):
        runner.train(config, source=PoolSource(str(tmp_path / "without")))


@pytest.mark.parametrize(
    ("name", "steps"), [pytest.param("onet-voxel", 150, marks=pytest.mark.slow), ("convonet-voxel", 40)]
)
def test_networks_that_read_voxels_fit_a_shape(name: str, steps: int, tmp_path: Path) -> None:
    small = {
        "onet-voxel": {"decoder": "simple", "c_dim": 32, "decoder_kwargs": {"hidden_size": 32}},
        "convonet-voxel": {"encoder_kwargs": {"plane_resolution": 32, "unet_kwargs": {"depth": 2, "start_filts": 8}}},
    }
    config = family_run(name, tmp_path, smoke=True, model={"model": small[name]}, max_steps=steps)
    config = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, positive_weight=1.0))
    source = Brackets(1, surface=300, queries=1000, voxels=32)
    folder = runner.train(config, source=source)
    assert folder is not None
    model, _ = load_pretrained(folder)
    batch = training_batch(source, config, 1000)
    with torch.no_grad():
        loss = occupancy_loss(model(batch["queries"], batch["inputs"]), batch["occupied"])
    share = batch["occupied"].mean()
    assert loss < 0.9 * torch.distributions.Bernoulli(share).entropy()  # of a network that knows the share only


def test_inputs_that_no_solid_has_are_refused(tmp_path: Path) -> None:
    config = config_of({**ONET, "data": {"input_type": "img"}}, tmp_path)
    with pytest.raises(ConfigError, match="pointcloud, partial_pointcloud, voxels, None, got 'img'"):
        list(validation_batches(Ellipsoids(), config, 1))


# --- teachers --------------------------------------------------------------------------------------------------------


def test_distillation_is_zero_for_equal_logits_and_grows_with_the_difference() -> None:
    wanted = torch.tensor([[-3.0, 0.5, 2.0]])
    assert float(distillation_loss(wanted, wanted, 2.0)) == pytest.approx(0.0, abs=1e-6)
    near, far = (float(distillation_loss(wanted + shift, wanted, 2.0)) for shift in (0.5, 2.0))
    assert 0 < near < far
    # For small differences the temperature changes nothing: the curvature of the loss is sigmoid' / 2 at any of them.
    hot = float(distillation_loss(torch.full((1, 1), 0.1), torch.zeros(1, 1), 5.0))
    assert hot == pytest.approx(0.1**2 / 8, rel=1e-2)
    total = distillation_loss(wanted + 1, wanted, 2.0, reduction="sum")
    torch.testing.assert_close(total, 3 * distillation_loss(wanted + 1, wanted, 2.0))


def test_a_student_comes_closer_to_its_teacher(tmp_path: Path) -> None:
    source = Ellipsoids()
    config = make_config(tmp_path / "teacher", max_steps=60)
    # A teacher that calls too much occupied: who learns from the shapes alone does not agree with it by itself.
    biased = dataclasses.replace(config.optimiser, positive_weight=6.0)
    teacher = runner.train(dataclasses.replace(config, optimiser=biased), source=source)
    assert teacher is not None
    gaps = {}
    for weight in (0.0, 1.0):
        config = make_config(tmp_path / str(weight), max_steps=60, seed=5)
        config = dataclasses.replace(
            config, distill=dataclasses.replace(config.distill, teacher=str(teacher), weight=weight)
        )
        student = runner.train(config, source=source)
        assert student is not None
        names = read_checkpoint(tmp_path / str(weight) / "last.ckpt")["weights"]
        assert not any("teacher" in name for name in names)
        gaps[weight] = logit_gap(student, teacher, config)
    assert gaps[1.0] < 0.7 * gaps[0.0]


def logit_gap(student: Path, teacher: Path, config: TrainConfig) -> float:
    """Mean absolute difference of two networks' logits on held-out shapes, where the teacher is not sure."""
    models = [load_pretrained(folder)[0] for folder in (student, teacher)]
    gaps = []
    with torch.no_grad():
        for batch in validation_batches(Ellipsoids(), config, 3):
            first, second = (model(batch["queries"], batch["inputs"]) for model in models)
            gaps.append((first.sigmoid() - second.sigmoid()).abs().mean())
    return float(torch.stack(gaps).mean())


def test_a_teacher_must_exist_and_read_the_same(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    for teacher, model, message in (
        ("nobody", config.model, "distill.teacher: 'nobody'"),
        ("convonet-grid", {**config.model, "data": {"input_type": "voxels"}}, "reads voxels, convonet-grid reads"),
    ):
        asked = dataclasses.replace(config, model=model, distill=dataclasses.replace(config.distill, teacher=teacher))
        with pytest.raises(ConfigError, match=message):
            runner.load_teacher(asked)


# --- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FAMILIES, "onet-unconditional", "onet-voxel", "convonet-voxel"])
def test_packaged_training_configurations_build(name: str) -> None:
    config = load(name)
    assert config.run.name == name
    assert from_dict(config.to_dict()) == config
    with torch.device("meta"):
        model = build_model(config.model)
    assert hasattr(model, "training_outputs")


def test_training_files_inherit(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model: {method: onet}\nbatch: {size: 3, queries: 7}\nrun: {max_steps: 5}\n")
    (tmp_path / "own.yaml").write_text("inherit_from: base\nbatch: {size: 2}\n")
    config = load(tmp_path / "own.yaml")
    assert (config.batch.size, config.batch.queries, config.run.max_steps) == (2, 7, 5)
    (tmp_path / "other.yaml").write_text(
        "inherit_from: base.yaml\nmodel: {inherit_from: transonet-light, model: {c_dim: 16}}\n"
    )
    model = load(tmp_path / "other.yaml").model
    assert model["method"] == "transonet" and model["model"]["c_dim"] == 16
    (tmp_path / "a.yaml").write_text("inherit_from: b\n")
    (tmp_path / "b.yaml").write_text("inherit_from: a\n")
    with pytest.raises(ConfigError, match="circle"):
        load(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="no such configuration file"):
        load("nothing-of-that-name")
