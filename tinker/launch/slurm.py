"""Slurm: a batch script with srun, that goes back into the queue when it is asked to stop."""

import shlex
import sys

from tinker.launch.jobs import Plan, exports, run_all
from tinker.train.workdir import is_remote

WARNING = 120  # seconds before the time limit at which a run is asked to save


def plan(job):
    """What sbatch is given."""
    files = {"slurm.sh": script(job)}
    return Plan([["sbatch"]], files, "slurm.sh", checks=(["sbatch", "--test-only"],))


def run(job, plan):
    """Submits the job; its status is that of the submission."""
    return run_all(plan.commands, plan)


def script(job, python=sys.executable):
    """The batch script of a job; the points of a sweep are the tasks of an array.

    A run that was asked to stop (before its time limit, or as it is preempted) has saved, exits
    with 143 and goes back into the queue. So does one whose process was killed, ``restarts`` times.
    One that failed by itself does not, nor one that was cancelled.
    """
    at = job.settings
    at_a_time = f"%{at['parallel']}" if at["parallel"] else ""
    options = {
        "job-name": job.name,
        "nodes": at["nodes"],
        "ntasks-per-node": at["processes"],
        "gpus-per-node": at["devices"] and at["processes"] * at["devices"],
        "array": job.points and f"0-{job.points - 1}{at_a_time}",
        "time": at["time"],
        "partition": at["partition"],
        "account": at["account"],
        "output": _log(job),
        "open-mode": "append",
        "signal": f"TERM@{WARNING}",
    }
    flags = [f"--{key}={value}" for key, value in options.items() if value]
    flags += ["--requeue", *at["flags"]]
    before = exports(at)
    command = shlex.join([python, "-m", "tinker.cli", *job.words])
    command += " --sweep_index=$SLURM_ARRAY_TASK_ID" if job.points else ""
    return SCRIPT.format(
        options="\n".join(f"#SBATCH {shlex.quote(flag)}" for flag in flags),
        setup="\n".join(["set -e", *before, "set +e", ""]) if before else "",
        task="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if job.points else "$SLURM_JOB_ID",
        devices=DEVICES.format(at["devices"]) if at["devices"] else "",
        command=command,
        restarts=at["restarts"],
    )


def _log(job):
    """Where the output of a job goes, in the notation of sbatch; None for its default."""
    if is_remote(job.workdir) or "\\" in job.workdir:  # with a backslash sbatch replaces no %j
        return None
    return f"{job.workdir.replace('%', '%%')}/logs/slurm-{'%A_%a' if job.points else '%j'}.log"


# Left to itself, JAX gives each process under Slurm one GPU, the one of its number on the node.
DEVICES = """bash -c '
    first=$((SLURM_LOCALID * {0}))
    export JAX_LOCAL_DEVICE_IDS=$(seq -s , $first $((first + {0} - 1)))
    exec "$@"' - \\
    """

SCRIPT = """\
#!/bin/bash
{options}

{setup}if [ -n "$SLURM_CPUS_PER_TASK" ]; then  # srun does not take it from sbatch
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi
trap : TERM  # it is for the run, which saves; this script waits for it
srun --kill-on-bad-exit=0 --wait=300 {devices}{command}
code=$?

# 143: it was asked to stop, and has saved. 130: by hand. Larger ones: a process was killed.
restarts=${{SLURM_RESTART_COUNT:-0}}
if [ $code -eq 143 ] || {{ [ $code -gt 130 ] && [ $restarts -lt {restarts} ]; }}; then
    state=$(squeue --noheader --states=all --format=%T --jobs={task})
    if [ "$state" = RUNNING ]; then  # not CANCELLED
        echo "exit code $code: going back into the queue"
        scontrol requeue {task}
    fi
fi
exit $code
"""
