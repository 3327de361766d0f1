# SPDX-License-Identifier: MIT
"""Weights in and out: safetensors, the family's .pt files, refusals."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import occnets
from convonet_cases import small_config
from occnets import checkpoints
from occnets.checkpoints import (
    CheckpointError,
    load_pretrained,
    load_state,
    read_checkpoint,
    save_model,
    save_weights,
)
from occnets.models import build_model

CONFIG = small_config(plane_type=["xz"], plane_resolution=8, unet=True, unet_kwargs={"depth": 2, "start_filts": 8})


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(CONFIG)


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_model_folder_round_trip(model: torch.nn.Module, tmp_path: Path) -> None:
    save_model(model, tmp_path / "mine", CONFIG, metadata={"step": 7, "name": "mine"})
    loaded, config = load_pretrained(tmp_path / "mine")
    assert same(loaded.state_dict(), model.state_dict())
    assert not loaded.training
    assert config["model"]["encoder_kwargs"] == CONFIG["model"]["encoder_kwargs"]
    assert config["test"]["threshold"] == 0.5
    read = read_checkpoint(tmp_path / "mine" / "model.safetensors")
    assert read.extra == {"format": "pt", "step": "7", "name": "mine"}
    assert sorted(os.listdir(tmp_path / "mine")) == ["config.yaml", "model.safetensors"]


def test_half_storage_halves_the_file_and_loads_as_float32(model: torch.nn.Module, tmp_path: Path) -> None:
    save_weights(model, tmp_path / "full.safetensors")
    save_weights(model, tmp_path / "half.safetensors", half=True)
    full, half = (os.path.getsize(tmp_path / f"{name}.safetensors") for name in ("full", "half"))
    assert half < 0.6 * full
    loaded, _ = load_pretrained(tmp_path / "half.safetensors", config=CONFIG)
    for key, value in loaded.state_dict().items():
        assert value.dtype == model.state_dict()[key].dtype
        torch.testing.assert_close(value, model.state_dict()[key].half().float(), atol=0, rtol=0)


def test_half_storage_refuses_what_does_not_fit(model: torch.nn.Module, tmp_path: Path) -> None:
    model.decoder.fc_out.bias.data.fill_(1e6)
    with pytest.raises(CheckpointError, match=r"decoder\.fc_out\.bias does not fit float16"):
        save_weights(model, tmp_path / "half.safetensors", half=True)
    assert not list(tmp_path.iterdir())


def test_channels_last_and_shared_weights_can_be_saved(model: torch.nn.Module, tmp_path: Path) -> None:
    model.to(memory_format=torch.channels_last)
    model.decoder.fc_c[1].weight = model.decoder.fc_c[0].weight
    save_weights(model, tmp_path / "w.safetensors")
    assert same(read_checkpoint(tmp_path / "w.safetensors").state, dict(sorted(model.state_dict().items())))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("best", [np.float64(0.71), np.float32(0.5), 0.71, -np.inf])
def test_family_checkpoints_load(model: torch.nn.Module, tmp_path: Path, best: float, zipped: bool) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(1, 5, 3) - 0.5, torch.rand(1, 50, 3) - 0.5).sum().backward()
    optimizer.step()
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch_it": 12,
        "it": np.int64(3400),
        "loss_val_best": best,
    }
    path = tmp_path / "model_best.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(path)
    assert same(read.state, model.state_dict())
    assert read.extra["loss_val_best"] == best and read.extra["epoch_it"] == 12
    assert read.extra["optimizer"]["param_groups"][0]["lr"] == 1e-3
    loaded, _ = load_pretrained(path, config=CONFIG)
    assert same(loaded.state_dict(), model.state_dict())


def test_numpy_scalars_written_by_older_numpy_are_read(tmp_path: Path, model: torch.nn.Module) -> None:
    path = tmp_path / "old.pt"
    torch.save({"model": {}, "loss_val_best": np.float64(0.25)}, path, _use_new_zipfile_serialization=False)
    written = path.read_bytes()
    old = written.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    if old == written:
        old = written.replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
    assert old != written
    path.write_bytes(old)
    assert read_checkpoint(path).extra["loss_val_best"] == 0.25


def test_bare_state_dictionaries_load(model: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    assert same(read_checkpoint(tmp_path / "bare.pt").state, model.state_dict())


class Payload:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


def test_pickles_are_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "extra": Payload()}, "evil.pt")
    with pytest.raises(CheckpointError, match="read safely.*save its state_dict alone"):
        read_checkpoint("evil.pt")
    assert not Path("ran").exists()


def test_safe_globals_do_not_stay_allowed(model: torch.nn.Module, tmp_path: Path) -> None:
    torch.save({"model": model.state_dict(), "x": np.float64(1)}, tmp_path / "a.pt")
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(tmp_path / "a.pt")
    assert set(torch.serialization.get_safe_globals()) == before  # torch keeps a set


def test_missing_unexpected_and_misshapen_keys_are_listed(model: torch.nn.Module) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: torch.zeros_like(value) for key, value in before.items()}
    del state["encoder.fc_c.bias"]
    state["encoder.fc_d.bias"] = torch.zeros(3)
    state["decoder.fc_p.weight"] = torch.zeros(16, 4)
    with pytest.raises(CheckpointError) as caught:
        load_state(model, state, source="some.pt")
    text = str(caught.value)
    assert text.startswith("some.pt: the weights do not fit this ConvolutionalOccupancyNetwork")
    assert "missing (1): encoder.fc_c.bias" in text and "unexpected (1): encoder.fc_d.bias" in text
    assert "decoder.fc_p.weight: file (16, 4), model (16, 3)" in text
    assert same(model.state_dict(), before)


def test_long_lists_of_keys_are_cut(model: torch.nn.Module) -> None:
    with pytest.raises(CheckpointError, match=r"missing \(\d+\): .*, and \d+ more"):
        load_state(model, {})


def test_bundled_models_go_by_name(model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(model, tmp_path / "tiny", CONFIG, half=True)
    # The importing module first: imported after the patch it would copy the patched value and keep it.
    monkeypatch.setattr("occnets.zoo.WEIGHTS_FOLDER", tmp_path)
    monkeypatch.setattr(checkpoints, "WEIGHTS_FOLDER", tmp_path)
    assert checkpoints.pretrained_names() == ["tiny"]
    assert occnets.list_models()[0] == "tiny"
    assert occnets.model_info("tiny").pretrained
    made = occnets.create_model("tiny")
    torch.testing.assert_close(made.decoder.fc_out.weight, model.decoder.fc_out.weight, atol=1e-3, rtol=1e-3)
    with pytest.raises(FileNotFoundError, match="Did you mean 'tiny'"):
        load_pretrained("tinny")


def test_other_refusals(model: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="a URL is no path"):
        read_checkpoint("https://example.org/model.pt")
    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(CheckpointError, match="not a weights file"):
        read_checkpoint(tmp_path / "text.pt")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_checkpoint(tmp_path / "text.safetensors")
    torch.save({"generator": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="found the keys .*generator"):
        read_checkpoint(tmp_path / "other.pt")
    save_weights(model, tmp_path / "alone.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no config\.yaml beside it"):
        load_pretrained(tmp_path / "alone.safetensors")
