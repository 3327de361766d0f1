# SPDX-License-Identifier: MIT
"""What a reconstruction tells: one record for JSON, lines for the terminal, a page with the picture for people."""

from __future__ import annotations

import base64
import html
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from occnets.io import atomic_write

REPORT_ENDINGS = (".json", ".html", ".htm")

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1300px;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "img{max-width:100%;border:1px solid #ddd}table{border-collapse:collapse;margin:.5em 0 1.5em}"
    "td{padding:.15em 1.2em .15em 0;border-bottom:1px solid #eee;vertical-align:top}td:first-child{color:#666}"
    "h2{font-size:1.05em;margin:1.2em 0 .2em}.note{background:#fff6dd;padding:.4em .8em;margin:.4em 0}"
)


def versions() -> dict[str, str]:
    """Versions of everything that shapes a result."""
    import numpy
    import scipy
    import torch
    import trimesh

    import occkernels
    import occnets

    return {
        "occnets": str(occnets.__version__),
        "occkernels": occkernels.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "trimesh": trimesh.__version__,
        "platform": platform.platform(),
    }


def summary(record: Mapping[str, Any]) -> list[str]:
    """The lines of a record that a person wants to see."""
    given, mesh, timings = record["statistics"]["input"], record["statistics"]["mesh"], record["timings"]
    model = record["model"]
    return [
        f"input   {_input(given)}",
        f"model   {model['name']}, {model['parameters']:,} parameters, on {model['device']}",
        "time    " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in timings.items()) + " s",
        f"mesh    {mesh['vertices']:,} vertices, {mesh['faces']:,} faces, "
        f"{_closed(mesh)}, {mesh['components']} "
        f"component{'s' * (mesh['components'] != 1)}"
        + (f" ({mesh['removed_components']} removed)" if mesh["removed_components"] else ""),
        *_changes(mesh),
        f"        volume {mesh['volume']:.6g}, area {mesh['area']:.6g}, size {_triple(mesh['size'])}",
        f"        bounds {_bounds(*mesh['bounds'])}",
    ]


def _closed(mesh: Mapping[str, Any]) -> str:
    return "watertight" if mesh["watertight"] else "open as asked" if "trimmed_from" in mesh else "NOT watertight"


def _input(given: Mapping[str, Any]) -> str:
    """What was given, in a line."""
    if "picture" in given:
        width, height = given["picture"]
        return f"picture of {width} x {height} pixels" + (" with its camera's pose" if given["pose"] else "")
    if "voxels" in given:
        return f"{_triple(given['voxels'])} voxels, {given['occupied']:,} occupied, side {given['scale']:.5g}"
    removed = [
        f"{given[key]} {word}"
        for key, word in (("duplicates_removed", "duplicate"), ("outliers_removed", "outlying"))
        if given[key]
    ]
    return (
        f"{given['points']:,} points, {given['points_used']:,} used"
        + (f" (removed: {', '.join(removed)})" if removed else "")
        + f", size {_triple([b - a for a, b in zip(*given['bounds'], strict=True)])}"
    )


def _changes(mesh: Mapping[str, Any]) -> list[str]:
    """What refinement and simplification did, if they were asked for."""
    found = []
    if refined := mesh.get("refinement"):
        found.append(f"refined: loss {refined['before']:.3g} to {refined['after']:.3g}")
    if "trimmed_from" in mesh:
        found.append(f"trimmed from {mesh['trimmed_from']:,} faces")
    if "simplified_from" in mesh:
        found.append(f"simplified from {mesh['simplified_from']:,} faces")
    return [f"        {', '.join(found)}"] if found else []


def _triple(values: Any) -> str:
    return " x ".join(f"{value:.5g}" for value in values)


def _bounds(low: Any, high: Any) -> str:
    # Enough digits to tell the two ends apart, whatever the offset.
    extent = max(max(b - a for a, b in zip(low, high, strict=True)), 1e-300)
    decimals = max(0, 4 - len(f"{extent:.0f}")) if extent >= 1 else min(12, 3 - int(f"{extent:e}".split("e")[1]))
    ends = (" ".join(f"{value:.{decimals}f}" for value in end) for end in (low, high))
    return " to ".join(f"({end})" for end in ends)


def to_json(record: Mapping[str, Any]) -> str:
    """A record as strict JSON."""
    return json.dumps(record, indent=2, allow_nan=False)


def write_report(path: str | os.PathLike[str], record: Mapping[str, Any], picture: bytes) -> None:
    """Write a record as JSON, or as one HTML page that holds the picture, by the ending.

    Args:
        path: ends in .json, .html or .htm.
        record: nested mappings of plain values.
        picture: PNG bytes, used by HTML only.
    """
    text = to_json(record) + "\n" if Path(path).suffix.lower() == ".json" else _page(record, picture)
    with atomic_write(path) as stream:
        stream.write(text.encode("utf-8"))


def _page(record: Mapping[str, Any], picture: bytes) -> str:
    title = html.escape(f"Reconstruction of {os.path.basename(str(record['input']))}")
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in record["warnings"])
    facts = {key: value for key, value in record.items() if key not in ("warnings", "statistics")}
    sections = {**record["statistics"], **{k: v for k, v in facts.items() if isinstance(v, Mapping)}}
    plain = {key: value for key, value in facts.items() if not isinstance(value, Mapping)}
    tables = _table(plain) + "".join(f"<h2>{html.escape(name)}</h2>{_table(rows)}" for name, rows in sections.items())
    source = base64.b64encode(picture).decode("ascii")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f'</head><body><h1>{title}</h1><img alt="point cloud and mesh" src="data:image/png;base64,{source}">'
        f"{notes}{tables}</body></html>\n"
    )


def _table(rows: Mapping[str, Any]) -> str:
    cells = (
        f"<tr><td>{html.escape(str(key).replace('_', ' '))}</td><td>{html.escape(_value(value))}</td></tr>"
        for key, value in rows.items()
    )
    return f"<table>{''.join(cells)}</table>"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(item) if not isinstance(item, (list, tuple)) else f"({_value(item)})" for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_value(item)}" for key, item in value.items())
    return "" if value is None else str(value)
