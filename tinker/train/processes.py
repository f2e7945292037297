"""Several processes as one job: they find each other, and tell who of them stopped."""

import signal
import socket
import sys
import threading
import time

import jax

from tinker.numerics import UserError

HEARTBEAT_SECONDS = 20  # JAX ends a job whose process has been silent for so long
BEAT_SECONDS, SILENT_SECONDS = 2.0, 10.0  # ours, by which the silent one is named before that


def join_processes(coordinator=None, processes=None, process_id=None):
    """Connects this process with the others of its job; call it before JAX computes anything.

    Without arguments JAX looks for a TPU pod, Slurm (under srun), Open MPI or Kubernetes; where
    there is none, this process is a job of its own.

    Args:
      coordinator: ``"host:port"`` of process 0, where it will listen.
      processes: How many there are. 1 alone looks for no cluster.
      process_id: Which this one is, from 0.

    Raises:
      UserError: Some of the three are missing or cannot be, or the others were not found.
    """
    given = {"coordinator": coordinator, "processes": processes, "process_id": process_id}
    if any(value is not None for value in given.values()):
        if processes == 1 and coordinator is None:
            return
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise UserError(f"--{missing[0]} is not given: {', '.join(given)} go together")
        if not 0 <= process_id < processes:
            raise UserError(f"--process_id={process_id} is not in [0, {processes})")
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"--coordinator={coordinator} is not of the form HOST:PORT")
    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    options = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
    try:
        jax.distributed.initialize(coordinator, processes, process_id, **options)
    except (ValueError, RuntimeError) as error:
        # No cluster; or a notebook's process, which has computed and so can join no more.
        alone = "should be defined", "before any JAX"
        if coordinator is None and any(text in str(error) for text in alone):
            return
        why = " ".join(str(error).split())[:200]
        raise UserError(f"the processes of the job did not find each other: {why}") from None
    if jax.process_count() > 1:
        threading.Thread(target=_watch, daemon=True).start()
    elif threading.current_thread() is threading.main_thread():
        # JAX has caught it, for jobs of several processes; a lone one would not hear of it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _watch():
    """Tells which process has fallen silent: JAX itself only knows its number."""
    # JAX has no public store that the processes of a job share.
    from jax._src.distributed import global_state

    client, me = global_state.client, jax.process_index()
    hosts, heard, told = {}, {}, set()
    beat = 0
    while True:
        try:
            beat += 1
            client.key_value_set(
                f"tinker/beat/{me}", f"{beat} {socket.gethostname()}", allow_overwrite=True
            )
            found = dict(client.key_value_dir_get("tinker/beat"))
        except Exception:  # the store is process 0's
            if jax.distributed.is_initialized() and 0 in hosts:
                _tell(0, hosts[0], "cannot be reached")
            return
        now = time.monotonic()
        for key, value in found.items():
            other, host = int(key.rpartition("/")[2]), value.partition(" ")[2]
            hosts[other] = host
            if heard.get(other, (None,))[0] != value:
                heard[other] = value, now
                told.discard(other)
            elif now - heard[other][1] > SILENT_SECONDS and other not in told:
                _tell(other, host, f"has said nothing for {now - heard[other][1]:.0f} s")
                told.add(other)
        time.sleep(BEAT_SECONDS)


def _tell(process, host, what):
    line = f"tinker: process {process} on {host} {what} (told by process {jax.process_index()})"
    print(line, file=sys.stderr, flush=True)
