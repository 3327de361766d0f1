# SPDX-License-Identifier: MIT
"""marching_cubes: the table's proofs, geometry, native = reference, contract."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from mesh_checks import random_fields, signed_volume, to_cpu
from torch import Tensor

from occkernels import reference_mc
from occkernels._marching_cubes_table import CASES
from occkernels._native import load
from occkernels.marching_cubes import marching_cubes

GENERATOR = Path(__file__).resolve().parents[2] / "csrc" / "math" / "generate_marching_cubes.py"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The table's derivation, imported from the source tree."""
    spec = importlib.util.spec_from_file_location("generate_marching_cubes", GENERATOR)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def triangles_of(code: int) -> list[tuple[int, ...]]:
    digits = [int(digit, 16) for digit in CASES[code].strip("-")]
    return [tuple(digits[i : i + 3]) for i in range(0, len(digits), 3)]


def boundary(code: int) -> set[tuple[int, int]]:
    """Directed sides of a case's triangles that no other triangle of the case walks the other way."""
    sides = {(t[i], t[(i + 1) % 3]) for t in triangles_of(code) for i in range(3)}
    return {(a, b) for a, b in sides if (b, a) not in sides}


# ---------------------------------------------------------------------------------------------------- the table


def test_committed_tables_are_the_generators(generator: ModuleType) -> None:
    cases = generator.table()
    assert generator.HEADER.read_text(encoding="utf-8") == generator.header_text(cases)
    assert generator.MODULE.read_text(encoding="utf-8") == generator.module_text(cases)


def test_every_case_uses_its_crossed_edges_once_around(generator: ModuleType) -> None:
    for code in range(256):
        crossed = {e for e in range(12) if len({code >> c & 1 for c in generator.edge_corners(e)}) == 2}
        triangles = triangles_of(code)
        assert {edge for triangle in triangles for edge in triangle} == crossed
        sides = [(t[i], t[(i + 1) % 3]) for t in triangles for i in range(3)]
        assert len(set(sides)) == len(sides)
        # Each crossed edge starts one side of the boundary and ends one: closed loops, one disc each.
        assert sorted(a for a, _ in boundary(code)) == sorted(crossed) == sorted(b for _, b in boundary(code))


def test_no_diagonal_lies_in_a_face_of_the_cell(generator: ModuleType) -> None:
    faces = [set(generator.edges_of_face(cycle)) for cycle in generator.FACES]
    for code in range(256):
        outer = boundary(code)
        for triangle in triangles_of(code):
            assert not any(set(triangle) <= face for face in faces), code
            for i in range(3):
                side = (triangle[i], triangle[(i + 1) % 3])
                assert side in outer or not any(set(side) <= face for face in faces), (code, side)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_all_pairs_of_neighbouring_cells_match_on_their_face(axis: int, generator: ModuleType) -> None:
    # Edges of the face at 1 along the axis in the first cell, and the same edges in the second, where they are at 0.
    def shifted(edge: int) -> int:
        low, high = (generator.CORNERS[corner] for corner in generator.edge_corners(edge))
        moved = [tuple(0 if i == axis else v for i, v in enumerate(corner)) for corner in (low, high)]
        return generator.EDGE_OF[frozenset(generator.corner_index(corner) for corner in moved)]

    bit = 4 >> axis
    shared = [e for e in range(12) if all(c & bit for c in generator.edge_corners(e))]
    to_second = {edge: shifted(edge) for edge in shared}
    high_bits = [c for c in range(8) if c & bit]
    for first, second in itertools.product(range(256), repeat=2):
        if any((first >> c & 1) != (second >> (c ^ bit) & 1) for c in high_bits):
            continue  # the two cells disagree about a node: not one of the 2^12 patterns
        ours = {(to_second[a], to_second[b]) for a, b in boundary(first) if a in to_second and b in to_second}
        face = set(to_second.values())
        theirs = {(b, a) for a, b in boundary(second) if a in face and b in face}
        assert ours == theirs, (first, second)


# ---------------------------------------------------------------------------------------------------- geometry


def ball(size: int, radius: float = 0.7, dtype: torch.dtype = torch.float32) -> Tensor:
    axis = torch.linspace(-1, 1, size, dtype=torch.float64)
    return (radius - torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)).to(dtype)


