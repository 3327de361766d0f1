# SPDX-License-Identifier: MIT
"""Every format read and written: types, endians, layouts, precision, damage."""

from __future__ import annotations

import json
import os
import stat
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from occnets.io import (
    READERS,
    WRITERS,
    FormatError,
    Geometry,
    PointCloud,
    atomic_write,
    check_writable,
    needs_doubles,
    read_geometry,
    read_mesh,
    read_points,
    sample_surface,
    write_mesh,
)
from occnets.io.pcd import lzf_decompress

POINTS = np.array([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [0.0, 2.25, 0.0], [0.0, 0.0, 3.125]])
FACES = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
NORMALS = np.array([[-0.6, -0.8, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=np.float32)
COLORS = np.array([[255, 0, 7], [0, 255, 0], [1, 2, 3], [40, 50, 60]], dtype=np.uint8)
UTM = np.array([548752.0, 4176973.0, 190.0])


def store(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def same_surface(a: Geometry, b: Geometry, tolerance: float) -> None:
    """Formats may renumber vertices, so faces are compared by their corners."""
    assert a.faces is not None and b.faces is not None
    np.testing.assert_allclose(a.points[a.faces], b.points[b.faces], rtol=0, atol=tolerance)


# --- PLY -------------------------------------------------------------------------------------------------------------


def make_ply(form: str, real: str, *, list_types: str = "uchar int", extra: bool = False) -> bytes:
    kinds = {"float": "f4", "double": "f8"}
    header = ["ply", f"format {form} 1.0", "comment made by hand", "obj_info nothing", f"element vertex {len(POINTS)}"]
    header += [f"property {real} {axis}" for axis in ("x", "y", "z", "nx", "ny", "nz")]
    header += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
    if extra:
        header += ["element junk 2", "property list uchar short stuff", "property int8 tag"]
    header += [f"element face {len(FACES) + 1}", f"property list {list_types} vertex_indices", "end_header\n"]
    polygons = [*FACES.tolist(), [0, 1, 2, 3]]
    if form == "ascii":
        lines = [
            " ".join(map(repr, [*map(float, p), *map(float, n), *map(int, c)]))
            for p, n, c in zip(POINTS, NORMALS, COLORS, strict=True)
        ]
        lines += ["2 5 6 7", "0 1"] if extra else []
        lines += [" ".join(map(str, [len(polygon), *polygon])) for polygon in polygons]
        return ("\n".join(header) + "\n".join(lines) + "\n").encode()
    end = "<" if "little" in form else ">"
    rows = np.zeros(len(POINTS), dtype=[("r", end + kinds[real], 6), ("c", "u1", 3)])
    rows["r"], rows["c"] = np.hstack([POINTS, NORMALS]), COLORS
    body = rows.tobytes()
    if extra:
        body += struct.pack(end + "BhhbBb", 2, 5, 6, 7, 0, 1)
    count, index = list_types.split()
    codes = {"uchar": "B", "int": "i", "uint": "I", "ushort": "H", "short": "h"}
    for polygon in polygons:
        body += struct.pack(f"{end}{codes[count]}{len(polygon)}{codes[index]}", len(polygon), *polygon)
    return "\n".join(header).encode() + body


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize(("list_types", "extra"), [("uchar int", False), ("ushort uint", True)])
def test_ply_reads_every_encoding(tmp_path: Path, form: str, real: str, list_types: str, extra: bool) -> None:
    shape = read_geometry(store(tmp_path / "a.PLY", make_ply(form, real, list_types=list_types, extra=extra)))
    np.testing.assert_array_equal(shape.points, POINTS)
    np.testing.assert_allclose(shape.normals, NORMALS, atol=1e-7)
    np.testing.assert_array_equal(shape.colors, COLORS)
    np.testing.assert_array_equal(shape.faces, [*FACES.tolist(), [0, 1, 2], [0, 2, 3]])


def test_ply_ascii_ignores_line_breaks(tmp_path: Path) -> None:
    head, body = make_ply("ascii", "float").split(b"end_header\n")
    wrapped = head.replace(b"\n", b"\r\n") + b"end_header\r\n" + b"\n".join(body.split())
    np.testing.assert_array_equal(read_points(store(tmp_path / "a.ply", wrapped)).points, POINTS)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
def test_ply_truncated_is_an_error_naming_the_element(tmp_path: Path, form: str) -> None:
    data = make_ply(form, "float")
    with pytest.raises(FormatError, match="element 'face'.*truncated"):
        read_points(store(tmp_path / "a.ply", data[:-4]))
    with pytest.raises(FormatError, match="element 'vertex'.*truncated"):
        read_points(store(tmp_path / "a.ply", data[: data.index(b"end_header") + 20]))


def test_ply_face_out_of_range(tmp_path: Path) -> None:
    text = make_ply("ascii", "float").replace(b"4 0 1 2 3", b"4 0 1 2 9")
    with pytest.raises(FormatError, match="name vertices 0 to 9, but there are only 4"):
        read_points(store(tmp_path / "a.ply", text))


def test_ply_negative_list_length(tmp_path: Path) -> None:
    head = b"ply\nformat binary_little_endian 1.0\nelement face 2\nproperty list char int vertex_indices\nend_header\n"
    with pytest.raises(FormatError, match="length -1"):
        read_points(store(tmp_path / "a.ply", head + b"\xff" * 20))


# --- text ------------------------------------------------------------------------------------------------------------


def table(separator: str, *columns: np.ndarray, decimal: str = ".") -> str:
    rows = np.hstack(columns).tolist()
    return "\n".join(separator.join(f"{value:.9g}".replace(".", decimal) for value in row) for row in rows) + "\n"


@pytest.mark.parametrize("ending", ["xyz", "txt", "asc", "csv", "pts"])
@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", ";"])
def test_text_separators(tmp_path: Path, ending: str, separator: str) -> None:
    cloud = read_points(store(tmp_path / f"a.{ending}", "# a comment\n\n" + table(separator, POINTS, NORMALS)))
    np.testing.assert_array_equal(cloud.points, POINTS)
    np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-7)


def test_text_decimal_commas_and_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeff" + table(";", POINTS, decimal=",")
    np.testing.assert_array_equal(read_points(store(tmp_path / "a.csv", text)).points, POINTS)


def test_text_header_names_the_columns(tmp_path: Path) -> None:
    text = "id,R,G,B,Z,Y,X\n" + table(",", np.ones((4, 1)), COLORS, POINTS[:, ::-1])
    cloud = read_points(store(tmp_path / "a.csv", text))
    np.testing.assert_array_equal(cloud.points, POINTS)
    np.testing.assert_array_equal(cloud.colors, COLORS)
    cloud = read_points(store(tmp_path / "b.txt", "//X Y Z Nx Ny Nz\n4\n" + table(" ", POINTS, NORMALS)))
    np.testing.assert_array_equal(cloud.points, POINTS)
    assert cloud.normals is not None


def test_text_words_in_later_columns_do_not_matter(tmp_path: Path) -> None:
    cloud = read_points(store(tmp_path / "a.txt", "1 2 3 wall\n4 5 6 roof\n"))
    np.testing.assert_array_equal(cloud.points, [[1, 2, 3], [4, 5, 6]])
    with pytest.raises(FormatError, match="column 2 holds something that is not a number"):
        read_points(store(tmp_path / "b.txt", "1 2 3\n4 five 6\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# only a comment\n", "no points"),
        ("1 2 3\n4 5\n", "row 2 has 2 columns"),
        ("1 2\n3 4\n", "at least 3 columns"),
        ("PK\x03\x04\x00\x00\x00", "binary file"),
    ],
)
def test_text_errors(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_points(store(tmp_path / "a.xyz", text))


def test_colors_and_normals_are_told_apart(tmp_path: Path) -> None:
    cloud = read_points(store(tmp_path / "a.txt", table(" ", POINTS, COLORS, NORMALS)))
    np.testing.assert_array_equal(cloud.colors, COLORS)
    np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-7)
    cloud = read_points(store(tmp_path / "b.pts", "4\n" + table(" ", POINTS, np.full((4, 1), -1200), COLORS)))
    np.testing.assert_array_equal(cloud.colors, COLORS)


def test_pts_truncated(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="announces 5 points but holds 4"):
        read_points(store(tmp_path / "a.pts", "5\n" + table(" ", POINTS)))


def test_pwn_both_layouts(tmp_path: Path) -> None:
    for name, text in (
        ("a.pwn", "4\n" + table(" ", POINTS) + table(" ", NORMALS)),
        ("b.pwn", table(" ", POINTS, NORMALS)),
    ):
        cloud = read_points(store(tmp_path / name, text))
        np.testing.assert_array_equal(cloud.points, POINTS)
        np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-7)
    with pytest.raises(FormatError, match="announces 4 points, so 24 numbers"):
        read_points(store(tmp_path / "c.pwn", "4\n" + table(" ", POINTS) + "1 0 0\n"))


