# SPDX-License-Identifier: MIT
"""Sign-agnostic optimisation: loss, presets, draws, schedule, the recorded step, and that no model is ever changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import label
from torch import Tensor, nn

import occnets
from bracket_cases import inside_mesh
from convonet_cases import fill_hashed, golden, golden_config, small_config
from fakes import SphereModel, sphere_points
from occnets import Reconstructor
from occnets.config import load_config
from occnets.models import build_model
from occnets.refine import (
    PRESETS,
    OptimizeOptions,
    optimize_field,
    optimize_options,
    optimize_scene,
    options_from_config,
    unsigned_cross_entropy,
)
from occnets.refine.consensus import find_consensus, with_bridges
from occnets.refine.draws import Draw, ObjectDraws, WindowDraws
from occnets.refine.lazy_adam import LazyAdam
from occnets.refine.sign_agnostic import _descend, _TrainedField
from scene_helpers import crop_model

QUICK = OptimizeOptions(steps=3, learning_rate=1e-3, batch=2, surface_points=16, space_points=16, patience=None)


def sphere(count: int = 300) -> Tensor:
    return torch.from_numpy(0.4 * sphere_points(count)).float()


def network(**encoder: Any) -> nn.Module:
    return fill_hashed(build_model(small_config(**{"plane_type": "grid", "grid_resolution": 16, **encoder})))


def with_(options: OptimizeOptions, **fields: Any) -> OptimizeOptions:
    return OptimizeOptions(**{**vars(options), **fields})


# --- loss and presets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "logit", "expected"), [(0.5, 0.0, 0.693147), (1.0, 2.0, 0.126928), (0.5, 2.0, 1.126928)]
)
def test_unsigned_loss_has_the_originals_values(target: float, logit: float, expected: float) -> None:
    for sign in (1.0, -1.0):
        logits = torch.tensor([[sign * logit, sign * logit], [0.0, 0.0]])
        targets = torch.tensor([[target, target], [0.5, 0.5]])
        # Summed over the points, mean over the batch.
        assert float(unsigned_cross_entropy(logits, targets)) == pytest.approx(expected + math.log(2), abs=1e-6)


def test_known_sign_takes_the_place_of_the_absolute_value() -> None:
    logits, target = torch.tensor([[2.0, 2.0, 2.0]]), torch.ones(1, 3)
    each = [float(unsigned_cross_entropy(logits[:, :1], target[:, :1], None, torch.tensor([[s]]))) for s in (1, -1, 0)]
    assert each == pytest.approx([0.126928, 2.126928, 0.126928], abs=1e-6)
    with pytest.raises(ValueError, match="one shape"):
        unsigned_cross_entropy(logits, target[:, :2])


def test_presets_are_the_originals() -> None:
    # batch, surface, space, sigma, rate, decay, every, steps, parameters, thresholds
    table = {
        "object": (16, 512, 1536, 0.1, 3e-5, 0.3, 300, 720, "all", (0.4, 0.45, 0.5)),
        "scene": (6, 1536, 512, 0.1, 3e-5, 0.3, 300, 720, "all", (0.4, 0.45, 0.5)),
    }
    for name, row in table.items():
        o = PRESETS[name]
        found = (o.batch, o.surface_points, o.space_points, o.sigma, o.learning_rate, o.decay, o.decay_every, o.steps)
        assert (*found, o.parameters, o.thresholds) == row
    for name in ("object", "scene", "large-scene"):
        o = PRESETS[name]
        assert (o.surface_weight, o.space_weight) == (1.0, 1.0) and o.patience is None
        assert not (o.clearance or o.anchor or o.consensus or o.disputed)
    o = PRESETS["large-scene"]
    assert (o.batch, o.steps, o.decay_every, o.parameters, o.freeze_norms) == (3, 2000, 800, "encoder", True)
    assert (o.window_points, o.window_queries, o.thresholds) == (65_536, 65_536, (0.2, 0.25, 0.3))


@pytest.mark.parametrize("name", ["object", "scene", "large-scene"])
def test_packaged_configurations_hold_the_presets(name: str) -> None:
    config = load_config(f"saconvonet-{name}")
    assert options_from_config(config) == PRESETS[name]
    assert isinstance(occnets.create_model(f"saconvonet-{name}"), nn.Module)
    assert options_from_config({"test_optim": {}}) is None


def test_options_are_checked() -> None:
    assert optimize_options(0) is None and optimize_options(None) is None
    assert optimize_options(7) == with_(PRESETS["default"], steps=7)
    assert optimize_options("scene") is PRESETS["scene"]
    for wrong in ("chair", 1.5, True, -1):
        with pytest.raises(ValueError):
            optimize_options(wrong)
    for fields in ({"learning_rate": 0}, {"decay": 2}, {"parameters": "unet"}, {"thresholds": (1.5,)}, {"batch": 0}):
        with pytest.raises(ValueError, match="OptimizeOptions"):
            OptimizeOptions(**fields)


# --- draws -----------------------------------------------------------------------------------------------------------


def test_draws_are_measured_points_and_noise_about_them() -> None:
    points = sphere()
    draws = ObjectDraws(points, with_(QUICK, batch=4, surface_points=50, space_points=2000), seed=3)
    draw = draws()
    assert draw.count == 4 and draw.sign is None and draw.query.shape == (8200, 3)
    on, off = draw.query[draw.target == 0.5], draw.query[draw.target == 1.0]
    assert len(on) == 200 and len(off) == 8000
    assert bool((on[:, None] == points).all(dim=2).any(dim=1).all())
    # |p + noise|^2 has the mean r^2 + 3 sigma^2.
    assert float(off.square().sum(dim=1).mean()) == pytest.approx(0.4**2 + 3 * 0.1**2, rel=0.02)
    again = ObjectDraws(points, draws.options, seed=3)()
    other = ObjectDraws(points, draws.options, seed=4)()
    assert torch.equal(again.query, draw.query) and not torch.equal(other.query, draw.query)
    assert not torch.equal(draws().query, draw.query)


def test_clearance_leaves_a_shell_out() -> None:
    points = sphere(2000)
    draw = ObjectDraws(points, with_(QUICK, space_points=2000, clearance=2.0), seed=0)()
    off = draw.query[draw.target == 1.0]
    spacing = math.sqrt(4 * math.pi * 0.4**2 / 2000)
    nearest = torch.cdist(off, points).min(dim=1).values
    assert 500 < len(off) < 4000 and 1.5 * spacing < float(nearest.min()) < 2.5 * spacing


def two_balls(query: Tensor) -> Tensor:
    """A ball and a blob in empty space, logits 50 times the distance."""
    blob = 0.08 - (query - torch.tensor([0.45, 0.45, 0.45])).norm(dim=-1)
    return 50.0 * torch.maximum(0.3 - query.norm(dim=-1), blob)


def test_consensus_drops_what_no_point_supports() -> None:
    from scipy.spatial import cKDTree

    def found(points: Tensor) -> Any:
        return find_consensus(two_balls, points, cKDTree(points.numpy()), 0.03, (0.3, 3.0), 0.55)

    ball = 0.75 * sphere(1500)
    consensus = found(ball)
    query = torch.tensor([[0.0, 0.0, 0.0], [0.25, 0.0, 0.0], [0.45, 0.45, 0.45], [0.0, 0.5, 0.0]])
    assert consensus.at(query).tolist() == [1.0, 1.0, -1.0, -1.0]
    away = consensus.disputed[(consensus.disputed.norm(dim=1) - 0.3).abs() > 0.05]
    assert len(away) > 100 and float((away - 0.45).norm(dim=1).max()) < 0.1
    blob = 0.45 + 0.2 * sphere(200)
    both = found(torch.cat((ball, blob)))
    assert both.at(query).tolist() == [1.0, 1.0, 1.0, -1.0] and len(both.disputed) < 100
    # A hole in the cloud lets nothing out.
    assert found(ball[ball[:, 2] < 0.25]).at(query).tolist() == [1.0, 1.0, -1.0, -1.0]


def test_disputed_places_are_drawn_and_known() -> None:
    ball = 0.75 * sphere(1500)
    options = with_(QUICK, space_points=400, consensus=0.3, disputed=0.5)
    draws = ObjectDraws(ball, options, 0, two_balls)
    draw = draws()
    assert draw.sign is not None and bool((draw.sign[draw.target == 0.5] == 0).all())
    near = (draw.query - 0.45).norm(dim=1) < 0.12
    assert int(near.sum()) >= 300 and bool((draw.sign[near] == -1).all())


# --- the loop --------------------------------------------------------------------------------------------------------


def recorded() -> tuple[Any, _TrainedField, OptimizeOptions, Draw]:
    run, note = golden("saconv_grid64")
    model = build_model(golden_config(note)).eval()
    model.load_state_dict({key[3:]: torch.from_numpy(run[key]) for key in run.files if key.startswith("sd/")})
    options = OptimizeOptions(steps=1, learning_rate=1e-4, batch=2, surface_points=256, space_points=256, patience=None)
    trained = _TrainedField(model, torch.from_numpy(run["in/inputs"])[0], options, 1)
    query = torch.from_numpy(run["sa/p"]).reshape(-1, 3)
    return run, trained, options, Draw(query, torch.tensor([0.5] * 256 + [1.0] * 256).repeat(2), 2)


def test_recorded_loss_of_the_original() -> None:
    run, trained, _, draw = recorded()
    with torch.no_grad():
        logits = trained.logits(draw.query)
    np.testing.assert_allclose(logits, run["sa/logits"].reshape(-1), rtol=1e-5, atol=5e-5)
    loss = unsigned_cross_entropy(logits.view(2, -1), draw.target.view(2, -1))
    assert float(loss) == pytest.approx(float(run["sa/loss"][0]), rel=1e-6)


@pytest.mark.slow
def test_recorded_step_of_the_original() -> None:
    run, trained, options, draw = recorded()
    losses, _, _ = _descend(trained.parameters, lambda: trained.loss(draw), options, None, None)
    assert losses[0] == pytest.approx(float(run["sa/loss"][0]), rel=1e-6)
    with torch.no_grad():
        after = trained.field()(torch.from_numpy(run["q/points"]))
    np.testing.assert_allclose(after, run["sa/logits_after_1_step"], rtol=1e-5, atol=5e-4)
    assert np.abs(run["sa/logits_after_1_step"] - run["out/logits"]).max() > 1.0


@pytest.mark.slow
def test_the_default_preset_improves_procedural_shapes_it_never_saw() -> None:
    from occnets.data.procedural import random_shape

    reconstructor = Reconstructor.from_pretrained("convonet-grid", device="cpu")
    query = torch.rand(30_000, 3, generator=torch.Generator().manual_seed(1)) * 1.1 - 0.55
    overlaps = []
    for seed in range(910_000, 910_010):
        solid = random_shape(seed)
        points = solid.surface(30_000, seed)[0].numpy()[:3000]
        cloud = points + 0.005 * np.random.default_rng(seed).normal(size=points.shape)
        truth, row = solid.occupancy(query).numpy().astype(bool), []
        for optimize in (None, "default"):
            mesh = reconstructor.reconstruct(cloud, optimize=optimize, resolution=96).mesh
            inside = inside_mesh(np.asarray(mesh.vertices), np.asarray(mesh.faces), query.double().numpy())
            row.append((truth & inside).sum() / (truth | inside).sum())
        overlaps.append(row)
    plain, optimized = np.mean(overlaps, axis=0)
    assert optimized > plain + 0.003, overlaps


def drop(options: OptimizeOptions, loss: Callable[[Tensor], Tensor], **report: Any) -> tuple[Tensor, Any]:
    value = torch.zeros(1, requires_grad=True)

    def step() -> tuple[float, float]:
        found = loss(value)
        found.backward()
        return float(found.detach()), float(found.detach())

    return value, _descend([value], step, options, report.get("progress"), report.get("snapshot"))


def test_learning_rate_falls_after_every_period() -> None:
    # Under a constant gradient every step of Adam has the length of the learning rate.
    options = OptimizeOptions(steps=7, learning_rate=0.1, decay=0.3, decay_every=3, patience=None)
    seen: list[int] = []
    value, (losses, _, plateau) = drop(options, lambda v: -v.sum(), snapshot=seen.append)
    assert float(value.detach()) == pytest.approx(0.1 * (3 + 3 * 0.3 + 0.09), rel=1e-4)
    assert len(losses) == 7 and not plateau and seen == [3, 6]
    drop(with_(options, snapshot_every=2), lambda v: -v.sum(), snapshot=seen.append)
    assert seen == [3, 6, 2, 4, 6]


def test_a_plateau_ends_it() -> None:
    options = OptimizeOptions(steps=1000, check_every=5, patience=2, tolerance=1e-3)
    _, (losses, _, plateau) = drop(options, lambda v: 1.0 + 0.0 * v.sum())
    assert len(losses) == 15 and plateau
    calls: list[tuple[int, int, float]] = []
    _, (losses, _, plateau) = drop(
        with_(options, steps=50), lambda v: 1.0 - 9.0 * v.sum(), progress=lambda *a: calls.append(a)
    )
    assert len(losses) == 50 and not plateau and [call[0] for call in calls] == list(range(1, 51))
    assert calls[-1][2] < calls[0][2]


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ValueError, match="nan at step 1; use a smaller learning rate"):
        drop(OptimizeOptions(), lambda v: v.sum() * math.nan)


def test_lazy_adam_is_adam_where_there_are_gradients() -> None:
    start = torch.randn(2, 4, 5, 5, 5).contiguous(memory_format=torch.channels_last_3d)
    for memory in (torch.channels_last_3d, torch.contiguous_format):
        dense, lazy = (start.clone(memory_format=memory).requires_grad_() for _ in range(2))
        one, two = torch.optim.Adam([dense], lr=0.1), LazyAdam([lazy], lr=0.1)
        for _ in range(4):
            for values, optimizer in ((dense, one), (lazy, two)):
                optimizer.zero_grad()
                (values[:, :, 1:3] ** 2).sum().backward()
                optimizer.step()
        torch.testing.assert_close(lazy, dense)
        assert torch.equal(lazy[:, :, 3:], start[:, :, 3:]) and not torch.equal(lazy[:, :, 1:3], start[:, :, 1:3])


# --- models ----------------------------------------------------------------------------------------------------------


def state_of(model: nn.Module) -> tuple[dict[str, Tensor], list[bool], list[bool]]:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    return state, [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]


def assert_same(model: nn.Module, before: tuple[dict[str, Tensor], list[bool], list[bool]]) -> None:
    state, grads, modes = state_of(model)
    assert state.keys() == before[0].keys() and all(torch.equal(state[key], before[0][key]) for key in state)
    assert (grads, modes) == before[1:] and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("parameters", ["all", "encoder", "decoder", "features"])
def test_the_model_is_never_changed_and_the_copy_where_asked(parameters: str) -> None:
    model = network().train()
    before, noise = state_of(model), torch.random.get_rng_state()
    options = with_(QUICK, parameters=parameters, steps=20)
    found = optimize_field(model, sphere(), options, ensemble=2)
    assert_same(model, before)
    assert torch.equal(torch.random.get_rng_state(), noise) and torch.is_grad_enabled()
    changed = {k.split(".")[0] for k, v in found.model.state_dict().items() if not torch.equal(v, before[0][k])}
    assert changed == {"all": {"encoder", "decoder"}, "features": set()}.get(parameters, {parameters})
    assert not any(p.requires_grad for p in found.model.parameters()) and not found.model.training
    assert found.per_point[-1] < found.per_point[0] and found.field is not None
    with torch.no_grad():
        assert found.field(sphere()[None]).shape == (1, 300)


def test_the_model_is_not_changed_by_an_error_in_the_middle() -> None:
    model = network()
    before = state_of(model)

    def fail(step: int, steps: int, loss: float) -> None:
        if step == 2:
            raise RuntimeError("stop")

    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="stop"):
            optimize_field(model, sphere(), QUICK, progress=fail)
        assert torch.is_grad_enabled()
    assert_same(model, before)


def test_a_seed_has_one_result() -> None:
    model = network()
    runs = [optimize_field(model, sphere(), QUICK, ensemble=2, seed=seed) for seed in (5, 5, 6)]
    assert runs[0].losses == runs[1].losses != runs[2].losses
    query = torch.rand(1, 50, 3) - 0.5
    with torch.no_grad():
        values = [run.field(query) for run in runs if run.field is not None]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


def test_norms_can_be_frozen() -> None:
    unet = {"num_levels": 2, "f_maps": 8, "in_channels": 8, "out_channels": 8}
    model = network(unet3d=True, unet3d_kwargs=unet)
    before = model.state_dict()
    for freeze in (True, False):
        found = optimize_field(model, sphere(), with_(QUICK, parameters="encoder", freeze_norms=freeze))
        norms = [key for key in before if "groupnorm" in key]
        assert norms and all(torch.equal(found.model.state_dict()[key], before[key]) == freeze for key in norms)


def test_bridges_between_measured_parts_are_put_back() -> None:
    axis = torch.arange(32)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")

    def ball(*center: int) -> Tensor:
        return (x - center[0]) ** 2 + (y - center[1]) ** 2 + (z - center[2]) ** 2 < 25

    one, two, blob = ball(8, 8, 8), ball(24, 24, 24), ball(8, 8, 24)
    stalk = ((x - y).abs() <= 1) & ((y - z).abs() <= 1) & (x > 8) & (x < 24)
    chosen, network = one | two, one | two | blob | stalk | ((x == 8) & (y == 8) & (z > 8) & (z < 24))
    found = with_bridges(chosen, network, chosen)
    assert bool((found <= network).all() and (chosen <= found).all())
    assert label(found.numpy())[1] == 1  # one body again, by a bridge that stands
    assert 0 < int((found & ~chosen).sum()) <= int((stalk & ~chosen).sum()) and not (found & blob).any()
    assert torch.equal(with_bridges(chosen, network, one), chosen)  # nothing was measured on the other
    assert torch.equal(with_bridges(chosen, chosen, chosen), chosen)


def test_an_anchor_keeps_the_field() -> None:
    model, query = network(), torch.rand(1, 200, 3) - 0.5
    with torch.no_grad():
        start = model.decode(query, model.encode(sphere()[None]))
        moved = []
        for anchor in (0.0, 100.0):
            options = with_(QUICK, steps=20, anchor=anchor, space_points=200, surface_weight=0.0)
            found = optimize_field(model, sphere(), options)
            assert found.field is not None
            moved.append(float((found.field(query) - start).abs().mean()))
    assert moved[1] < 0.5 * moved[0]


@pytest.mark.parametrize("name", ["onet-pointcloud", "dpconvonet-shapenet-dynamic-3plane", "convonet-shapenet-3plane"])
@pytest.mark.parametrize("parameters", ["all", "features"])
def test_every_family_can_be_optimised(name: str, parameters: str) -> None:
    model = occnets.create_model(name).eval()
    before = state_of(model)
    found = optimize_field(model, sphere(100), with_(QUICK, steps=2, parameters=parameters))
    assert_same(model, before)
    assert found.field is not None and len(found.losses) == 2
    with torch.no_grad():
        assert bool(found.field(sphere(100)[None]).isfinite().all())


def test_what_cannot_be_optimised_is_said() -> None:
    with pytest.raises(TypeError, match="torch.nn.Module"):
        optimize_field(SphereModel(), sphere(), QUICK)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(N > 0, 3\)"):
        optimize_field(network(), sphere()[:0], QUICK)
    with pytest.raises(ValueError, match="crop model"):
        optimize_scene(network(), sphere(), QUICK)  # type: ignore[arg-type]


# --- scenes ----------------------------------------------------------------------------------------------------------


def test_a_crop_model_learns_from_random_windows() -> None:
    model, points = crop_model().model, 2.0 * sphere(4000)
    before = state_of(model)
    options = with_(
        PRESETS["large-scene"], steps=3, batch=2, learning_rate=1e-3, window_points=2000, window_queries=300
    )
    draws = WindowDraws(points, model.crop, model.encoder.layout, options, seed=0)
    window = draws()
    assert window.query["p"].shape == (1, 300, 3) and window.inputs["points"].shape == (1, 2000, 3)
    spread = window.query["p"][0].amax(dim=0) - window.query["p"][0].amin(dim=0)
    assert bool((spread <= model.crop.query_size).all()) and set(window.target.unique().tolist()) == {0.5, 1.0}
    assert bool((window.inputs["points"][window.inputs["mask"]] == 0).all())
    assert 0.2 < float((draws.targets == 0.5).float().mean()) < 0.3
    steps: list[int] = []
    found = optimize_scene(model, points, with_(options, snapshot_every=1), snapshot=lambda step, _: steps.append(step))
    again = optimize_scene(model, points, options)
    assert_same(model, before)
    assert steps == [1, 2, 3] and found.losses == again.losses
    changed = [k for k, v in found.model.state_dict().items() if not torch.equal(v, before[0][k])]
    assert changed and all(k.startswith("encoder.") and "groupnorm" not in k for k in changed)


# --- reconstruction --------------------------------------------------------------------------------------------------


def test_reconstruction_with_and_without_in_turn() -> None:
    model = copy.deepcopy(Reconstructor.from_pretrained("convonet-grid", device="cpu"))
    cloud = sphere_points(400, radius=12.5)
    options = with_(PRESETS["default"], steps=2, surface_points=64, space_points=64, thresholds=(0.4, 0.5))
    run = {"resolution": 32, "ensemble": 1}
    plain = model.reconstruct(cloud, **run)
    seen: list[tuple[int, float, int]] = []
    stages: set[str] = set()
    first = model.reconstruct(
        cloud,
        optimize=options,
        progress=lambda stage, done, total: stages.add(stage.split(" (")[0]),
        on_mesh=lambda step, level, mesh: seen.append((step, level, len(mesh.faces))),
        **run,
    )
    second = model.reconstruct(cloud, optimize=options, **run)
    np.testing.assert_array_equal(first.mesh.vertices, second.mesh.vertices)
    np.testing.assert_array_equal(plain.mesh.vertices, model.reconstruct(cloud, **run).mesh.vertices)
    assert [row[:2] for row in seen] == [(2, 0.4), (2, 0.5)] and stages == {"optimize", "evaluate"}
    assert first.stats["optimization"]["steps"] == 2 and first.stats["settings"]["threshold"] == 0.5
    assert first.stats["mesh"]["watertight"] and "optimize" in first.timings
