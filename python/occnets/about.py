# SPDX-License-Identifier: MIT
"""What is installed: the models by name, versions, devices, formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_NOTES = {
    "released": "weights of the original authors, downloaded when used",
    "by hand": "weights of the original authors, to be downloaded by hand",
    "none": "architecture only, to train or to load weights into",
}


def print_models(*, as_json: bool) -> int:
    """``occnets models``: every name with its parameters, and the first line of the card of the pre-trained ones."""
    from occnets.checkpoints import WEIGHTS_FOLDER
    from occnets.zoo import list_models, model_info

    rows: list[dict[str, Any]] = []
    for name in list_models():
        info = model_info(name)
        release = info.release
        rows.append(
            {
                "name": name,
                "family": info.family,
                "input": info.input_type,
                "parameters": info.parameters,
                "weights": info.weights,
                "pretrained": info.pretrained,
                "released_as": None if release is None else release.file,
                "url": None if release is None else release.url or release.page,
                "downloaded": release is not None and release.cached is not None,
                "card": _card_line(WEIGHTS_FOLDER / name / "README.md") if info.pretrained else "",
                "missing": info.missing,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    width, family = (max(len(row[key]) for row in rows) for key in ("name", "family"))
    for row in rows:
        note = row["card"] if row["pretrained"] else _NOTES[row["weights"]]
        note = "weights of the original authors, downloaded" if row["downloaded"] else note
        note = f"needs {row['missing'].split()[0]}: {row['missing'].rpartition(': ')[2]}" if row["missing"] else note
        count = "?" if row["parameters"] is None else f"{row['parameters']:,}"
        start = f"{row['name']:<{width}}  {row['family']:<{family}}  {row['input']:<18} {count:>12} parameters  "
        print(f"{start}{row['weights']:<8}  {note}".rstrip())
    return 0


def _card_line(path: Path) -> str:
    """First line of a model card's text."""
    if not path.is_file():
        return ""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return next((line for line in lines if line and line[0] not in "#-|<`["), "")


def print_info(*, as_json: bool) -> int:
    """``occnets info``: versions, devices, formats."""
    import torch

    import occkernels
    from occnets.checkpoints import pretrained_names
    from occnets.io import READERS, WRITERS
    from occnets.report import versions

    facts: dict[str, Any] = {
        **versions(),
        "threads": torch.get_num_threads(),
        "cuda devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda operators": occkernels.has_cuda(),
        "bundled models": pretrained_names(),
        "reads": sorted(READERS),
        "writes": sorted(WRITERS),
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return 0
    for name, value in facts.items():
        shown = ", ".join(value) or "none" if isinstance(value, list) else "yes" if value is True else value
        print(f"{name:<15} {'no' if shown is False else shown}")
    return 0