# --- PCD -------------------------------------------------------------------------------------------------------------


def lzf_compress(data: bytes) -> bytes:
    """Greedy LZF, for the test only: literals, short, long and overlapping references."""
    out, literal, seen, i = bytearray(), bytearray(), {}, 0

    def flush() -> None:
        for start in range(0, len(literal), 32):
            run = literal[start : start + 32]
            out.append(len(run) - 1)
            out.extend(run)
        literal.clear()

    while i < len(data):
        at = seen.get(data[i : i + 3], -1)
        seen[data[i : i + 3]] = i
        if at < 0 or i - at > 8192 or i + 3 > len(data):
            literal.append(data[i])
            i += 1
            continue
        length = 3
        while i + length < len(data) and length < 264 and data[at + length] == data[i + length]:
            length += 1
        flush()
        back = i - at - 1
        if length - 2 < 7:
            out.append((length - 2) << 5 | back >> 8)
        else:
            out.extend((7 << 5 | back >> 8, length - 9))
        out.append(back & 255)
        i += length
    flush()
    return bytes(out)


def make_pcd(kind: str, points: np.ndarray, normals: np.ndarray, colors: np.ndarray) -> bytes:
    word = (colors.astype(np.uint32) << np.array([16, 8, 0], dtype=np.uint32)).sum(axis=1).astype("<u4")
    header = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z normal_x normal_y normal_z rgb _\nSIZE 8 8 8 4 4 4 4 1\n"
        f"TYPE F F F F F F {'U' if kind == 'ascii' else 'F'} U\nCOUNT 1 1 1 1 1 1 1 3\nWIDTH {len(points)}\nHEIGHT 1\n"
        f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA {kind}\n"
    ).encode()
    if kind == "ascii":
        return header + table(" ", points, normals, word[:, None], np.zeros((len(points), 3))).encode().replace(
            b"nan", b"NaN"
        )
    if kind == "binary":
        rows = np.zeros(len(points), dtype=[("p", "<f8", 3), ("n", "<f4", 3), ("c", "<u4"), ("pad", "u1", 3)])
        rows["p"], rows["n"], rows["c"] = points, normals, word
        return header + rows.tobytes()
    columns = [points[:, i].astype("<f8").tobytes() for i in range(3)]
    columns += [normals[:, i].astype("<f4").tobytes() for i in range(3)] + [word.tobytes(), bytes(3 * len(points))]
    plain = b"".join(columns)
    packed = lzf_compress(plain)
    return header + struct.pack("<II", len(packed), len(plain)) + packed


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
def test_pcd(tmp_path: Path, kind: str) -> None:
    points = np.vstack([POINTS, [[np.nan, np.nan, np.nan]]])
    normals, colors = np.vstack([NORMALS, NORMALS[:1]]), np.vstack([COLORS, COLORS[:1]])
    data = make_pcd(kind, points, normals, colors)
    cloud = read_points(store(tmp_path / "a.pcd", data))
    np.testing.assert_array_equal(cloud.points, POINTS)
    np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-7)
    np.testing.assert_array_equal(cloud.colors, COLORS if kind != "ascii" else COLORS)
    assert cloud.notes and "1 of 5 points" in cloud.notes[0]
    with pytest.raises(FormatError, match="truncated"):
        read_points(store(tmp_path / "b.pcd", data[:-9]))


