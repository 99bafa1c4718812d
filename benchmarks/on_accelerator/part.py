"""One part of benchmarks/accelerator.py: its flags, its clock, and a file that holds what was measured so far."""

import argparse
import json
import time
from pathlib import Path
from typing import Any


class Part:
    """What a part has measured, written to OUT/NAME.json after each row, so that a stopped part keeps its rows."""

    def __init__(self, name: str):
        parser = argparse.ArgumentParser()
        parser.add_argument("--seconds", type=float, default=120.0)
        for folder in ("out", "scratch", "data"):
            parser.add_argument(f"--{folder}", type=Path, default=Path())
        parser.add_argument("--tiny", action="store_true")
        given = parser.parse_args()
        self.deadline = time.perf_counter() + given.seconds
        self.out, self.scratch, self.data, self.tiny = given.out, given.scratch, given.data, given.tiny
        self.path = self.out / f"{name}.json"
        from experiment.common.provenance import provenance

        self.found: dict[str, Any] = {**provenance(), "rows": {}, "values": {}}
        self.write()

    def left(self) -> float:
        """Seconds until the part must have ended."""
        return self.deadline - time.perf_counter()

    def keep(self, what: str, told: str, **values: Any) -> None:
        """Keep a row: its name, its line for a reader, and its numbers."""
        self.found["rows"][what] = told
        self.found["values"][what] = values
        self.write()
        print(f"{what}: {told}", flush=True)

    def write(self) -> None:
        self.path.write_text(json.dumps(self.found, indent=2) + "\n")
