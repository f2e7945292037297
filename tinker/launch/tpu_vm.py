"""TPU VMs: the same script on every worker of a slice, through gcloud's ssh."""

import re
import shlex
import zlib

from tinker.launch.jobs import Plan, exports, need, run_all
from tinker.train.workdir import is_remote


def plan(job):
    """The script of the workers, and the command that runs it on all of them."""
    place = f"{job.workdir}/launch/tpu_vm.sh"
    read = f'script=$(gcloud storage cat {shlex.quote(place)}) && bash -c "$script"'
    words = ssh(job, read if is_remote(place) else f"bash {shlex.quote(place)}")
    stop = shlex.join(ssh(job, f"kill $(cat {_place(job)}.pid)"))
    note = NOTE.format(stop=stop)
    return Plan([words], {"tpu_vm.sh": script(job)}, checks=([*words, "--dry-run"],), note=note)


NOTE = """\
The workdir must be the same place for every worker, such as gs://BUCKET/RUN.
A lost connection does not end the run: the same command connects again. To stop it:
  {stop}"""


def run(job, plan):
    """Starts the run on all workers, or connects to it, and shows it; the status is theirs."""
    return run_all(plan.commands, plan)


def ssh(job, command):
    """The words that run a line of shell on all workers."""
    (tpu,) = need(job, "tpu-vm", tpu="the name of a TPU VM")
    at = job.settings
    where = [f"--{key}={at[key]}" for key in ("project", "zone") if at[key]]
    words = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", tpu, *where, "--worker=all"]
    return [*words, *at["flags"], f"--command={command}"]


def script(job):
    """What each worker runs, or connects to where it runs already.

    A run whose process was killed starts again, ``restarts`` times: those of the other workers have
    ended with it. One that was asked to stop, or failed by itself, does not.
    """
    return SCRIPT.format(
        setup="".join(f"    {line}\n" for line in exports(job.settings)),
        command=shlex.join(["tinker", *job.words]),
        restarts=job.settings["restarts"],
        place=_place(job),
    )


def _place(job):
    """Where a worker keeps the log, process number and exit code of the run of this workdir."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", job.name)
    return f"~/.tinker/{name}-{zlib.crc32(job.workdir.encode()):08x}"


SCRIPT = """\
#!/bin/bash
place={place}
mkdir -p ~/.tinker

run() {{
    trap '' HUP  # the connection may be lost
    set -e
{setup}    set +e
    trap 'kill -TERM $child' TERM
    restarts=0
    while true; do
        {command} &
        child=$!
        wait $child
        code=$?
        while kill -0 $child 2>/dev/null; do  # it is saving: a signal ended the wait
            wait $child
            code=$?
        done
        # 143, 130: it was asked to stop, and has saved. Larger ones: a process was killed.
        if [ $code -le 130 ] || [ $code -eq 143 ] || [ $restarts -ge {restarts} ]; then break; fi
        restarts=$((restarts + 1))
        echo "exit code $code: starting again ($restarts of {restarts})"
    done
    echo $code > $place.code
}}

if ! kill -0 "$(cat $place.pid 2>/dev/null)" 2>/dev/null; then
    echo 1 > $place.code
    run >> $place.log 2>&1 < /dev/null &
    echo $! > $place.pid
fi
tail --lines=20 --follow --pid="$(cat $place.pid)" $place.log | sed -u "s/^/[$(hostname)] /"
exit "$(cat $place.code)"
"""
