"""A real Ray of this machine: runs, sweeps and studies on it, and workers that are killed.

Run with ``pytest -n 0 -m engines tests/launch/test_ray.py``, after ``pip install '.[ray]'``.
"""

import functools
import json
import os
import signal
import threading
import time

import numpy as np
import pytest

from tests.launch.conftest import make
from tests.train.tiny import rows, tiny
from tinker.launch.jobs import launch
from tinker.study import run_study
from tinker.train.specs import Config

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1800)]
ray = pytest.importorskip("ray", reason="needs the extra `ray`")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=True)
    yield
    ray.shutdown()


def dies_once(folder, item):
    """Its process is killed the first time it computes 2."""
    marker = os.path.join(folder, "died")
    if item == 2 and not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 9:
        raise FileNotFoundError("nine")
    return item * item, os.environ.get("A")


def test_what_is_lost_with_a_worker_is_computed_again(tmp_path):
    from tinker.launch.ray import tasks

    compute = tasks({"env": {"A": "it's"}, "parallel": 2})
    found = dict(compute(functools.partial(dies_once, str(tmp_path)), range(5)))
    assert found == {i: (i * i, "it's") for i in range(5)}
    assert (tmp_path / "died").exists()


def test_an_error_of_a_task_is_the_caller_s(tmp_path):
    from tinker.launch.ray import tasks

    with pytest.raises(FileNotFoundError, match="^nine$"):
        dict(tasks({})(functools.partial(dies_once, str(tmp_path)), [1, 9]))


def experiment(config, key):
    """A study's experiment that takes a while, and says which process computes it."""
    import jax

    if config.pids:
        with open(os.path.join(config.pids, f"{os.getpid()}"), "a") as file:
            file.write("x")
        time.sleep(config.seconds)
    noise = float(jax.random.normal(key))
    return {"test/x": config.shift + noise, "test/vector": np.arange(3) * noise}


def a_study(**changes):
    return Config(
        {
            "experiment": "tests.launch.test_ray:experiment",
            "seeds": 4,
            "shift": 0.0,
            "scale": 1.0,
            "pids": "",
            "seconds": 0.0,
            "arms": {"a": {}, "b": {"shift": 1.0}},
            "tune": {"scale": [1.0, 2.0, 3.0]},
            "tune_by": {"metric": "test/x", "minimize": True},
            "claims": [
                {"metric": "test/x", "arm": "b", "over": "a", "at_least": 0, "primary": True}
            ],
            **changes,
        }
    )


def without_seconds(found):
    values = {
        arm: {k: v for k, v in metrics.items() if k != "seconds"}
        for arm, metrics in found["values"].items()
    }
    return {**found, "values": values, "seconds": None}


def kill_workers(pids, count):
    """Kills so many processes that compute, one after another: (the thread, their numbers)."""
    killed = []

    def kill():
        while len(killed) < count:
            for path in pids.iterdir():
                if int(path.name) not in killed:
                    os.kill(int(path.name), signal.SIGKILL)
                    killed.append(int(path.name))
                    break
            time.sleep(1.5)

    killer = threading.Thread(target=kill)
    killer.start()
    return killer, killed


def test_all_studies_with_a_worker_killed_are_those_without(tmp_path, monkeypatch):
    """The command as users type it; of the catalogue, two studies of this file."""
    from tinker import papers, study
    from tinker.cli import main, studies

    pids, finished = tmp_path / "pids", {}
    pids.mkdir()
    names = ("one", "two")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(papers, "rows", lambda room=None: {n: {} for n in names})
    monkeypatch.setattr(
        study, "load_study", lambda name: (name, "", a_study(pids=str(pids), seconds=0.5))
    )
    monkeypatch.setattr(studies, "finish", lambda found, args: finished.update({found[0]: found}))
    killer, killed = kill_workers(pids, 2)
    assert main(["study", "--all", "--on=ray", "--config.launch.parallel=2"]) == 0
    killer.join()
    assert len(killed) == 2 and finished.keys() == set(names)
    for name in names:
        *_, workdir, found = finished[name]
        here = run_study(a_study(), tmp_path / "here" / name, name=name)
        assert without_seconds(found) == without_seconds(here)
        assert len(list((workdir / "runs").iterdir())) == 8


