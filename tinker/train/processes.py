"""Several processes as one job: they find each other, end together, and tell who failed first."""

import atexit
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time

import jax
import numpy as np

from tinker.numerics import UserError

HEARTBEAT_SECONDS = 20  # JAX ends a job whose process has been silent for so long
BEAT_SECONDS, SILENT_SECONDS = 2.0, 10.0  # ours, by which the silent one is named before that
ALIKE_SECONDS = 1.5  # in which a fault of all processes is met by all of them
LOST = 134  # the exit code of a process that has lost another, as where JAX itself ends it

LAST_BEAT = "end"  # of a process that is at its exit, and may wait there for the others

_ending = threading.Event()
_named = threading.Event()  # once another process is known to have failed, or to be silent
_exit_code = LOST  # for that reason


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
        watch = threading.Thread(target=_watch, daemon=True)
        watch.start()
        atexit.register(_stop_watching, watch)
        before = sys.excepthook
        sys.excepthook = lambda kind, error, trace: _uncaught(before, kind, error, trace)
    elif threading.current_thread() is threading.main_thread():
        # JAX has caught it, for jobs of several processes; a lone one would not hear of it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def from_first(function):
    """What ``function()`` gives in process 0, as plain data, in all processes.

    For what is read from a folder that a network may show to some of them later than to others.
    """
    if jax.process_count() == 1:
        return function()
    from jax.experimental import multihost_utils

    found = json.dumps(function()).encode() if jax.process_index() == 0 else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(found))))
    padded = np.frombuffer(found.ljust(size), np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(padded)))


def coordinator():
    """``"host:port"`` of process 0: if that one dies, JAX ends the others before they can tell."""
    from jax._src.distributed import global_state

    return global_state.coordinator_address


def _client():
    # JAX has no public store that the processes of a job share.
    from jax._src.distributed import global_state

    return global_state.client


def _watch():
    """Tells which process has failed or fallen silent: JAX itself only knows the number."""
    client, me = _client(), jax.process_index()
    hosts, heard, silent = {}, {}, set()
    beat = 0
    while True:
        try:
            beat += 1
            client.key_value_set(
                f"tinker/beat/{me}", f"{beat} {socket.gethostname()}", allow_overwrite=True
            )
            found = dict(client.key_value_dir_get("tinker/beat"))
            failed = _failures(client)
        except Exception:  # the store is process 0's
            if jax.distributed.is_initialized() and 0 in hosts:
                _tell(0, hosts[0], "cannot be reached")
            return
        if me in failed:
            return
        if failed:
            _end_with(min(failed.items(), key=lambda pair: pair[1]["time"]))
        now = time.monotonic()
        for key, value in found.items():
            other, host = int(key.rpartition("/")[2]), value.partition(" ")[2]
            if value == LAST_BEAT:
                heard.pop(other, None)
                continue
            hosts[other] = host
            if heard.get(other, (None,))[0] != value:
                heard[other] = value, now
                if other in silent:  # it was only busy
                    silent.discard(other)
                    _named.clear()
            elif now - heard[other][1] > SILENT_SECONDS and other not in silent:
                _tell(other, host, f"has said nothing for {now - heard[other][1]:.0f} s")
                silent.add(other)
        if _ending.wait(BEAT_SECONDS):
            with contextlib.suppress(Exception):
                client.key_value_set(f"tinker/beat/{me}", LAST_BEAT, allow_overwrite=True)
            return


def _stop_watching(watch):
    """At the exit: a thread that was in JAX's client when Python ends would abort the process."""
    _ending.set()
    watch.join(2 * BEAT_SECONDS)


def _failures(client):
    """What the processes that failed have said: ``{process: {host, why, code, time}}``."""
    found = client.key_value_dir_get("tinker/failed")
    return {int(key.rpartition("/")[2]): json.loads(value) for key, value in found}


def _end_with(failure):
    """Ends this process because of another, unless it fails alike right now."""
    global _exit_code
    other, said = failure
    time.sleep(ALIKE_SECONDS)
    if jax.process_index() in _failures(_client()):
        return
    _exit_code = said["code"]
    _tell(other, said["host"], f"failed: {said['why']}")
    _leave(_exit_code)


def _tell(process, host, what):
    """Names a process, on stderr and in the log of this one."""
    line = f"process {process} on {host} {what} (told by process {jax.process_index()})"
    logging.getLogger("tinker.process").info(line)
    print(f"tinker: {line}", file=sys.stderr, flush=True)
    _named.set()


def fail(error, code=1):
    """Ends all processes of the job because of an error of this one.

    It returns where there is but one, and where all of them fail alike; then each ends by itself.
    Otherwise nobody would end: one waits for the others at its exit, and they for it in a step.

    Args:
      error: The exception.
      code: The exit code, of the others too.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    client, why = _client(), _in_words(error)
    said = {"host": socket.gethostname(), "why": why, "code": code, "time": time.time()}
    client.key_value_set(f"tinker/failed/{jax.process_index()}", json.dumps(said))
    until = time.monotonic() + BEAT_SECONDS + ALIKE_SECONDS + 2
    while time.monotonic() < until:  # the others have heard of it, and those of process 0 ended
        if len(_failures(client)) == jax.process_count():
            return
        time.sleep(0.1)
    print(f"tinker: {why if code == 1 else error}", file=sys.stderr, flush=True)
    _leave(code)


def _in_words(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _uncaught(before, kind, error, trace):
    """Of an exception that nobody catches; ``before`` shows its traceback."""
    own = "RESOURCE_EXHAUSTED" in str(error) or not issubclass(kind, jax.errors.JaxRuntimeError)
    if "Gloo" in str(error) or not own:
        if _named.wait(SILENT_SECONDS + 3 * BEAT_SECONDS):  # it is the echo of another's end
            me = jax.process_index()
            print(f"tinker: process {me} ends by {_in_words(error)}", file=sys.stderr, flush=True)
            _leave(_exit_code)
    before(kind, error, trace)
    if issubclass(kind, Exception):
        fail(error)


def _leave(code):
    """Ends this process without waiting for the others, as JAX would at the exit."""
    if jax.process_index() == 0:  # the others hear through it what there is to hear
        time.sleep(BEAT_SECONDS + ALIKE_SECONDS + 2)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