def test_sphere_is_placed_oriented_and_has_normals() -> None:
    vertices, faces, normals, attributes = marching_cubes(ball(64), normals=True).mesh(0)
    assert attributes is None
    assert normals is not None
    points = vertices / 63 * 2 - 1
    # Linear interpolation of the distance errs by h^2 / 8 / radius at most, h the grid's spacing.
    assert float((points.norm(dim=1) - 0.7).abs().max()) < (2 / 63) ** 2 / 8 / 0.7 * 1.05
    assert float((F.normalize(points, dim=1) * normals).sum(1).min()) > 0.999
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(normals.shape[0]))
    exact = 4 / 3 * math.pi * 0.7**3
    assert 0.995 * exact < signed_volume(points, faces) < exact


def test_single_node_gives_the_octahedron() -> None:
    volume = torch.full((3, 3, 3), -1.0)
    volume[1, 1, 1] = 1.0
    vertices, faces = marching_cubes(volume).mesh(0)[:2]
    # Owning nodes in row-major order: (0,1,1) x, (1,0,1) y, (1,1,0) z, then (1,1,1) x, y, z.
    expected = [[0.5, 1, 1], [1, 0.5, 1], [1, 1, 0.5], [1.5, 1, 1], [1, 1.5, 1], [1, 1, 1.5]]
    assert vertices.tolist() == expected
    assert faces.shape == (8, 3)
    assert signed_volume(vertices, faces) == pytest.approx(4 / 3 * 0.5**3)
    volume[1, 1, 1] = 0.0  # equal to the level is outside
    assert marching_cubes(volume).vertices.shape == (0, 3)


def test_edge_margin_keeps_vertices_of_equal_values_apart() -> None:
    volume = torch.zeros(5, 5, 5)  # zeros equal the level: exact crossings all sit on nodes
    volume[2, 2, 2] = volume[2, 2, 3] = 1
    exact = marching_cubes(volume, edge_margin=0.0).vertices
    assert bool((exact == exact.round()).all())
    mesh = marching_cubes(volume).mesh(0)
    assert mesh.vertices.unique(dim=0).shape == mesh.vertices.shape
    wide = marching_cubes(volume, edge_margin=0.25).vertices
    assert sorted((wide % 1).unique().tolist()) == [0.0, 0.25, 0.75]


def test_default_margin_is_visible_up_to_2048() -> None:
    row = torch.zeros(1, 1, 2048)
    row[0, 0, 2046] = 1.0
    z = marching_cubes(row).vertices[:, 2]
    assert z.tolist()[0] > 2045 and z.tolist()[1] < 2047


@pytest.mark.parametrize("value", [-1.0, -1e6, -math.inf, 2.0])
def test_padding_is_a_layer_of_nodes_without_the_copy(value: float) -> None:
    fields = random_fields("normal", (2, 4, 5, 66), 3)
    batch = marching_cubes(fields, 0.25, normals=True, pad_value=value)
    copied = marching_cubes(F.pad(fields, (1,) * 6, value=value), 0.25, normals=True)
    assert torch.equal(batch.faces, copied.faces) and torch.equal(batch.face_offsets, copied.face_offsets)
    torch.testing.assert_close(batch.vertices, copied.vertices - 1, rtol=0, atol=1e-5)  # rounded one unit apart
    torch.testing.assert_close(batch.normals, copied.normals)
    if value == -math.inf:
        inside = batch.vertices.clamp(torch.zeros(3), torch.tensor([3.0, 4.0, 65.0]))
        assert float((batch.vertices - inside).abs().max()) < 1.1e-4  # caps on the border nodes, the margin outside


def test_infinite_values_do_not_attract() -> None:
    row = torch.tensor([math.inf, -1.0, math.inf, -math.inf, 1.0, 3e38, -3e38]).view(1, 1, -1)
    z = marching_cubes(row, edge_margin=0.0, normals=True)
    assert z.vertices[:, 2].tolist() == [1.0, 1.0, 2.5, 4.0, 5.5]
    assert z.normals is not None and z.normals[:, 2].abs().tolist() == [1.0] * 5


