# SPDX-License-Identifier: MIT
"""The command line: results, statistics, reports, error texts, exit codes, nothing half-written."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fakes import CONFIG, FieldModel, SphereModel, sphere_points
from occnets import cli
from occnets.commands import reconstruct
from occnets.io import Geometry, PointCloud, read_geometry, read_mesh, write_mesh
from occnets.reconstruct import Reconstructor

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "teapot.ply"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "scan.ply"
    path.parent.mkdir()
    write_mesh(path, PointCloud(sphere_points(radius=3.0, center=(100.0, 0, 0))))
    return path


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replaces loading by a network with a known answer; a test may put another one in."""
    holder: list[Any] = [SphereModel()]

    def load(name: str, config: Any = None, device: str = "auto", **options: Any) -> Reconstructor:
        return Reconstructor(holder[0], CONFIG, "cpu", str(name))

    monkeypatch.setattr(Reconstructor, "from_pretrained", staticmethod(load))
    return holder


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def run(*words: Any) -> int:
    return cli.main([str(word) for word in words])


# --- success ---------------------------------------------------------------------------------------------------------


def test_reconstruct_tells_everything(
    scan: Path, tmp_path: Path, model: list[Any], capsys: pytest.CaptureFixture
) -> None:
    out, png, html, js = (tmp_path / name for name in ("m.obj", "p.png", "r.html", "r.json"))
    words = ("reconstruct", scan, "-o", out, "--resolution", 32, "--render", png, "--json", "--normals")
    assert run(*words, "--report", html) == 0
    said = capsys.readouterr()
    record = json.loads(said.out)
    mesh = read_mesh(out)
    assert record["statistics"]["mesh"]["faces"] == len(mesh.faces) and mesh.normals is not None
    assert record["statistics"]["mesh"]["watertight"] is True
    assert record["statistics"]["mesh"]["volume"] == pytest.approx(4 / 3 * np.pi * 27, rel=0.01)
    np.testing.assert_allclose(np.linalg.norm(mesh.points - [100, 0, 0], axis=1), 3.0, atol=0.01)
    assert {"read", "load", "prepare", "encode", "extract", "finish", "render", "write", "total"} <= set(
        record["timings"]
    )
    assert record["settings"]["resolution"] == 32 and record["settings"]["threshold"] == 0.5
    assert record["versions"]["torch"] == torch.__version__ and record["model"]["name"] == reconstruct.DEFAULT_MODEL
    for text in ("2,000 points", "watertight, 1 component", "volume 112.", "bounds (97.00", "written "):
        assert text in said.err, said.err
    assert re.search(r"extract \d+\.\d\d", said.err), said.err
    assert png.read_bytes().startswith(b"\x89PNG")
    page = html.read_text()
    assert "data:image/png;base64,iVBOR" in page and "watertight" in page and 'src="http' not in page
    assert run("reconstruct", scan, "-o", out, "--resolution", 32, "--quiet", "--report", js) == 0
    assert json.loads(js.read_text())["statistics"]["mesh"]["faces"] == len(mesh.faces)
    assert files(tmp_path) == {"m.obj", "p.png", "r.html", "r.json"}


