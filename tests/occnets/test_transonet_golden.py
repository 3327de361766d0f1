# SPDX-License-Identifier: MIT
"""Weights and outputs of the original TransONet, and the values its code gives for hashed weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from convonet_cases import fill_hashed, golden_folder, hashed
from dpconvonet_cases import dynamic_config, recorded
from occkernels import bin_points
from occnets.checkpoints import load_pretrained, save_model
from occnets.config import load_config
from occnets.models import build_model
from occnets.models.dynamic import basis_and_scale
from occnets.models.transonet_blocks import SineLayer
from test_convonet_fill import check
from test_convonet_golden import close, read_listing

# Recorded with the original code: mean, deviation, minimum, maximum, first five values of each tensor.
EXPECTED = {
    "normals": (-0.208389, 0.53843, -0.82125, 0.737816, (-0.21105, -0.82125, -0.5301, 0.737816, 0.671891)),
    "planes": (0.004934, 1.026325, -4.482381, 3.857211, (-0.231147, -0.795025, -0.319771, 1.54362, -0.26752)),
    "c_mat": (1.034387, 2.430133, -1.6586, 5.023849, (1.23884, -1.6586, 0.118013, -1.6586, 0.549738)),
}
LOGITS = (
    (-0.77567, -0.338099, 0.048993, 0.368775, 1.09462, 0.469223, 0.144428),
    (0.300163, -0.167255, 0.590682, -0.062168, 1.016218, -0.11851, -0.556726),
)
TRANSFORMERS = {
    "student cls": (0.003675, 1.010418, -3.908305, 4.191996, (0.776352, -0.88311, 0.511746, 0.901504, 0.52928)),
    "student tokens": (-0.012895, 1.012157, -3.20098, 3.163701, (-0.220868, -0.540607, -0.100116, 0.501336, -0.805415)),
    "teacher cls": (0.004056, 1.016063, -4.465898, 4.403501, (0.921369, -0.728571, -1.21379, 0.752342, -0.018323)),
    "teacher tokens": (0.010678, 1.005433, -3.410606, 3.656761, (2.60452, -1.06553, 1.08785, 0.214112, -1.13276)),
}


def fill_sines(model: nn.Module) -> nn.Module:
    """Hashed weights, sine layers divided by 30: undivided the network is chaotic."""
    fill_hashed(model)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, SineLayer):
                layer.linear.weight /= 30.0
                layer.linear.bias /= 30.0
    return model


def test_state_dict_has_the_keys_shapes_and_order_of_the_original() -> None:
    model_config, rows = read_listing(golden_folder() / "keys_transonet_default.txt")
    model = build_model({"method": "dynamic_planes_conv_onet", "model": model_config, "data": {"padding": 0.1}})
    assert [(key, tuple(value.shape)) for key, value in model.state_dict().items()] == rows
    model.load_state_dict({key: torch.zeros(shape) for key, shape in rows}, strict=True)


def test_packaged_configuration_has_the_original_size() -> None:
    with torch.device("meta"):
        model = build_model(load_config("transonet-published"))
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == (2_407_346, 269)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.encoder.named_children()}
    assert (counts["transformer"], counts["teacher_model"]) == (1_157_630, 1_143_776)
    assert sum(p.numel() for p in model.decoder.parameters()) == 27_659


def test_trained_model_reproduces_every_recorded_stage() -> None:
    run, note, state = recorded("transonet_default")
    model = build_model(dynamic_config(note)).eval()
    model.load_state_dict(state, strict=True)
    stages: dict[str, list[torch.Tensor]] = {"fc_c": [], "transformer_in": []}
    model.encoder.fc_c.register_forward_hook(lambda module, args, out: stages["fc_c"].append(out))
    model.encoder.transformer.register_forward_pre_hook(lambda module, args: stages["transformer_in"].append(args[0]))
    with torch.no_grad():
        features = model.encode(torch.from_numpy(run["in/inputs"]))
        logits = model.decode(torch.from_numpy(run["q/points"]), features)
        edge = model(torch.from_numpy(run["edge/points"]), torch.from_numpy(run["edge/inputs"]))
    close(features["normals"], run["enc/plane_parameters"])
    close(features["c_mat"][:, 0], run["enc/c_mat"])
    close(stages["fc_c"][0], run["mid/fc_c/0"])
    close(stages["transformer_in"][0], run["mid/transformer_in/0"])
    close(features["planes"][:, 0], run["enc/planes"])
    close(logits, run["out/logits"])
    close(edge, run["edge/logits"])


def test_every_point_falls_into_the_recorded_cell() -> None:
    """The run has no list of cells, but a cell holds something exactly where a point fell."""
    run, note, _ = recorded("transonet_default")
    layout = build_model(dynamic_config(note)).encoder.merged_layout
    bases, scale = basis_and_scale(torch.from_numpy(run["enc/c_mat"])[:, None])
    bins = bin_points(torch.from_numpy(run["in/inputs"]), layout, bases=bases, basis_scale=scale)
    filled = torch.from_numpy(run["mid/transformer_in/0"] != 0).any(dim=1).flatten(1)
    ours = torch.zeros_like(filled).scatter_(1, bins.index[:, 0].long(), True)
    assert torch.equal(ours, filled) and 0 < filled.float().mean() < 1


def test_hashed_weights_give_the_original_values() -> None:
    model = fill_sines(build_model(load_config("transonet-published")))
    with torch.no_grad():
        features = model.encode(hashed("cloud", (2, 300, 3), -0.5, 0.5))
        logits = model.decode(hashed("query", (2, 7, 3), -0.5, 0.5), features)
    for key, expected in EXPECTED.items():
        check(key, features[key], expected)
    np.testing.assert_allclose(logits, LOGITS, atol=5e-5)


def test_both_transformers_give_the_original_values() -> None:
    encoder = fill_sines(build_model(load_config("transonet-published"))).encoder
    plane = hashed("plane", (2, 32, 32, 32), -0.5, 0.5)
    for name, transformer in (("student", encoder.transformer), ("teacher", encoder.teacher_model)):
        with torch.no_grad():
            check(f"{name} cls", transformer(plane), TRANSFORMERS[f"{name} cls"])
            check(f"{name} tokens", transformer.tokens(plane)[:, 1:], TRANSFORMERS[f"{name} tokens"])


def test_plain_training_reaches_everything_but_what_the_original_never_uses() -> None:
    run, note, state = recorded("transonet_default")
    model = build_model(dynamic_config(note)).train()
    model.load_state_dict(state, strict=True)
    features = model.encode(torch.from_numpy(run["train/inputs"]))
    logits = model.decode(torch.from_numpy(run["train/points"]), features)
    target = torch.from_numpy(run["train/points.occ"])
    loss = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1).mean()
    (loss + sum(model.auxiliary_losses(features).values())).backward()
    norms = note["train_step"]["gradnorm"]
    assert {key for key, value in model.named_parameters() if value.grad is not None} == set(norms)
    assert {key for key, value in model.named_parameters() if value.requires_grad} == set(norms)
    for key, value in model.decoder.named_parameters():
        if value.requires_grad:
            assert value.grad.norm().item() == pytest.approx(norms[f"decoder.{key}"], rel=1e-2), key


def test_the_teacher_has_two_names_and_survives_saving(tmp_path: Path) -> None:
    config = load_config("transonet-published")
    model = fill_sines(build_model(config))
    encoder = model.encoder
    assert encoder.teacher_model.head.weight is encoder.criterion.teacher_model.head.weight
    again, _ = load_pretrained(save_model(model, tmp_path / "model", config))
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"plane_resolution": 64}, "plane_resolution must be 32, the only value the published TransONet runs with"),
        ({"hidden_dim": 16}, "hidden_dim must be 32"),
        ({"unet": True}, "the published TransONet has no U-Net; set encoder_kwargs.unet to false"),
        ({"n_channels": 0}, "n_channels must be at least 1, got 0"),
    ],
)
def test_what_the_original_cannot_run_is_refused(encoder: dict, message: str) -> None:
    config = load_config("transonet-published")
    config["model"]["encoder_kwargs"] |= encoder
    with pytest.raises(ValueError, match=message):
        build_model(config)


def test_half_precision_keeps_frames_and_nearly_the_logits() -> None:
    model = fill_sines(build_model(load_config("transonet-published")))
    cloud, query = hashed("cloud", (1, 300, 3), -0.5, 0.5), hashed("query", (1, 50, 3), -0.5, 0.5)
    with torch.no_grad():
        exact = model.encode(cloud)
        logits = model.decode(query, exact)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = model.encode(cloud)
            rough = model.decode(query, features)
    assert torch.equal(features["c_mat"], exact["c_mat"])
    assert (rough.float() - logits).abs().mean() < 0.05 * logits.std()
