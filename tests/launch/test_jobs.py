"""What a job takes with it, what is refused, and what is told."""

import json
import subprocess
import sys

import pytest

import tinker.train
from tests.cli.conftest import JOB
from tinker.cli import main
from tinker.launch import jobs
from tinker.train.locating import load_config


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "job.py"
    path.write_text(JOB)
    return path


@pytest.fixture
def submitted(monkeypatch, tools):
    """Slurm's sbatch as a stand-in; gives what it was called with, and what it read."""
    tools.add("sbatch", "open(os.environ['CALLS'] + '.stdin', 'w').write(sys.stdin.read())\n")
    monkeypatch.setenv("PATH", tools.env["PATH"])
    monkeypatch.setenv("CALLS", tools.env["CALLS"])
    return tools


def launch(config, workdir, *flags):
    return main(["launch", "--on=slurm", f"--config={config}", f"--workdir={workdir}", *flags])


def test_a_job_takes_its_config_and_version_with_it(config, tmp_path, submitted, capfd, awkward):
    workdir = tmp_path / awkward
    assert launch(config, workdir, "--config.steps=7", "--config.launch.nodes=2") == 0
    script = (workdir / "launch" / "slurm.sh").read_text()
    read = submitted.calls.with_suffix(".jsonl.stdin").read_text()
    assert read == script and "--nodes=2" in script
    assert [call["argv"] for call in submitted.called("sbatch")] == [[]]
    assert (workdir / "logs").is_dir()
    shown = capfd.readouterr().out
    assert script in shown and "$ sbatch < " in shown
    config.write_text("raise SystemExit('edited while the job waits')")
    kept = load_config(f"{workdir}/launch/config.json")
    assert kept.steps == 7 and kept.data.source == "digits"
    version = json.loads((workdir / "launch" / "version.json").read_text())
    assert {"commit", "changes", "python", "jax", "tinker-jax"} <= version.keys()
    assert jobs.other_version(f"{workdir}/launch/config.json") is None


def test_what_is_shown_can_be_typed(config, tmp_path, submitted, capfd, awkward):
    launch(config, tmp_path / awkward)
    line = capfd.readouterr().out.splitlines()[-1]
    submitted.calls.unlink()
    subprocess.run(["bash", "-c", line.removeprefix("$ ")], check=True)
    assert submitted.called("sbatch")[0]["argv"] == []


def test_a_dry_run_writes_nothing_and_asks_the_tool(config, tmp_path, submitted, capfd):
    workdir = tmp_path / "run"
    assert launch(config, workdir, "--dry_run") == 0
    assert not workdir.exists()
    assert [call["argv"] for call in submitted.called("sbatch")] == [["--test-only"]]
    assert "#SBATCH --requeue" in capfd.readouterr().out


def test_the_tool_s_status_is_the_command_s(config, tmp_path, submitted):
    submitted.add("sbatch", "sys.exit(1)")
    assert launch(config, tmp_path / "run") == 1


def test_another_config_does_not_take_the_place_of_a_job_that_waits(
    config, tmp_path, submitted, capfd
):
    workdir = tmp_path / "run"
    assert launch(config, workdir) == 0
    assert launch(config, workdir, "--config.launch.time=10:00") == 0  # how it runs may change
    assert "--time=10:00" in (workdir / "launch" / "slurm.sh").read_text()
    assert launch(config, workdir, "--config.steps=8") == 2
    err = capfd.readouterr().err
    assert "steps is 20 there, 8 here" in err and err.count("\n") == 1
    assert load_config(f"{workdir}/launch/config.json").steps == 20


def test_a_run_by_other_code_is_told(config, tmp_path, submitted, monkeypatch):
    workdir = tmp_path / "run"
    launch(config, workdir)
    monkeypatch.setattr(jobs, "version", lambda: {**version, "commit": "fedcba"})
    version = json.loads((workdir / "launch" / "version.json").read_text())
    told = jobs.other_version(f"{workdir}/launch/config.json")
    assert f"commit was {version['commit']}, is fedcba" in told
    assert jobs.other_version("train/vit_digits") is None


