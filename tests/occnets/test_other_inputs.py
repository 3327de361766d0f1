# SPDX-License-Identifier: MIT
"""Pictures, voxels and latent codes in, meshes out: readers, frames, poses, the command line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fakes import FieldModel, SphereModel, ball
from family_cases import with_surface
from occnets import cli
from occnets.config import load_config
from occnets.io import (
    FormatError,
    VoxelGrid,
    is_voxel_file,
    network_image,
    read_image,
    read_mesh,
    read_pose,
    read_voxels,
)
from occnets.models import build_model
from occnets.models.latent import latent_of_seed
from occnets.reconstruct import EmptyReconstructionError, Reconstructor

POSE = np.array([[0.0, -1, 0, 0.1], [1, 0, 0, 0.2], [0, 0, 1, 1.5], [0, 0, 0, 1]])


# --- pictures --------------------------------------------------------------------------------------------------------


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (8, 6), **options: Any) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(-1) if bands == 1 else pixels, mode).save(path, **options)
    return path


def test_pictures_of_all_kinds_become_rgb(tmp_path: Path) -> None:
    from PIL import Image

    plain = picture(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(plain), np.asarray(Image.open(plain)))
    assert read_image(picture(tmp_path / "a.jpg")).shape == (6, 8, 3)
    grey = read_image(picture(tmp_path / "g.png", "L"))
    assert grey.shape == (6, 8, 3) and (grey == grey[..., :1]).all()
    clear = picture(tmp_path / "t.png", "RGBA")
    pixels = np.asarray(Image.open(clear)).astype(float)
    share = pixels[..., 3:] / 255
    for name, behind in (("black", 0), ("white", 255)):
        expected = pixels[..., :3] * share + behind * (1 - share)
        np.testing.assert_allclose(read_image(clear, background=name), expected, atol=1.01)
    turned = picture(tmp_path / "e.jpg", exif=_exif(6))
    assert read_image(turned).shape == (8, 6, 3)


def _exif(orientation: int) -> Any:
    from PIL import Image

    made = Image.Exif()
    made[0x0112] = orientation
    return made


def test_pictures_reach_the_network_as_in_the_original() -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (137, 90, 3), dtype=np.uint8)
    found = network_image(pixels, 224)
    expected = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-7)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_array_equal(network_image(pixels / 255, 224), found)
    np.testing.assert_array_equal(network_image(pixels[..., 0], 64)[0], network_image(pixels[..., [0, 0, 0]], 64)[2])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((4, 4, 4), np.uint8), r"got \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"got \(0, 4, 3\)"),
        (np.full((4, 4, 3), 2.0), r"values in \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), r"values in \[0, 1\]"),
        (np.zeros((4, 4, 3), np.int64), "got int64"),
    ],
)
def test_what_is_no_picture_is_refused(values: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        network_image(values, 32)


def test_broken_pictures_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(FormatError, match="cannot be read as a picture"):
        read_image(tmp_path / "a.png")
    data = picture(tmp_path / "b.png", size=(64, 64)).read_bytes()
    (tmp_path / "b.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match="cannot be read as a picture"):
        read_image(tmp_path / "b.png")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_image(tmp_path / "none.png")


def test_poses_are_read_and_checked(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "a.txt", POSE)
    np.savetxt(tmp_path / "b.csv", POSE[:3], delimiter=",")
    np.save(tmp_path / "c.npy", POSE)
    for name, expected in (("a.txt", POSE), ("b.csv", POSE[:3]), ("c.npy", POSE)):
        np.testing.assert_allclose(read_pose(tmp_path / name), expected, atol=1e-7)
    for content, words in (
        ("1 2 3\n", "got \\(1, 3\\)"),
        ("a b\n", "cannot be read as a matrix"),
        ("1 0 0 0\n0 2 0 0\n0 0 1 0\n", "are a rotation, these are none"),
        ("1 0 0 0\n0 1 0 0\n0 0 -1 0\n", "are a rotation, these are none"),
    ):
        (tmp_path / "bad.txt").write_text(content)
        with pytest.raises(FormatError, match=words):
            read_pose(tmp_path / "bad.txt")
    np.save(tmp_path / "evil.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match="cannot be read as a matrix"):
        read_pose(tmp_path / "evil.npy")


# --- voxels ----------------------------------------------------------------------------------------------------------


def binvox(filled: np.ndarray, translate: str = "0 0 0", scale: str = "1") -> bytes:
    """The content of a binvox file, runs of at most 255."""
    flat = filled.transpose(0, 2, 1).ravel().astype(np.uint8)
    out = io.BytesIO()
    out.write(
        f"#binvox 1\ndim {' '.join(map(str, filled.shape))}\ntranslate {translate}\nscale {scale}\ndata\n".encode()
    )
    start = 0
    while start < len(flat):
        end = start
        while end < len(flat) and flat[end] == flat[start] and end - start < 255:
            end += 1
        out.write(bytes([flat[start], end - start]))
        start = end
    return out.getvalue()


def solid(size: int = 32) -> np.ndarray:
    """A box that is different along every axis."""
    filled = np.zeros((size,) * 3, dtype=bool)
    filled[size // 8 : size // 2, size // 4 : size // 2, size // 2 : 7 * size // 8] = True
    return filled


def test_binvox_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.binvox"
    path.write_bytes(binvox(solid(), "-1.5 2 0.25", "4"))
    grid = read_voxels(path)
    np.testing.assert_array_equal(grid.occupancy, solid())
    np.testing.assert_array_equal(grid.translate, [-1.5, 2, 0.25])
    assert grid.scale == 4 and grid.occupancy.dtype == np.float32
    # In the file y runs fastest: the first voxels are those of a column along y.
    column = np.zeros((4, 4, 4), bool)
    column[0, :, 0] = True
    assert binvox(column).split(b"data\n")[1][:4] == bytes([1, 4, 0, 60])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"ply\n", "does not begin with '#binvox'"),
        (b"#binvox 1\ndim 2 2 2\n", "no line 'data'"),
        (b"#binvox 1\ndata\n", "header is damaged"),
        (b"#binvox 1\ndim 2 x 2\ndata\n", "header is damaged"),
        (b"#binvox 1\ndim 9999 9999 9999\ndata\n", "absurd size"),
        (b"#binvox 1\ndim 2 2 2\ndata\n\x01", "inside a run"),
        (b"#binvox 1\ndim 2 2 2\ndata\n\x01\x07", "holds 7 voxels, its header says 8"),
        (b"#binvox 1\ndim 2 2 2\ndata\n\x02\x08", "0 or 1, got 2"),
        (b"#binvox 1\ndim 2 2 3\ndata\n\x01\x0c", "as many voxels along every axis"),
        (b"#binvox 1\ndim 2 2 2\nscale 0\ndata\n\x01\x08", "scale is positive"),
    ],
)
def test_broken_binvox_files_are_told(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.binvox").write_bytes(content)
    with pytest.raises(FormatError, match=words):
        read_voxels(tmp_path / "a.binvox")


def test_arrays_of_voxels_are_read_and_told_from_points(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", solid(8))
    np.savez(tmp_path / "v.npz", voxels=solid(8).astype(np.uint8), translate=[1.0, 2, 3], scale=2.0)
    np.save(tmp_path / "p.npy", np.zeros((100, 3)))
    np.save(tmp_path / "q.npy", np.zeros((1, 100, 3)))
    np.savez(tmp_path / "p.npz", points=np.zeros((100, 3)))
    (tmp_path / "x.npy").write_bytes(b"nothing")
    told = {
        name: is_voxel_file(tmp_path / name) for name in ("v.npy", "v.npz", "p.npy", "q.npy", "p.npz", "x.npy", "no")
    }
    assert told == {"v.npy": True, "v.npz": True} | dict.fromkeys(("p.npy", "q.npy", "p.npz", "x.npy", "no"), False)
    np.testing.assert_array_equal(read_voxels(tmp_path / "v.npy").occupancy, solid(8))
    framed = read_voxels(tmp_path / "v.npz")
    assert framed.scale == 2 and framed.translate.tolist() == [1, 2, 3]
    np.savez(tmp_path / "w.npz", other=solid(8))
    with pytest.raises(FormatError, match="no array of voxels in it.*it has other"):
        read_voxels(tmp_path / "w.npz")
    with pytest.raises(FormatError, match="voxels are read from"):
        read_voxels(__file__)
    for bad in (np.full((2, 2, 2), 3), np.full((2, 2, 2), np.nan), np.zeros((2, 2, 2), complex), np.zeros((2, 3, 2))):
        with pytest.raises(ValueError, match=r"from 0 to 1|every axis"):
            VoxelGrid.from_array(bad)


def test_border_voxels_are_the_filled_ones_at_the_surface() -> None:
    filled = np.zeros((8, 8, 8), bool)
    filled[2:7, 2:7, 2:7] = True
    border = VoxelGrid.from_array(filled).border_voxels()
    assert len(border) == 5**3 - 3**3
    np.testing.assert_allclose(border.min(axis=0), (2.5 / 8) - 0.5)
    everything = VoxelGrid.from_array(np.ones((4, 4, 4))).border_voxels()
    assert len(everything) == 4**3 - 2**3


# --- reconstruction --------------------------------------------------------------------------------------------------


def config(reads: str | None) -> dict[str, Any]:
    return {"data": {"input_type": reads, "padding": 0.1, "img_size": 48}, "test": {"threshold": 0.5}}


class Recorder(FieldModel):
    """A ball at a known place; keeps what it was given."""

    def __init__(self) -> None:
        super().__init__(ball((0.1, 0.0, -0.1), 0.3))
        self.given: Any = None

    def encode(self, inputs: Any) -> dict[str, Any]:
        self.given = inputs
        return {}


def test_voxels_come_back_in_the_frame_of_the_grid() -> None:
    model = Recorder()
    owner = Reconstructor(model, config("voxels"), "cpu")
    grid = VoxelGrid.from_array(solid(), np.array([10.0, 20, 30]), 4.0)
    made = owner.reconstruct_voxels(grid, resolution=64)
    center = np.array([10.0, 20, 30]) + 4 * (np.array([0.1, 0, -0.1]) + 0.5)
    distance = np.linalg.norm(np.asarray(made.mesh.vertices) - center, axis=1)
    np.testing.assert_allclose(distance, 4 * 0.3, atol=4e-3)
    assert made.mesh.is_watertight and made.stats["input"]["occupied"] == solid().sum()
    np.testing.assert_array_equal(model.given[0], solid())
    assert made.stats["settings"]["fit"] is False and set(made.timings) == {"encode", "extract", "finish", "total"}
    # The points it shows are centres of filled voxels.
    place = np.floor((made.cloud - grid.translate) / grid.scale * 32).astype(int)
    assert solid()[tuple(place.T)].all()
    unit = owner.reconstruct_voxels(solid(), resolution=32).mesh
    np.testing.assert_allclose(unit.centroid, [0.1, 0, -0.1], atol=1e-2)


def test_pictures_come_back_in_the_unit_cube() -> None:
    model = Recorder()
    owner = Reconstructor(model, config("img"), "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    made = owner.reconstruct_image(pixels, resolution=32)
    assert tuple(model.given.shape) == (1, 3, 48, 48)
    assert made.stats["input"] == {"picture": [80, 60], "network_picture": [48, 48], "pose": False}
    assert any("squeezed to a square" in note for note in made.warnings) and len(made.cloud) == 0
    np.testing.assert_allclose(made.mesh.centroid, [0.1, 0, -0.1], atol=1e-2)
    assert not owner.reconstruct_image(pixels[:, :60], resolution=32).warnings


def test_the_wrong_input_is_refused() -> None:
    reads = {kind: Reconstructor(SphereModel(), config(kind), "cpu", "m") for kind in ("img", "voxels", None)}
    pixels, points = np.zeros((4, 4, 3), np.uint8), np.random.default_rng(0).normal(size=(100, 3))
    with pytest.raises(ValueError, match="'m' reads img; point clouds need"):
        reads["img"].reconstruct(points)
    with pytest.raises(ValueError, match="'m' reads voxels; pictures need"):
        reads["voxels"].reconstruct_image(pixels)
    with pytest.raises(ValueError, match="'occnets generate'; voxels need"):
        reads[None].reconstruct_voxels(solid())
    with pytest.raises(ValueError, match="has no latent code"):
        reads["img"].reconstruct_latent(np.zeros(3))
    with pytest.raises(ValueError, match="takes no camera pose"):
        reads["img"].reconstruct_image(pixels, pose=POSE)
    with pytest.raises(ValueError, match="all voxels are empty"):
        reads["voxels"].reconstruct_voxels(np.zeros((4, 4, 4), bool))
    with pytest.raises(ValueError, match="`ensemble` turns point clouds"):
        reads["voxels"].reconstruct_voxels(solid(), ensemble=2)
    with pytest.raises(ValueError, match="`precision` must be one of"):
        Reconstructor(SphereModel(), config("img"), "cpu", precision="int4")


def test_posed_pictures_use_their_pose() -> None:
    settings = load_config("onet-img-pose")
    settings["data"]["img_size"] = 64
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    inputs = {"image": torch.from_numpy(network_image(pixels, 64))[None], "pose": torch.from_numpy(POSE).float()[None]}
    owner = Reconstructor(with_surface(build_model(settings), inputs), settings, "cpu")
    first = owner.reconstruct_image(pixels, pose=POSE, resolution=16).mesh
    other = owner.reconstruct_image(pixels, pose=np.eye(4), resolution=16).mesh
    assert first.is_watertight and (
        first.faces.shape != other.faces.shape or not np.allclose(first.bounds, other.bounds)
    )
    with pytest.raises(ValueError, match="needs the camera's pose"):
        owner.reconstruct_image(pixels)


@pytest.mark.parametrize("name", ["onet-voxel", "convonet-voxel-3plane", "convonet-voxel-grid32"])
def test_voxel_networks_reconstruct(name: str) -> None:
    settings = load_config(name)
    torch.manual_seed(0)
    model = with_surface(build_model(settings), torch.from_numpy(solid())[None].float())
    made = Reconstructor(model, settings, "cpu").reconstruct_voxels(solid(), resolution=16)
    assert made.mesh.is_watertight and made.mesh.volume > 0


def test_grids_a_network_does_not_take_are_told() -> None:
    settings = load_config("onet-voxel")
    with pytest.raises(ValueError, match=r"must be \(B, 32, 32, 32\).*resample the grid"):
        Reconstructor(build_model(settings), settings, "cpu").reconstruct_voxels(solid(16))


# --- shapes from nothing ---------------------------------------------------------------------------------------------


@pytest.fixture
def cars(tmp_path: Path) -> Path:
    """A weights file of an unconditional network in the original's form."""
    torch.manual_seed(0)
    model = with_surface(build_model(load_config("onet-unconditional-cars")), None, latent=3)
    torch.save({"model": model.state_dict(), "loss_val_best": np.float64(1)}, tmp_path / "cars.pt")
    return tmp_path / "cars.pt"


