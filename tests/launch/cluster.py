"""A Slurm of one node on this machine, for as long as a test runs: Debian's slurm-wlm and munge."""

import contextlib
import os
import shutil
import socket
import subprocess
import time

DAEMONS = ("munged", "slurmctld", "slurmd")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])

CONF = """\
ClusterName=tinker
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
SlurmdParameters=config_overrides
MinJobAge=300
ReturnToService=2
NodeName=localhost NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=low Nodes=localhost Default=YES PriorityTier=1 GraceTime=60 MaxTime=60
PartitionName=high Nodes=localhost PriorityTier=10 PreemptMode=OFF MaxTime=60
"""


def installed():
    return all(shutil.which(name, path=PATH) for name in (*DAEMONS, "sbatch")) and os.geteuid() == 0


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def slurm(folder):
    """Starts the daemons; gives the environment in which the commands reach them."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir(exist_ok=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    ports = {"controller": _free_port(), "daemon": _free_port()}
    (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, **ports))
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    env = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    files = ("socket", "pid", "log", "seed")
    munge = [f"--{n}-file={folder}/munge.{n}" for n in files if n != "socket"]
    munge += [f"--socket={folder}/munge.socket", f"--key-file={key}", "--force", "--foreground"]
    commands = [["munged", *munge], ["slurmctld", "-D"], ["slurmd", "-D", "-N", "localhost"]]
    with contextlib.ExitStack() as stack:
        for command in commands:
            log = stack.enter_context(open(folder / f"{command[0]}.out", "w"))
            daemon = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            stack.callback(_end, daemon)
        state, deadline = "", time.monotonic() + 60
        while state != "idle":
            if time.monotonic() > deadline:
                logs = "".join(p.read_text()[-2000:] for p in sorted(folder.glob("*.log")))
                raise RuntimeError(f"Slurm did not start: {state}\n{logs}")
            time.sleep(0.3)
            state = ask(env, "sinfo", "--noheader", "--partition=low", "--format=%T").strip()
        yield env
        ask(env, "scancel", "--user=root")
        ask(env, "scancel", "--signal=KILL", "--user=root")
        time.sleep(1)


def _end(daemon):
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def ask(env, *command, check=False):
    """What a command says."""
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    if check and done.returncode:
        raise RuntimeError(f"{command}: {done.stderr}")
    return done.stdout