def test_lzf_overlapping_and_damaged() -> None:
    plain = b"abc" * 300 + bytes(range(256)) + b"\0" * 5000
    assert lzf_decompress(lzf_compress(plain), len(plain)) == plain
    with pytest.raises(FormatError, match="damaged"):
        lzf_decompress(bytes([0x20, 0x05]), 3)  # refers to before the beginning


# --- LAS -------------------------------------------------------------------------------------------------------------

LAS_LENGTHS = (20, 28, 26, 34, 57, 63, 30, 36, 38, 59, 67)
LAS_COLORS = {2: 20, 3: 28, 5: 28, 7: 30, 8: 30, 10: 30}


def make_las(form: int, version: tuple[int, int], *, extra_bytes: int = 2) -> bytes:
    scale, offset = np.array([0.001, 0.001, 0.01]), UTM
    length, size = LAS_LENGTHS[form] + extra_bytes, 375 if version == (1, 4) else 227
    header = bytearray(size)
    header[:4], header[24], header[25] = b"LASF", *version
    legacy = 0 if form >= 6 else len(POINTS)
    struct.pack_into("<HIIBHI", header, 94, size, size, 0, form, length, legacy)
    struct.pack_into("<6d", header, 131, *scale, *offset)
    if version == (1, 4):
        struct.pack_into("<Q", header, 247, len(POINTS))
    records = np.zeros((len(POINTS), length), dtype=np.uint8)
    records[:, :12] = np.rint(POINTS / scale).astype("<i4").view(np.uint8).reshape(-1, 12)
    if form in LAS_COLORS:
        at = LAS_COLORS[form]
        records[:, at : at + 6] = (COLORS.astype("<u2") * 256).view(np.uint8).reshape(-1, 6)
    return bytes(header) + records.tobytes()


