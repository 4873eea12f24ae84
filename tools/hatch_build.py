"""Build hook: a wheel, and an editable install, contain the compiled kernel side of tracking."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OBJECT = "src/freezeframe/tracking/bpf/tracker.bpf.o"


class BpfBuildHook(BuildHookInterface):
    """Runs tools/build-bpf; without it there is no wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, list[str]]) -> None:
        """Compile, and have the object packed though git ignores it."""
        del version
        # Not by its first line: a source tree may lie where nothing may be executed.
        subprocess.run(["sh", str(Path(self.root, "tools/build-bpf"))], check=True)
        build_data["artifacts"].append(f"/{OBJECT}")