@pytest.mark.parametrize("ending", [".ply", ".obj", ".off", ".stl", ".glb"])
def test_quiet_writes_only_the_file(
    scan: Path, tmp_path: Path, model: list[Any], capsys: pytest.CaptureFixture, ending: str
) -> None:
    assert run("reconstruct", scan, "-o", tmp_path / f"m{ending}", "--resolution", 16, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert files(tmp_path) == {f"m{ending}"}
    assert np.asarray(read_mesh(tmp_path / f"m{ending}").points).mean(axis=0) == pytest.approx([100, 0, 0], abs=0.05)


def test_mesh_input_sampled_and_options_reach_the_network(
    scan: Path, tmp_path: Path, model: list[Any], capsys: pytest.CaptureFixture
) -> None:
    assert (
        run(
            "reconstruct",
            scan,
            "-o",
            tmp_path / "a.ply",
            "--resolution",
            16,
            "--quiet",
            "--points",
            500,
            "--ensemble",
            3,
        )
        == 0
    )
    assert [len(cloud) for cloud in model[0].clouds] == [500] * 3
    assert (
        run(
            "reconstruct", tmp_path / "a.ply", "-o", tmp_path / "b.ply", "--resolution", 16, "--quiet", "--sample", 1234
        )
        == 0
    )
    assert len(model[0].clouds[-1]) == 1234
    assert run("reconstruct", scan, "-o", tmp_path / "c.ply", "--sample", 10) == 1
    assert "holds points only" in capsys.readouterr().err


def test_mesh_options(scan: Path, tmp_path: Path, model: list[Any], capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("fast_simplification")
    words = ("reconstruct", scan, "-o", tmp_path / "m.ply", "--resolution", 24, "--no-fit", "--json")
    assert run(*words, "--simplify", 300, "--refine", 4, "--normals", "--memory", "1G") == 0
    said = capsys.readouterr()
    record = json.loads(said.out)
    mesh = record["statistics"]["mesh"]
    assert mesh["faces"] == 300 and mesh["watertight"] and mesh["problems"] == []
    assert record["settings"] | {"refine": 4, "simplify": 300, "memory": 2**30, "normals": True} == record["settings"]
    assert re.search(r"refined: loss \S+ to \S+, simplified from [\d,]+ faces", said.err), said.err
    assert read_mesh(tmp_path / "m.ply").normals is not None
    assert run(*words, "--simplify", 0.5, "--report", tmp_path / "r.html", "--refine") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["settings"]["refine"] == 30 and record["settings"]["simplify"] == 0.5
    page = (tmp_path / "r.html").read_text()
    assert "simplified from" in page and "best step" in page
    with pytest.raises(SystemExit) as stop:
        run(*words, "--simplify", "many")
    assert stop.value.code == 2 and "a number of faces or a share below 1, got 'many'" in capsys.readouterr().err


def test_progress_shows_each_stage(
    scan: Path, tmp_path: Path, model: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run("reconstruct", scan, "-o", tmp_path / "m.ply", "--resolution", 16, "--refine", 2) == 0
    said = capsys.readouterr().err
    assert "evaluate: " in said and "refine: " in said


def test_optimization_writes_intermediate_meshes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cloud = tmp_path / "cloud.npy"
    np.save(cloud, sphere_points(300))
    words = ("reconstruct", cloud, "-o", tmp_path / "m.ply", "--resolution", 32, "--ensemble", 1, "--json")
    assert run(*words, "--optimize", 3, "--save-every", 2, "--learning-rate", "1e-3") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["settings"]["optimize"]["steps"] == 3 and record["settings"]["optimize"]["learning_rate"] == 1e-3
    assert record["statistics"]["optimization"]["steps"] == 3
    assert files(tmp_path) == {"cloud.npy", "m.ply", "m_step2_th0.5.ply", "m_step3_th0.5.ply"}


def test_precision_warnings(tmp_path: Path, model: list[Any], capsys: pytest.CaptureFixture) -> None:
    write_mesh(tmp_path / "utm.ply", PointCloud(sphere_points(radius=4.0, center=(548752.0, 4176973.0, 190.0))))
    for ending, text in ((".stl", "warning: STL stores 32-bit"), (".glb", "warning: GLB stores 32-bit"), (".ply", "")):
        assert run("reconstruct", tmp_path / "utm.ply", "-o", tmp_path / f"m{ending}", "--resolution", 16) == 0
        said = capsys.readouterr().err
        assert (text in said) if text else ("warning:" not in said)
    np.testing.assert_allclose(read_mesh(tmp_path / "m.glb").points.mean(axis=0), [548752, 4176973, 190], atol=0.1)


def test_render_command(tmp_path: Path, scan: Path) -> None:
    assert run("render", scan, scan, "-o", tmp_path / "p.png", "--size", 64, "--up", "z") == 0
    from PIL import Image

    assert Image.open(tmp_path / "p.png").size == (128, 64)


def test_models_and_info(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("occnets.zoo.list_models", lambda: ["convonet-grid", "convonet-voxel-grid32"])
    assert run("models") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.match(r"convonet-grid +conv_onet +pointcloud +[\d,]+ parameters +bundled ", line) for line in lines)
    assert run("models", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    told = "name family input parameters weights pretrained released_as url downloaded card missing"
    assert set(told.split()) == set(rows[0]) and len(rows) == len(lines) == 2
    assert [row["weights"] for row in rows] == ["bundled", "released"]
    assert run("info", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"] == torch.__version__ and ".las" in facts["reads"]
    assert run("info") == 0 and "cuda operators" in capsys.readouterr().out


# --- failure ---------------------------------------------------------------------------------------------------------


def bad_inputs(folder: Path) -> dict[str, tuple[Path, str]]:
    def text(name: str, content: str) -> Path:
        (folder / name).write_text(content)
        return folder / name

    def rows(name: str, points: np.ndarray) -> Path:
        return text(name, "\n".join(" ".join(map(repr, map(float, row))) for row in points))

    line = np.outer(np.linspace(0, 1, 100), [1, 2, 3])
    return {
        "missing": (folder / "none.ply", "does not exist"),
        "empty": (text("empty.ply", ""), "is empty"),
        "unknown": (text("scan.docx", "x"), "ending '.docx'; occnets reads"),
        "damaged": (text("bad.ply", "plyx\nnonsense\nend_header\n"), "unexpected line in the PLY header"),
        "no points": (text("comment.xyz", "# nothing\n"), "no points"),
        "equal": (rows("equal.xyz", np.ones((100, 3))), "all points are equal"),
        "line": (rows("line.xyz", line), "on one line"),
        "plane": (rows("plane.xyz", sphere_points(100) * [1, 1, 0]), "on one plane"),
        "nan": (rows("nan.xyz", np.where(sphere_points(100) > 0.99, np.nan, sphere_points(100))), "points have NaN"),
        "few": (rows("few.xyz", sphere_points(20)), "has 20 points; at least 32 are needed"),
    }


BAD = ("missing", "empty", "unknown", "damaged", "no points", "equal", "line", "plane", "nan", "few")


@pytest.mark.parametrize("kind", BAD)
def test_bad_inputs_give_one_line_and_no_file(
    kind: str, tmp_path: Path, model: list[Any], capsys: pytest.CaptureFixture
) -> None:
    path, message = bad_inputs(tmp_path)[kind]
    before = files(tmp_path)
    assert run("reconstruct", path, "-o", tmp_path / "m.ply", "--render", tmp_path / "p.png") == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("occnets: ") and said.err.count("\n") == 1
    assert message in said.err
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "{}/missing/m.ply"], "does not exist"),
        (["-o", "{}/m.docx"], "ending '.docx'; occnets writes"),
        (["-o", "{}/in"], "no ending; occnets writes"),
        (["-o", "{}/in/scan.ply"], "are the same file"),
        (["-o", "{}/m.ply", "--render", "{}/p.jpg"], "occnets writes .png"),
        (["-o", "{}/m.ply", "--report", "{}/r.pdf"], "occnets writes .htm, .html, .json"),
        (["-o", "{}/m.ply", "--resolution", "2"], "`resolution` must be a whole number from 8"),
        (["-o", "{}/m.ply", "--threshold", "1.5"], "`threshold` is a probability"),
        (["-o", "{}/m.ply", "--simplify", "1"], "`simplify` must be a share between 0 and 1 or a number of faces"),
        (["-o", "{}/m.ply", "--refine", "-3"], "`refine` must be a whole number from 0"),
        (["-o", "{}/m.ply", "--optimize", "many"], "--optimize: expected a number of steps, got 'many'"),
        (["-o", "{}/m.ply", "--learning-rate", "1"], "--learning-rate belongs to --optimize"),
        (["-o", "{}/m.ply", "--optimize", "--optimize-preset", "convonet-grid"], "has no section test_optim"),
        (["-o", "{}/m.ply", "--memory", "much"], "such as 500M or 4G; got 'much'"),
        (["-o", "{}/m.ply", "--memory", "1M"], "`memory` must be at least 64M"),
    ],
)
def test_outputs_and_options_are_checked_before_the_work(
    words: list[str], message: str, scan: Path, tmp_path: Path, model: list[Any], capsys: pytest.CaptureFixture
) -> None:
    assert run("reconstruct", scan, *(word.format(tmp_path) for word in words)) == 1
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1
    assert not model[0].clouds and not files(tmp_path)


def test_read_only_folder(scan: Path, tmp_path: Path, model: list[Any], capsys: pytest.CaptureFixture) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere")
    assert run("reconstruct", scan, "-o", locked / "m.ply") == 1
    assert "cannot be written" in capsys.readouterr().err and not model[0].clouds


def test_no_surface_writes_nothing(scan: Path, tmp_path: Path, model: list[Any], capsys: pytest.CaptureFixture) -> None:
    model[0] = FieldModel(lambda query: torch.full(query.shape[:2], -3.0))
    (tmp_path / "m.ply").write_text("the old file")
    assert run("reconstruct", scan, "-o", tmp_path / "m.ply", "--json", "--report", tmp_path / "r.json") == 1
    said = capsys.readouterr()
    assert said.out == "" and "no surface found" in said.err and said.err.count("\n") == 1
    assert (tmp_path / "m.ply").read_text() == "the old file" and files(tmp_path) == {"m.ply"}


def test_out_of_memory_and_defects(scan: Path, tmp_path: Path, model: list[Any], capsys: pytest.CaptureFixture) -> None:
    def fail(error: Exception) -> FieldModel:
        def field(query: torch.Tensor) -> torch.Tensor:
            raise error

        return FieldModel(field)

    model[0] = fail(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert run("reconstruct", scan, "-o", tmp_path / "m.ply") == 1
    assert "out of memory; try a smaller --resolution" in capsys.readouterr().err
    model[0] = fail(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):  # a defect of ours keeps its traceback
        run("reconstruct", scan, "-o", tmp_path / "m.ply")
    assert not files(tmp_path)


def test_interrupt(scan: Path, tmp_path: Path, model: list[Any], capsys: pytest.CaptureFixture) -> None:
    def field(query: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    model[0] = FieldModel(field)
    assert run("reconstruct", scan, "-o", tmp_path / "m.ply") == 130
    assert capsys.readouterr().err == "occnets: interrupted\n" and not files(tmp_path)


def test_unknown_model_and_device(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("reconstruct", scan, "-o", tmp_path / "m.ply", "--model", "no-such-model") == 1
    assert "'no-such-model' is no bundled model" in capsys.readouterr().err
    assert run("reconstruct", scan, "-o", tmp_path / "m.ply", "--device", "cuda:99") == 1
    assert "'cuda:99' is not available" in capsys.readouterr().err


def test_traceback_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCCNETS_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        run("render", tmp_path / "none.ply", "-o", tmp_path / "p.png")


# --- as a process ----------------------------------------------------------------------------------------------------


def command(*words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "occnets", *map(str, words)], capture_output=True, text=True, **options
    )


@pytest.mark.parametrize("words", [["--help"], ["reconstruct", "--help"], ["render", "--help"], ["models", "--help"]])
def test_help_imports_no_torch(words: list[str]) -> None:
    code = (
        "import sys\nfrom occnets.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'numpy', 'scipy', 'trimesh', 'PIL', 'yaml'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: occnets" in done.stdout, done.stderr


def test_process_exit_codes(tmp_path: Path) -> None:
    done = command("reconstruct", tmp_path / "none.ply", "-o", tmp_path / "m.ply")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"occnets: {tmp_path / 'none.ply'} does not exist\n"
    assert command("reconstruct").returncode == 2
    assert command("paint").returncode == 2
    assert command().returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="signals to one process are POSIX")
def test_process_interrupted(tmp_path: Path) -> None:
    fifo = tmp_path / "slow.xyz"
    os.mkfifo(fifo)  # reading it blocks until the signal comes
    words = [sys.executable, "-m", "occnets", "reconstruct", str(fifo), "-o", str(tmp_path / "m.ply")]
    # A test run in the background of a shell ignores SIGINT, and children inherit that.
    attend = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=attend)
    writer = os.open(fifo, os.O_WRONLY)  # returns once the process has opened the file
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    os.close(writer)
    assert (process.returncode, said) == (130, "occnets: interrupted\n")
    assert {path.name for path in tmp_path.iterdir()} == {"slow.xyz"}


# --- the example and the bundled model -------------------------------------------------------------------------------


def test_example_is_small_and_noisy() -> None:
    shape = read_geometry(EXAMPLE)
    assert EXAMPLE.stat().st_size < 60_000 and len(shape.points) == 3000
    assert shape.faces is None and shape.normals is None
    assert np.ptp(shape.points[:, 0]) == pytest.approx(240, rel=0.03)


def test_bundled_model_reconstructs_the_example(tmp_path: Path) -> None:
    from occnets.checkpoints import pretrained_names

    if reconstruct.DEFAULT_MODEL not in pretrained_names():
        pytest.skip(f"the weights of {reconstruct.DEFAULT_MODEL} are not bundled yet")
    done = command(
        "reconstruct", EXAMPLE, "-o", tmp_path / "m.glb", "--json", "--quiet", "--render", tmp_path / "p.png"
    )
    assert done.returncode == 0, done.stderr
    mesh = json.loads(done.stdout)["statistics"]["mesh"]
    assert mesh["watertight"] and mesh["components"] == 1
    assert mesh["size"][0] == pytest.approx(240, rel=0.05)
    points = read_geometry(EXAMPLE).points
    from scipy.spatial import cKDTree

    shape: Geometry = read_mesh(tmp_path / "m.glb")
    assert np.median(cKDTree(shape.points).query(points)[0]) < 0.01 * 240
