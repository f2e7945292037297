"""What every test runs under, and the minutes each room's tests took.

Tests see one CPU device: eight virtual ones would turn every default mesh into eight-way data
parallelism and slow the arithmetic by a tenth. Sharding tests take them in a process of their own:
``python(code, devices=8)``.
"""

import collections
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CACHE = "TINKER_CACHE"
OWN_CACHE = pytest.StashKey[str]()

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_configure(config):
    # Workers of pytest-xdist inherit the cache of the process that started them.
    if CACHE not in os.environ:
        config.stash[OWN_CACHE] = os.environ[CACHE] = tempfile.mkdtemp(prefix="tinker-cache-")


def pytest_unconfigure(config):
    if OWN_CACHE in config.stash:
        shutil.rmtree(config.stash[OWN_CACHE], ignore_errors=True)
        del os.environ[CACHE]


@pytest.fixture
def python(tmp_path):
    """``python(code, *argv, devices=1, cwd=tmp_path, check=True, **env)`` in a process of its own.

    Returns the CompletedProcess, with its output as text.
    """

    def run(code, *argv, devices=1, cwd=tmp_path, check=True, timeout=300, **env):
        if devices > 1:
            flags = f"--xla_force_host_platform_device_count={devices}"
            env = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(), **env}
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, argv)],
            cwd=cwd,
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            pytest.fail(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
        return done

    return run


def pytest_terminal_summary(terminalreporter):
    """Prints the minutes that each room's tests took, summed over the workers."""
    seconds, counts = collections.Counter(), collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) and hasattr(report, "nodeid"):
                folder = Path(report.nodeid.partition("::")[0]).parts[1:-1]
                room = folder[0] if folder else "the house"
                seconds[room] += getattr(report, "duration", 0.0)
                counts[room] += report.when == "call"
    if len(seconds) > 1:
        terminalreporter.section("minutes per room")
        for room, spent in seconds.most_common():
            terminalreporter.line(f"{spent / 60:6.2f}  {room} ({counts[room]} tests)")