# ------------------------------------------------------------------------------------- same answer as the twin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(1, 2, 2, 2), (3, 1, 4, 1), (2, 5, 1, 70), (2, 3, 4, 64), (1, 4, 3, 65), (2, 3, 3, 200)]
)
@pytest.mark.parametrize("pad_value", [None, -1.0, -math.inf, 0.5])
def test_same_as_reference(dtype: torch.dtype, shape: tuple[int, ...], pad_value: float | None, device: str) -> None:
    for kind, level in (("normal", 0.1), ("with equal", 0.0)):
        volume = random_fields(kind, shape, sum(shape)).to(dtype)
        volume[..., ::7] = math.inf
        volume[..., 3::11] = -math.inf
        ours = to_cpu(marching_cubes(volume.to(device), level, normals=True, pad_value=pad_value))
        theirs = reference_mc.marching_cubes(volume, level, normals=True, pad_value=pad_value)
        for name, a, b in zip(ours._fields, ours, theirs, strict=True):
            if name == "attributes":
                assert a is b is None
            elif name == "normals":  # sums of three products may round differently
                torch.testing.assert_close(a, b)
            else:
                assert a.dtype == b.dtype and torch.equal(a, b), name


def test_strided_volumes() -> None:
    volume = random_fields("normal", (4, 5, 6, 7), 5)
    views = [
        volume.transpose(1, 2),
        volume.permute(0, 3, 2, 1),
        volume[:, 1:, :, 2:],
        volume[::2],
        volume[0],
        volume[1:2],
    ]
    views.append(volume[:1].expand(3, -1, -1, -1))
    for view in views:
        for a, b in zip(marching_cubes(view), marching_cubes(view.contiguous()), strict=True):
            assert a is b is None or torch.equal(a, b)


@pytest.mark.usefixtures("threads")
def test_same_bits_for_any_number_of_threads_and_any_run() -> None:
    volume = random_fields("normal", (3, 17, 19, 130), 7)
    results = []
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        results.append(marching_cubes(volume, normals=True, pad_value=-1.0))
    for result in results[1:]:
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def digest(volume: Tensor) -> str:
    """Hash of the meshes of a volume in every type."""
    parts: list[Tensor] = []
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        batch = marching_cubes(volume.to(dtype), normals=True, pad_value=-1.0)
        parts += [part for part in batch if part is not None]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


def test_same_bits_for_every_instruction_set(tmp_path: Path) -> None:
    volume = random_fields("normal", (2, 5, 6, 100), 9)
    torch.save(volume, tmp_path / "volume.pt")
    code = "import sys, torch, test_marching_cubes as t; print(t.digest(torch.load(sys.argv[1], weights_only=True)))"
    paths = [str(Path(__file__).parent), *sys.path]
    lower = {"avx512": ("base", "avx2"), "avx2": ("base",), "base": ()}[load().build_info()["simd"]]
    for isa in lower:
        environment = os.environ | {"OCC_SIMD": isa, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        command = [sys.executable, "-c", code, str(tmp_path / "volume.pt")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout.strip()) == (0, digest(volume)), done.stderr


def test_batches_are_their_members() -> None:
    volume = random_fields("normal", (4, 5, 6, 7), 11)
    volume[1] = -1  # empty
    volume[2] = 1  # full
    batch = marching_cubes(volume, normals=True)
    for index in range(4):
        alone = marching_cubes(volume[index], normals=True)
        for a, b in zip(batch.mesh(index), alone.mesh(0), strict=True):
            assert a is b is None or torch.equal(a, b)
    assert batch.mesh(1).vertices.shape == batch.mesh(2).faces.shape == (0, 3)
    with pytest.raises(IndexError, match="0..3"):
        batch.mesh(4)


@pytest.mark.parametrize("function", [marching_cubes, reference_mc.marching_cubes])
@pytest.mark.parametrize("shape", [(0, 4, 4, 4), (2, 0, 4, 4), (1, 4, 4, 0), (1, 1, 1, 1)])
def test_empty_volumes_give_empty_meshes(function: object, shape: tuple[int, ...]) -> None:
    batch = function(torch.zeros(shape), normals=True, pad_value=-1.0)  # type: ignore[operator]
    assert batch.vertices.shape == batch.faces.shape == batch.normals.shape == (0, 3)
    assert batch.vertex_offsets.tolist() == batch.face_offsets.tolist() == [0] * (shape[0] + 1)


# ---------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("function", [marching_cubes, reference_mc.marching_cubes])
def test_wrong_arguments_are_told(function: object) -> None:
    volume = torch.zeros(2, 3, 4, 5)
    broken = volume.clone()
    broken[1, 2, 0, 4] = broken[1, 2, 3, 1] = math.nan
    cases = [
        (TypeError, "int64.*float", (volume.long(),), {}),
        (TypeError, "numpy|ndarray", (volume.numpy(),), {}),
        (ValueError, r"\(X, Y, Z\).*\(4, 5\)", (volume[0, 0],), {}),
        (ValueError, "level.*finite.*nan", (volume, math.nan), {}),
        (ValueError, r"edge_margin.*\[0, 0.5\].*0.6", (volume,), {"edge_margin": 0.6}),
        (ValueError, "pad_value.*NaN", (volume,), {"pad_value": math.nan}),
        (ValueError, r"no NaN, got 2, the first at index \(1, 2, 0, 4\).*nan_to_num", (broken,), {}),
    ]
    for error, pattern, arguments, options in cases:
        with pytest.raises(error, match=pattern):
            function(*arguments, **options)  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 31, 63, 64, 69])
