"""What each engine is told, word for word.

``python -m tests.launch.test_rendering`` writes the files anew; look at what changed.
"""

import shlex
from pathlib import Path

import pytest

from tests.launch.conftest import make
from tinker.launch import local, slurm, tpu_vm, xpk

GOLDEN = Path(__file__).parent / "golden"
FULL = {"env": {"XLA_FLAGS": "--xla_a=1 --xla_b=2"}, "setup": ("source 'my env/bin/activate'",)}
BUCKET = "gs://bucket/runs/vit"


def _slurm(job):
    return slurm.script(job, python="/venv/bin/python")


def _commands(commands):
    return "".join(f"{shlex.join(words)}\n" for words in commands)


CASES = {
    "slurm_cpu.sh": lambda: _slurm(make()),
    "slurm_gpus.sh": lambda: _slurm(
        make(
            "/shared/my runs/vit",
            nodes=4,
            processes=2,
            devices=4,
            time="12:00:00",
            partition="gpu",
            account="lab",
            restarts=5,
            flags=("--mem=0", "--comment=a long one"),
            **FULL,
        )
    ),
    "slurm_sweep.sh": lambda: _slurm(make(points=16, parallel=4)),
    "slurm_bucket.sh": lambda: _slurm(make(BUCKET)),
    "slurm_backslash.sh": lambda: _slurm(make("/shared/a\\b 50%")),
    "slurm_percent.sh": lambda: _slurm(make("/shared/50%")),
    "local_one.txt": lambda: _commands(local.commands(make(), 1234, python="python")),
    "local_four.txt": lambda: _commands(
        local.commands(make(processes=2, nodes=2, devices=2, **FULL), 1234, python="python")
    ),
    "local_gpus.txt": lambda: _commands(
        local.commands(make(processes=2, devices=2), 1234, "4,5,6,7", python="python")
    ),
    "tpu_vm.sh": lambda: tpu_vm.script(make(BUCKET, tpu="pod", **FULL)),
    "tpu_vm.txt": lambda: _commands(
        tpu_vm.plan(
            make(BUCKET, tpu="pod", zone="us-central2-b", project="lab", flags=("--internal-ip",))
        ).commands
    ),
    "tpu_vm_path.txt": lambda: _commands(
        tpu_vm.plan(make("/mnt/nfs/my runs/vit", tpu="pod")).commands
    ),
    "xpk.txt": lambda: _commands(
        xpk.workloads(
            make(
                BUCKET,
                nodes=2,
                tpu="v5litepod-256",
                cluster="c",
                project="lab",
                zone="us-central2-b",
                image="gcr.io/lab/tinker:1",
                flags=("--priority=high",),
                **FULL,
            )
        )
    ),
    "xpk_sweep.txt": lambda: _commands(
        xpk.workloads(make(BUCKET, points=2, tpu="v6e-8", cluster="c", image="i"))
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_rendered_is_the_golden_file(name):
    assert CASES[name]() == (GOLDEN / name).read_text()


def test_every_golden_file_is_rendered():
    assert {path.name for path in GOLDEN.iterdir()} == set(CASES)


if __name__ == "__main__":
    for name, render in CASES.items():
        (GOLDEN / name).write_text(render())