def test_the_job_itself_tells_of_other_code(config, tmp_path, submitted, monkeypatch, capfd):
    workdir = tmp_path / "run"
    launch(config, workdir)
    monkeypatch.setattr(tinker.train, "fit", lambda *_: (None, {}), raising=False)
    path = workdir / "launch" / "version.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"jax": "0.0.1"}))
    assert main(["train", f"--config={workdir}/launch/config.json", f"--workdir={workdir}"]) == 0
    assert "jax was 0.0.1" in capfd.readouterr().err


def test_changed_files_travel_as_a_patch(config, tmp_path, submitted, monkeypatch):
    monkeypatch.setattr(jobs, "_changes", lambda: b"--- a\n+++ b\n")
    launch(config, tmp_path / "run")
    assert (tmp_path / "run" / "launch" / "changes.patch").read_bytes() == b"--- a\n+++ b\n"
    version = json.loads((tmp_path / "run" / "launch" / "version.json").read_text())
    assert len(version["changes"]) == 16


def test_a_sweep_is_an_array(config, tmp_path, submitted, capfd):
    assert launch(config, tmp_path / "run", "--sweep.seed=0,1,2", "--config.launch.parallel=2") == 0
    assert "#SBATCH --array=0-2%2\n" in capfd.readouterr().out
    kept = load_config(f"{tmp_path}/run/launch/config.json")
    assert kept.sweep.to_dict() == {"seed": [0, 1, 2]}


MISTAKES = {
    "--on=slrum": "did you mean 'slurm'?",
    "--on=tpu-vm": "--config.launch.tpu=",
    "--on=xpk --config.launch.cluster=c --config.launch.tpu=t": "--config.launch.image=",
    "--on=slurm --config.launch.node=2": "did you mean 'nodes'?",
    "--on=slurm --config.launch.nodes=0": "config.launch.nodes=0",
    "--on=slurm --config.launch.devices=many": "config.launch.devices='many'",
    "--on=slurm --config.launch.flags=--mem=4G": "config.launch.flags",
    "--on=slurm --config.launch.env.a-b=1": "'a-b'",
    "--on=slurm --config.stepz=1": "did you mean 'steps'?",
    "--on=slurm --sweep.seed=0,0": "twice",
    "--on=slurm --config.model=None": "config.model is not set",
    "--on=slurm": "--on=slurm needs sbatch: ",
    "--on=ray": "pip install 'tinker-jax[ray]'",
    "--on=ray --config.launch.setup=('x',)": "config.launch.setup",
    "": "--on",
}


@pytest.mark.parametrize("flags, hint", MISTAKES.items())
def test_a_mistake_is_one_line(flags, hint, config, tmp_path, tools, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tools.folder))
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    argv = ["launch", f"--config={config}", f"--workdir={tmp_path}/run", *flags.split()]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert hint in err and err.count("\n") == 1 and out == ""
    assert not (tmp_path / "run").exists()


def test_a_dry_run_without_the_tool_says_what_was_not_checked(
    config, tmp_path, tools, monkeypatch, capsys
):
    monkeypatch.setenv("PATH", str(tools.folder))
    assert launch(config, tmp_path / "run", "--dry_run") == 0
    assert "not checked: sbatch is not installed" in capsys.readouterr().out


def test_a_config_as_json_has_the_defaults_of_newer_keys(config, tmp_path):
    path = tmp_path / "old.json"
    path.write_text('{"steps": 3}')
    assert load_config(str(path)).steps == 3
    assert load_config(str(path)).launch.restarts == 3


@pytest.mark.parametrize("text, hint", [(None, "there is no file"), ("{", "holds no config")])
def test_a_json_that_is_no_config_is_told(text, hint, tmp_path, capsys):
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    assert main(["train", f"--config={path}", "--print_config"]) == 2
    assert hint in capsys.readouterr().err