@pytest.mark.parametrize(("form", "version"), [*((f, (1, 2)) for f in range(4)), *((f, (1, 4)) for f in range(11))])
def test_las_every_point_format(tmp_path: Path, form: int, version: tuple[int, int]) -> None:
    data = make_las(form, version)
    cloud = read_points(store(tmp_path / "a.las", data))
    np.testing.assert_allclose(cloud.points, POINTS + UTM, rtol=0, atol=0.006)
    np.testing.assert_allclose(cloud.points[:, :2], (POINTS + UTM)[:, :2], rtol=0, atol=1e-9)
    assert (cloud.colors is None) == (form not in LAS_COLORS)
    if cloud.colors is not None:
        np.testing.assert_array_equal(cloud.colors, COLORS)
    with pytest.raises(FormatError, match="announces 4 points but holds 3"):
        read_points(store(tmp_path / "b.las", data[:-1]))


def test_las_unknown_point_format(tmp_path: Path) -> None:
    data = bytearray(make_las(3, (1, 2)))
    data[104] = 11
    with pytest.raises(FormatError, match="point format 11"):
        read_points(store(tmp_path / "a.las", bytes(data)))


def test_laz_without_laspy_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(make_las(3, (1, 2)))
    data[104] |= 0x80
    monkeypatch.setitem(sys.modules, "laspy", None)
    with pytest.raises(ImportError, match=r"occkernels\[las\]"):
        read_points(store(tmp_path / "a.laz", bytes(data)))


