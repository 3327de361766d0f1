# SPDX-License-Identifier: MIT
"""What is installed: the models by name, versions, devices, formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def print_models(*, as_json: bool) -> int:
    """``occnets models``: every name with its parameters, and the first line of the card of the pre-trained ones."""
    from occnets.checkpoints import WEIGHTS_FOLDER
    from occnets.zoo import list_models, model_info

    rows = []
    for name in list_models():
        info = model_info(name)
        card = _card_line(WEIGHTS_FOLDER / name / "README.md") if info.pretrained else ""
        rows.append(
            {
                "name": name,
                "pretrained": info.pretrained,
                "parameters": info.parameters,
                "input": info.input_type,
                "card": card,
                "missing": info.missing,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        note = row["card"] if row["pretrained"] else "architecture only, to train or to load weights into"
        count = "?" if row["parameters"] is None else f"{row['parameters']:,}"
        print(f"{row['name']:<{width}}  {count:>12} parameters  {row['input']:<18} {row['missing'] or note}".rstrip())
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
