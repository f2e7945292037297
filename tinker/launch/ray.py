"""Ray: a JaxTrainer for a run of several processes, tasks for sweeps and for studies."""

import os
import sys

from tinker.launch.jobs import Plan, checked, other_version
from tinker.numerics import UserError
from tinker.train.locating import load_config
from tinker.train.processes import fail, join_processes


def plan(job):
    """What is run, in words: Ray is told by calls."""
    at = job.settings
    if at["setup"]:
        raise UserError("config.launch.setup is not for ray: set up its nodes before it starts")
    where = f"at {at['address']}" if at["address"] else "here, or a new one"
    if job.points:
        what = f"{job.points} tasks on the Ray {where}, one for each point of the sweep"
    else:
        workers = at["nodes"] * at["processes"]
        what = f"{workers} workers of a JaxTrainer on the Ray {where}, of which each runs"
    return Plan([["tinker", *job.words]], note=f"{what}:")


def run(job, plan):
    """Runs the job and waits for it; returns 0, or 2 where the config cannot work."""
    return (sweep if job.points else train)(job)


def connect(settings):
    """Joins the Ray cluster at ``config.launch.address``, or the one here, or starts one here."""
    try:
        import ray
    except ImportError:
        raise UserError("ray is not installed: pip install 'tinker-jax[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(settings["address"], log_to_driver=True)
        except (ConnectionError, ValueError) as error:
            raise UserError(f"there is no Ray at {settings['address']}: {error}") from None
    return ray


def _told(job):
    """What a worker is told, as plain data."""
    config = f"{job.workdir}/launch/config.json"
    return {"config": config, "workdir": job.workdir, "folder": os.getcwd()}


def _read(told):
    """The config of a job, on the machine of a worker."""
    if told["folder"] not in sys.path:
        sys.path.append(told["folder"])  # a config may name functions of a file that lies there
    changed = other_version(told["config"])
    if changed:
        print(f"tinker: {changed}", file=sys.stderr, flush=True)
    return load_config(told["config"])


# A run.


def train(job):
    """Trains with a JaxTrainer, again from the checkpoint when a worker was lost."""
    connect(job.settings)
    from ray.train import FailureConfig, RunConfig
    from ray.train.v2.jax import JaxTrainer

    at = job.settings
    trainer = JaxTrainer(
        _train_worker,
        train_loop_config={**_told(job), "tpu": bool(at["tpu"])},
        scaling_config=scaling(at),
        run_config=RunConfig(
            name=job.name,
            storage_path=f"{job.workdir}/ray",
            failure_config=FailureConfig(max_failures=at["restarts"]),
            worker_runtime_env={"env_vars": {k: str(v) for k, v in at["env"].items()}},
        ),
    )
    return trainer.fit().return_value


def scaling(settings):
    """How many workers, and what each is given."""
    from ray.train import ScalingConfig

    count, devices = settings["nodes"] * settings["processes"], settings["devices"]
    if not settings["tpu"]:
        each = {"CPU": 1, "GPU": devices} if devices else {"CPU": 1}
        return ScalingConfig(num_workers=count, use_gpu=bool(devices), resources_per_worker=each)
    kind, colon, topology = settings["tpu"].partition(":")
    if not colon:
        raise UserError("ray needs config.launch.tpu with a topology, such as 'TPU-V6E:4x4'")
    return ScalingConfig(
        num_workers=count,
        use_tpu=True,
        accelerator_type=kind,
        topology=topology,
        resources_per_worker={"TPU": devices or 4},
    )


def _train_worker(told):
    """What each worker of a JaxTrainer runs; returns the exit status."""
    import jax
    import ray.train
    import ray.train.collective

    from tinker.train import fit

    context = ray.train.get_context()
    if not told["tpu"]:  # there Ray has connected the processes itself
        here = f"{ray.util.get_node_ip_address()}:{_free_port()}"
        coordinator = ray.train.collective.broadcast_from_rank_zero(here)
        join_processes(coordinator, context.get_world_size(), context.get_world_rank())
    try:
        fit(_read(told), told["workdir"])
    except UserError as error:  # which would come again
        fail(error, 2)
        print(f"tinker: {error}", file=sys.stderr, flush=True)
        return 2
    if not told["tpu"]:
        jax.distributed.shutdown()  # together: a worker that goes first looks lost
    return 0


def _free_port():
    import socket

    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


# Tasks.


def tasks(settings):
    """A function that computes many things as tasks of Ray.

    Args:
      settings: Of ``config.launch``, what differs from its defaults.

    Returns:
      ``compute(function, items)``, which yields ``(item, function(item))`` as they are ready. What
      was lost with its worker is computed again, ``restarts`` times.
    """
    settings = checked(settings)
    ray = connect(settings)
    env = {"env_vars": {k: str(v) for k, v in settings["env"].items()}}
    options = {"max_retries": settings["restarts"], "runtime_env": env}
    if settings["devices"]:
        options["num_gpus"] = settings["devices"]
    task = ray.remote(_call).options(**options)

    def compute(function, items):
        items, waiting = list(items)[::-1], {}
        while items or waiting:
            while items and len(waiting) < (settings["parallel"] or 1000):
                item = items.pop()
                waiting[task.remote(os.getcwd(), function, item)] = item
            ready = ray.wait(list(waiting), num_returns=1)[0][0]
            item = waiting.pop(ready)
            try:
                yield item, ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.WorkerCrashedError:
                raise UserError(
                    f"the worker of {item} was lost {settings['restarts'] + 1} times"
                ) from None

    return compute


def _call(folder, function, item):
    if folder not in sys.path:
        sys.path.append(folder)
    return function(item)


def sweep(job):
    """Runs the points of a sweep as tasks, then gathers their results."""
    import functools

    from tinker.train import run_sweep

    compute, failed = tasks(job.settings), 0
    for point, error in compute(functools.partial(_run_point, _told(job)), range(job.points)):
        failed += error is not None
        print(f"tinker: point {point}: {error or 'finished'}", file=sys.stderr, flush=True)
    if failed:
        return 2
    run_sweep(load_config(f"{job.workdir}/launch/config.json"), job.workdir)  # all are finished
    return 0


def _run_point(told, index):
    from tinker.train import run_sweep

    try:
        run_sweep(_read(told), told["workdir"], index)
    except UserError as error:
        return str(error)
