# SPDX-License-Identifier: MIT
"""What commands say on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

_UNITS = {"refine": " steps", "optimize": " steps", "tiles": " tiles", "download": "B"}


class Talk:
    """Everything said on stderr."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Any = None
        self.stage = ""

    def say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr)

    def progress(self) -> Callable[[str, int, int], None] | None:
        """A progress callback, on a terminal only."""
        if self.quiet or not sys.stderr.isatty():
            return None
        from tqdm import tqdm

        def update(stage: str, done: int, total: int) -> None:
            name = stage.split(" (")[0]  # a remark in brackets may follow
            if self.bar is None or self.stage != name:
                self.close()
                unit = _UNITS.get(name, " points")
                self.bar, self.stage = tqdm(desc=stage, unit=unit, unit_scale=True, file=sys.stderr, leave=False), name
            self.bar.set_description_str(stage, refresh=False)
            self.bar.total = total
            self.bar.update(done - self.bar.n)

        return update

    def download(self) -> Callable[[int, int | None], None] | None:
        """A progress callback of a download: a line when it begins, and a bar on a terminal."""
        if self.quiet:
            return None
        update, begun = self.progress(), []

        def report(done: int, total: int | None) -> None:
            if not begun:
                begun.append(True)
                self.say("downloading" if total is None else f"downloading {total / 2**20:.1f} MiB")
            if update is not None:
                update("download", done, total)  # type: ignore[arg-type]  # tqdm takes None too

        return report

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