def test_laz_round_trip(tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy", reason="laspy is not installed")
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales, header.offsets = [0.001] * 3, UTM
    cloud = laspy.LasData(header)
    cloud.xyz = POINTS + UTM
    cloud.write(str(tmp_path / "a.laz"))
    np.testing.assert_allclose(read_points(tmp_path / "a.laz").points, POINTS + UTM, rtol=0, atol=1e-9)


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f8", "i4"])
def test_npy(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", (POINTS * 8).astype(dtype)[None])
    np.testing.assert_array_equal(read_points(tmp_path / "a.npy").points, POINTS * 8)
    np.save(tmp_path / "b.npy", np.hstack([POINTS, NORMALS]))
    np.testing.assert_array_equal(read_points(tmp_path / "b.npy").normals, NORMALS)


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", points=POINTS, normals=NORMALS, loc=np.zeros(3), scale=1.0, faces=FACES)
    shape = read_mesh(tmp_path / "a.npz")
    np.testing.assert_array_equal(shape.points, POINTS)
    np.testing.assert_array_equal(shape.normals, NORMALS)
    np.savez(tmp_path / "b.npz", whatever=POINTS)
    np.testing.assert_array_equal(read_points(tmp_path / "b.npz").points, POINTS)
    np.savez(tmp_path / "c.npz", one=POINTS, two=POINTS)
    with pytest.raises(FormatError, match="it has one, two"):
        read_points(tmp_path / "c.npz")


def test_arrays_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", points=np.array([{"x": 1}], dtype=object), allow_pickle=True)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(FormatError, match="unpickling, which is refused"):
            read_points(tmp_path / name)


# --- meshes ----------------------------------------------------------------------------------------------------------


def test_obj_details(tmp_path: Path) -> None:
    text = (
        "# cube corner\nmtllib a.mtl\nv 0 0 0 1 0 0\nv 1.5 0 0 0 1 0\nvt 0 0\nv 0 2.25 0 0 0 1\nvn 0 0 1\n"
        "f 1/1/1 2//1 3\nv 0 0 3.125 1 1 1\nf -4 -3 \\\n-2 -1 # a quad\n"
    )
    shape = read_mesh(store(tmp_path / "a.obj", text))
    np.testing.assert_array_equal(shape.points, POINTS)
    np.testing.assert_array_equal(shape.faces, [[0, 1, 2], [0, 1, 2], [0, 2, 3]])
    np.testing.assert_array_equal(shape.colors, [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]])


@pytest.mark.parametrize("head", ["OFF\n4 2 0\n", "OFF 4 2 0\n", "OFF4 2 0\n", "# c\nOFF # d\n\n4 2 0\n"])
def test_off_details(tmp_path: Path, head: str) -> None:
    shape = read_mesh(store(tmp_path / "a.off", head + table(" ", POINTS) + "3 0 2 1 255 0 0\n4 0 1 2 3\n"))
    np.testing.assert_array_equal(shape.points, POINTS)
    np.testing.assert_array_equal(shape.faces, [[0, 2, 1], [0, 1, 2], [0, 2, 3]])


def test_off_truncated(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="4 vertices and 2 faces but holds 5 lines"):
        read_mesh(store(tmp_path / "a.off", "OFF\n4 2 0\n" + table(" ", POINTS) + "3 0 2 1\n"))


def test_stl_ascii(tmp_path: Path) -> None:
    facets = [
        "facet normal 0 0 0\nouter loop\n"
        + "".join("vertex {:g} {:g} {:g}\n".format(*POINTS[i]) for i in face)
        + "endloop\nendfacet\n"
        for face in FACES
    ]
    shape = read_mesh(store(tmp_path / "a.stl", "solid a\n" + "".join(facets) + "endsolid a\n"))
    assert len(shape.points) == 4
    same_surface(shape, Geometry(POINTS, faces=FACES), 0)


def test_stl_binary_that_begins_with_solid(tmp_path: Path) -> None:
    write_mesh(tmp_path / "a.stl", Geometry(POINTS, faces=FACES))
    data = bytearray((tmp_path / "a.stl").read_bytes())
    data[:5] = b"solid"
    same_surface(read_mesh(store(tmp_path / "b.stl", bytes(data))), Geometry(POINTS, faces=FACES), 0)
    with pytest.raises(FormatError, match="no complete faces"):
        read_mesh(store(tmp_path / "c.stl", bytes(data[:-1])))


def test_glb_scene_transforms(tmp_path: Path) -> None:
    write_mesh(tmp_path / "a.glb", Geometry(POINTS, faces=FACES))
    data = (tmp_path / "a.glb").read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + size])
    # A mirrored, scaled and moved parent, and a child turned by 90 degrees about z.
    document["nodes"] = [
        {"children": [1], "scale": [-2, 2, 2], "translation": [*UTM]},
        {"mesh": 0, "rotation": [0, 0, 2**-0.5, 2**-0.5]},
    ]
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + size :]
    edited = struct.pack("<IIIII", 0x46546C67, 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest
    shape = read_mesh(store(tmp_path / "b.glb", edited))
    turned = POINTS[:, [1, 0, 2]] * [-1, 1, 1]
    np.testing.assert_allclose(shape.points, turned * [-2, 2, 2] + UTM, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(shape.faces, FACES[:, ::-1])
    with pytest.raises(FormatError, match="truncated"):
        read_mesh(store(tmp_path / "c.glb", edited[:-3]))


@pytest.mark.parametrize("ending", sorted(WRITERS))
@pytest.mark.parametrize("with_normals", [False, True])
def test_round_trip(tmp_path: Path, ending: str, with_normals: bool) -> None:
    shape = Geometry(POINTS, NORMALS if with_normals else None, None, (), FACES)
    path = tmp_path / f"a{ending}"
    write_mesh(path, shape)
    back = read_mesh(path)
    same_surface(back, shape, 0)
    if ending != ".stl":
        np.testing.assert_array_equal(back.faces, FACES)
        assert (back.normals is None) == (not with_normals)
        if with_normals:
            np.testing.assert_allclose(back.normals, NORMALS, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", [".ply", ".obj", ".off", ".glb"])
def test_large_offsets_keep_millimetres(tmp_path: Path, ending: str) -> None:
    shape = Geometry(POINTS * 0.1 + UTM, faces=FACES)
    assert needs_doubles(shape.points) and not needs_doubles(POINTS)
    if ending == ".glb":
        with pytest.warns(UserWarning, match="node's translation"):
            write_mesh(tmp_path / "a.glb", shape)
    else:
        write_mesh(tmp_path / f"a{ending}", shape)
    same_surface(read_mesh(tmp_path / f"a{ending}"), shape, 1e-7)


def test_stl_warns_about_large_offsets(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"0\.25 apart"):
        write_mesh(tmp_path / "a.stl", Geometry(POINTS + UTM, faces=FACES))


@pytest.mark.parametrize("ending", sorted(WRITERS))
def test_other_software_reads_what_is_written(tmp_path: Path, ending: str) -> None:
    trimesh = pytest.importorskip("trimesh")
    write_mesh(tmp_path / f"a{ending}", Geometry(POINTS, faces=FACES))
    mesh = trimesh.load(tmp_path / f"a{ending}", force="mesh")
    assert mesh.is_watertight and len(mesh.faces) == 4
    assert mesh.volume == pytest.approx(1.5 * 2.25 * 3.125 / 6)


@pytest.mark.parametrize("ending", [".ply", ".glb", ".obj"])
def test_clouds_can_be_written(tmp_path: Path, ending: str) -> None:
    write_mesh(tmp_path / f"a{ending}", PointCloud(POINTS, NORMALS))
    np.testing.assert_array_equal(read_points(tmp_path / f"a{ending}").points, POINTS)
    with pytest.raises(FormatError, match="no faces"):
        read_mesh(tmp_path / f"a{ending}")


# --- everything ------------------------------------------------------------------------------------------------------


def test_sample_surface_is_uniform_and_repeatable(tmp_path: Path) -> None:
    write_mesh(tmp_path / "a.ply", Geometry(POINTS, faces=FACES))
    cloud = read_points(tmp_path / "a.ply", sample=20_000, seed=3)
    np.testing.assert_array_equal(cloud.points, read_points(tmp_path / "a.ply", sample=20_000, seed=3).points)
    assert not np.array_equal(cloud.points, read_points(tmp_path / "a.ply", sample=20_000, seed=4).points)
    on_floor = np.abs(cloud.points[:, 2]) < 1e-12
    corners = POINTS[FACES]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    assert on_floor.mean() == pytest.approx(areas[0] / areas.sum(), abs=0.015)
    np.testing.assert_allclose(cloud.points[on_floor].mean(axis=0), [0.5, 0.75, 0.0], atol=0.03)
    np.testing.assert_allclose(cloud.normals[on_floor], [[0, 0, -1]] * int(on_floor.sum()), atol=1e-6)
    with pytest.raises(ValueError, match="no faces"):
        sample_surface(Geometry(POINTS), 10)


@pytest.mark.parametrize("ending", sorted(READERS))
@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 3, b"hello world, this is not geometry\n" * 9]
)
def test_foreign_content_is_a_format_error(tmp_path: Path, ending: str, content: bytes) -> None:
    path = store(tmp_path / f"a{ending}", content)
    with pytest.raises(FormatError, match=str(path.name)):
        read_points(path)


@pytest.mark.parametrize("ending", sorted(WRITERS))
def test_damaged_files_never_raise_anything_else(tmp_path: Path, ending: str) -> None:
    write_mesh(tmp_path / f"a{ending}", Geometry(POINTS, NORMALS, None, (), FACES))
    data = (tmp_path / f"a{ending}").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(80):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            damaged[at] = rng.integers(0, 256)
        path = store(tmp_path / f"b{ending}", bytes(damaged[: len(data) - (trial % 3) * 7]))
        try:
            assert len(read_geometry(path).points)
        except FormatError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 5


def test_missing_empty_folder_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_points(tmp_path / "none.ply")
    with pytest.raises(FormatError, match=r"is empty \(0 bytes\)"):
        read_points(store(tmp_path / "a.ply", b""))
    (tmp_path / "b.ply").mkdir()
    with pytest.raises(FormatError, match="is a folder"):
        read_points(tmp_path / "b.ply")
    with pytest.raises(FormatError, match=r"ending '\.docx'; occnets reads .*\.xyz"):
        read_points(tmp_path / "a.docx")
    with pytest.raises(FormatError, match=r"no ending; occnets writes .*\.stl"):
        write_mesh(tmp_path / "a", Geometry(POINTS, faces=FACES))


def test_atomic_write_leaves_the_old_file_on_failure(tmp_path: Path) -> None:
    path = store(tmp_path / "a.bin", b"old")
    with pytest.raises(RuntimeError, match="half-way"), atomic_write(path) as stream:
        stream.write(b"new")
        raise RuntimeError("half-way")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    with atomic_write(path) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_check_writable(tmp_path: Path) -> None:
    assert check_writable(tmp_path / "a.ply") == tmp_path / "a.ply"
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="folder .*missing does not exist"):
        check_writable(tmp_path / "missing" / "a.ply")
    (tmp_path / "b.ply").mkdir()
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path / "b.ply")
    with pytest.raises(FormatError, match=r"occnets writes \.png"):
        check_writable(tmp_path / "a.jpg", (".png",))


SCANS = Path(os.environ.get("OCC_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data" / "scans"


@pytest.mark.parametrize(
    ("name", "count", "normals"),
    [
        ("b9_building_scan.ply", 22_300, False),
        ("hippo1.ply", 6_104, True),
        ("kitten.xyz", 5_210, True),
        ("oni.pwn", 1_435, True),
        ("poste_france.xyz", 9_031, False),
        ("urban.las", 13_511, False),
    ],
)
def test_real_scans(name: str, count: int, normals: bool) -> None:
    if not (SCANS / name).is_file():
        pytest.skip("the shared scans are not here (set OCC_SHARED)")
    cloud = read_points(SCANS / name)
    assert len(cloud) == count and np.isfinite(cloud.points).all()
    assert (cloud.normals is not None) == normals
    if name == "urban.las":
        np.testing.assert_allclose(cloud.points.mean(axis=0), [548_924, 4_177_007, 191], atol=1)
        np.testing.assert_allclose(cloud.points, np.round(cloud.points, 3), rtol=0, atol=1e-6)