def test_latent_codes_have_numbers() -> None:
    assert torch.equal(latent_of_seed(3, 128), latent_of_seed(3, 128))
    assert not torch.equal(latent_of_seed(3, 128), latent_of_seed(4, 128))
    with pytest.raises(ValueError, match=r"must be \(B, 128\), got \(1, 4\)"):
        build_model(load_config("onet-unconditional")).from_latent(torch.zeros(1, 4))


def test_generate_and_interpolate(cars: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = ["generate", str(cars), "--config", "onet-unconditional-cars", "--resolution", "16"]
    assert cli.main([*model, "-o", str(tmp_path / "a"), "--count", "2", "--seed", "3"]) == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["0003.ply", "0004.ply"]
    assert "0004.ply" in capsys.readouterr().err
    way = ["--interpolate", "3", "4", "--steps", "3", "--format", "off", "--quiet"]
    assert cli.main([*model, "-o", str(tmp_path / "b"), *way]) == 0
    names = ["0003-0004-000.off", "0003-0004-001.off", "0003-0004-002.off"]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == names
    assert capsys.readouterr().err == ""
    ends = [read_mesh(tmp_path / "b" / name) for name in (names[0], names[2])]
    for end, name in zip(ends, ("0003.ply", "0004.ply"), strict=True):
        np.testing.assert_allclose(end.points, read_mesh(tmp_path / "a" / name).points, atol=1e-4)


def test_shapes_without_surface_are_told(cars: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["generate", str(cars), "--config", "onet-unconditional", "-o", str(tmp_path / "a"), "--resolution", "16"]
    assert cli.main([*words, "--threshold", "0.999999"]) == 1
    assert "0000.ply was not written: no surface found" in capsys.readouterr().err
    assert cli.main(["generate", "convonet-grid", "-o", str(tmp_path / "b")]) == 1
    assert "reads pointcloud and makes nothing without it" in capsys.readouterr().err
    assert cli.main([*words, "--count", "0"]) == 1
    assert not (tmp_path / "b").exists()
    owner = Reconstructor.from_pretrained(cars, "onet-unconditional", "cpu")
    with pytest.raises(EmptyReconstructionError):
        owner.reconstruct_latent(latent_of_seed(3, 128), resolution=16, threshold=0.999999)


# --- command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces loading by a network with a known answer."""

    def use(reads: str) -> None:
        owner = Reconstructor(Recorder(), config(reads), "cpu", "known")
        monkeypatch.setattr(Reconstructor, "from_pretrained", staticmethod(lambda *names, **options: owner))

    return use


def test_command_takes_voxels(tmp_path: Path, known: Any, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "m.binvox").write_bytes(binvox(solid(), "5 5 5", "2"))
    known("voxels")
    words = ["reconstruct", str(tmp_path / "m.binvox"), "-o", str(tmp_path / "m.ply"), "--resolution", "32"]
    more = ["--render", str(tmp_path / "p.png"), "--report", str(tmp_path / "r.html"), "--json"]
    assert cli.main([*words, *more]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert "32 x 32 x 32 voxels, 1,152 occupied, side 2" in err
    assert record["statistics"]["input"]["translate"] == [5, 5, 5]
    np.testing.assert_allclose(read_mesh(tmp_path / "m.ply").points.mean(axis=0), [6.2, 6, 5.8], atol=0.02)
    assert cli.main([*words, "--sample", "10"]) == 1
    assert "are for clouds and meshes" in capsys.readouterr().err
    known("pointcloud")
    assert cli.main(words) == 1
    assert "'known' reads pointcloud; voxels need one that reads voxels" in capsys.readouterr().err


def test_command_takes_pictures(tmp_path: Path, known: Any, capsys: pytest.CaptureFixture) -> None:
    path = picture(tmp_path / "a.png", size=(20, 20))
    known("img")
    words = ["reconstruct", str(path), "-o", str(tmp_path / "m.glb"), "--resolution", "32"]
    assert cli.main([*words, "--render", str(tmp_path / "p.png")]) == 0
    assert "input   picture of 20 x 20 pixels\n" in capsys.readouterr().err
    from PIL import Image

    assert Image.open(tmp_path / "p.png").size == (640, 640)  # the mesh alone
    np.savetxt(tmp_path / "pose.txt", POSE)
    assert cli.main([*words, "--pose", str(tmp_path / "pose.txt")]) == 1
    assert "takes no camera pose" in capsys.readouterr().err
    np.save(tmp_path / "v.npy", solid(8))
    assert cli.main(["reconstruct", str(tmp_path / "v.npy"), *words[2:], "--pose", str(tmp_path / "pose.txt")]) == 1
    assert "--pose is the camera of a picture" in capsys.readouterr().err
