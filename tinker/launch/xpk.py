"""xpk: workloads (JobSets) on a GKE cluster, a slice of a TPU each or several together."""

import re
import shlex

from tinker.launch.jobs import Plan, exports, need, run_all

GRACE_SECONDS = 300  # for saving, when a machine is asked back


def plan(job):
    """A workload; of a sweep, one for each point."""
    commands = workloads(job)
    dry = ["--dry-run", "--skip-validation"]
    return Plan(commands, checks=tuple([*words, *dry] for words in commands), note=NOTE)


NOTE = "The workdir must be the same place for every machine, such as gs://BUCKET/RUN."


def run(job, plan):
    """Creates the workloads; the status is that of their submission."""
    return run_all(plan.commands, plan)


def workloads(job):
    """The commands that create the workloads of a job.

    xpk starts a workload again after 42 and 127 to 255, so after a SIGTERM and after a crash alike.
    """
    at = job.settings
    cluster, tpu, image = need(
        job,
        "xpk",
        cluster="the name of a GKE cluster",
        tpu="the type of a TPU slice, such as v5litepod-256",
        image="a container image with this library in it",
    )
    options = {
        "cluster": cluster,
        "project": at["project"],
        "zone": at["zone"],
        "tpu-type": tpu,
        "num-slices": at["nodes"],
        "docker-image": image,
        "max-restarts": at["restarts"],
        "termination-grace-period-seconds": GRACE_SECONDS,
    }
    flags = [f"--{key}={value}" for key, value in options.items() if value is not None]
    # Not by --env, whose values xpk puts into YAML as they are. xpk's shell passes SIGTERM on to
    # what it started and no further: by exec, that is the run.
    before = "".join(f"{line} && " for line in exports(at))
    commands = []
    for point in range(job.points) if job.points else [None]:
        words = ["tinker", *job.words, *([] if point is None else [f"--sweep_index={point}"])]
        name = _name(job.name, "" if point is None else f"-{point}")
        command = f"{before}exec {shlex.join(words)}"
        commands.append(
            ["xpk", "workload", "create", f"--workload={name}", *flags, f"--command={command}"]
            + list(at["flags"])
        )
    return commands


def _name(name, suffix):
    """A name as Kubernetes takes it: at most 40 of a-z, 0-9 and -, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    name = name if name[:1].isalpha() else f"run-{name}"
    return name[: 40 - len(suffix)].rstrip("-") + suffix
