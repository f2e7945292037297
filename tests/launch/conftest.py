"""Commands that stand in for those of an engine: each notes how it was called."""

import json
import os
import subprocess
import sys

import pytest

from tinker.launch.jobs import Job, checked

NOTE = """\
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    said = {"name": os.path.basename(sys.argv[0]), "argv": sys.argv[1:], "env": dict(os.environ)}
    file.write(json.dumps(said) + "\\n")
"""

AWKWARD = """it's "quoted" & 100% $HOME #1 {0} `id` \\ *"""


class Tools:
    """A folder of commands for PATH, and what they were called with."""

    def __init__(self, folder):
        self.folder, self.calls = folder / "bin", folder / "calls.jsonl"
        self.folder.mkdir()
        home = folder / "home"
        home.mkdir()
        path = f"{self.folder}:/usr/local/bin:/usr/bin:/bin"
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        self.env = {**keep, "PATH": path, "CALLS": str(self.calls), "HOME": str(home)}

    def add(self, name, body=""):
        """Adds a command: it notes its call, then runs ``body``, a program in Python."""
        path = self.folder / name
        path.write_text(f"#!{sys.executable}\n{NOTE}{body}")
        path.chmod(0o755)

    def called(self, name):
        """The calls of a command, each a dict with argv and env."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [call for call in map(json.loads, lines) if call["name"] == name]

    def bash(self, script, *argv, **env):
        return subprocess.run(
            ["bash", "-c", script, "-", *argv],
            env={**self.env, **{k: str(v) for k, v in env.items()}},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def tools(tmp_path):
    return Tools(tmp_path)


@pytest.fixture
def awkward():
    """A name that every shell would rather misread."""
    return AWKWARD


def make(workdir="/shared/runs/vit", points=0, **settings):
    """A job with these settings."""
    return Job("vit", str(workdir), checked(settings), points)