def test_a_study_with_a_worker_killed_is_the_study_without(tmp_path):
    """Each arm and seed is a task; some of them die with their worker."""
    from tinker.launch.ray import tasks

    pids = tmp_path / "pids"
    pids.mkdir()
    config, told = a_study(pids=str(pids), seconds=0.5), []
    killer, killed = kill_workers(pids, 2)
    found = run_study(
        config,
        tmp_path / "ray",
        name="x",
        progress=lambda done, total, label: told.append((done, total)),
        compute=tasks({}),
    )
    killer.join()
    here = run_study(a_study(), tmp_path / "here", name="x")
    assert without_seconds(found) == without_seconds(here)
    assert told[-1] == (14, 14) and len(killed) == 2
    assert len(list(pids.iterdir())) > 2  # more than those that were killed


def test_a_study_goes_on_where_it_was(tmp_path):
    from tinker.launch.ray import tasks

    run_study(a_study(), tmp_path, name="x", compute=tasks({}))
    (tmp_path / "runs" / "b-1.json").unlink()
    computed = []

    def compute(function, runs):
        computed.extend(runs)
        yield from tasks({})(function, runs)

    run_study(a_study(), tmp_path, name="x", compute=compute)
    assert [run.label for run in computed] == ["b-1"]


def test_a_jax_trainer_loses_a_worker_and_goes_on(tmp_path):
    config = tiny(steps=120, log_every=5, eval_every=0, checkpoint_every=5)
    config.launch.processes = 2
    config.launch.env = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    workdir, killed = tmp_path / "run", []

    def kill():
        saved, log = workdir / "checkpoints", workdir / "logs" / "process-1.log"
        while not (saved.exists() and any(p.name.isdigit() for p in saved.iterdir())):
            time.sleep(0.1)
        assert "process 1 of 2" in log.read_text()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline") as file:
                    if "RayTrainWorker" in file.read():
                        killed.append(int(pid))
            except OSError:
                pass
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert launch(config, workdir, "ray") == 0
    killer.join()
    assert len(killed) == 2
    steps = [row["step"] for row in rows(workdir) if "loss" in row]
    assert steps == list(range(5, 121, 5))
    text = (workdir / "logs" / "process-1.log").read_text()
    assert text.count("process 1 of 2") == 2 and "resuming" in text


def test_a_mistake_is_not_tried_again(tmp_path, capfd):
    config = tiny(steps=4)
    config.loss = {"fn": "tests.train.tiny:spoiled_loss", "at": 2}
    config.loss.inputs = ("logits", "label", "step")
    assert launch(config, tmp_path / "run", "ray") == 2
    assert "loss is nan" in capfd.readouterr().err.lower()


def test_a_sweep_is_tasks_and_gathered(tmp_path):
    config = tiny(steps=4, eval_every=0, checkpoint_every=0)
    config.sweep = {"seed": [0, 1]}
    assert launch(config, tmp_path / "run", "ray") == 0
    table = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert [row["status"] for row in table["points"]] == ["finished", "finished"]


def test_gpus_and_tpus_are_asked_for():
    from tinker.launch.ray import scaling
    from tinker.numerics import UserError

    gpus = scaling(make(nodes=2, processes=2, devices=4).settings)
    assert (gpus.num_workers, gpus.use_gpu) == (4, True)
    assert gpus.resources_per_worker["GPU"] == 4
    tpus = scaling(make(nodes=4, tpu="TPU-V6E:4x4").settings)
    assert (tpus.num_workers, tpus.topology, tpus.accelerator_type) == (4, "4x4", "TPU-V6E")
    with pytest.raises(UserError, match="topology"):
        scaling(make(tpu="TPU-V6E").settings)