def test_nan_is_found_anywhere(dtype: torch.dtype, place: int) -> None:
    volume = torch.zeros(2, 2, 70, dtype=dtype)
    volume[1, 0, place] = math.nan
    with pytest.raises(ValueError, match=rf"index \(0, 1, 0, {place}\)"):
        marching_cubes(volume)


def test_opcheck() -> None:
    volume = random_fields("normal", (2, 4, 5, 6), 13)
    values = volume.unsqueeze(-1) * torch.arange(3.0)
    for arguments in (
        (volume, None, 0.0, True, 1e-4, None),
        (volume.double(), values.double(), 0.1, False, 0.0, -1.0),
        (volume.requires_grad_(), values.requires_grad_(), 0.1, False, 1e-4, None),
    ):
        torch.library.opcheck(torch.ops.occkernels.marching_cubes.default, arguments)


def test_compiles_as_one_graph() -> None:
    import torch._dynamo.config as config

    def count_and_scale(volume: Tensor) -> tuple[Tensor, Tensor]:
        batch = marching_cubes(volume, 0.0, normals=True, pad_value=-1.0)
        return batch.vertices * 2, batch.face_offsets.diff()

    with config.patch(capture_dynamic_output_shape_ops=True):
        torch._dynamo.reset()
        compiled = torch.compile(count_and_scale, fullgraph=True, backend="aot_eager")
        for seed in range(3):
            volume = random_fields("normal", (2, 4, 5, 6), seed)
            for a, b in zip(compiled(volume), count_and_scale(volume), strict=True):
                assert torch.equal(a, b)


@pytest.mark.slow
def test_sizes_beyond_32_bits() -> None:
    row = torch.linspace(-1, 1, 1300)
    volume = row.expand(1300, 1300, 1300)  # 2.2e9 nodes, 5 kB
    mesh = marching_cubes(volume, 0.3).mesh(0)
    assert mesh.vertices.shape == (1300**2, 3) and mesh.faces.shape == (2 * 1299**2, 3)
    assert int(mesh.faces.max()) == 1300**2 - 1
    torch.testing.assert_close(mesh.vertices[-1], torch.tensor([1299.0, 1299.0, 1299 * 0.65]))


MEMORY = """
import resource, torch
from occkernels.marching_cubes import marching_cubes
axis = torch.linspace(-1, 1, 256)
volume = 0.7 - (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt_()
marching_cubes(volume[:8, :8, :8])
bytes_of = lambda tensor: tensor.numel() * tensor.element_size()
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
open("/proc/self/clear_refs", "w").write("5")
batch = marching_cubes(volume)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
output = sum(bytes_of(part) for part in batch if part is not None)
assert peak - before <= 1.25 * output + 0.25 * bytes_of(volume), (peak - before, output, bytes_of(volume))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs /proc/self/clear_refs (Linux)")
def test_memory_stays_near_the_output() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
