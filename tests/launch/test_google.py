"""xpk and gcloud, where they are installed: what they make of the commands. Nothing is submitted.

Run with ``pytest -n 0 -m engines tests/launch/test_google.py``.
"""

import shutil
import subprocess
import textwrap

import pytest

from tests.launch.conftest import make
from tests.launch.test_scripts import words
from tinker.launch import tpu_vm, xpk

pytestmark = pytest.mark.engines


@pytest.fixture
def alone(tmp_path, tools):
    """An environment without anybody's credentials or settings."""
    nobody = {"CLOUDSDK_CONFIG": str(tmp_path / "gcloud"), "NO_GCE_CHECK": "true"}
    return {**tools.env, **nobody, "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}


@pytest.mark.skipif(not shutil.which("xpk"), reason="needs xpk")
@pytest.mark.parametrize("stops", [False, True])
def test_the_jobset_of_xpk_runs_the_words_it_was_given(stops, tmp_path, tools, alone, awkward):
    """As xpk renders it: its container's shell is run here, with a stand-in for the run."""
    workdir, manifest = f"gs://bucket/{awkward}", tmp_path / "jobset.yaml"
    job = make(
        workdir,
        nodes=2,
        tpu="v5litepod-16",
        cluster="c",
        project="p",
        zone="us-central2-b",
        image="gcr.io/p/tinker:1",
        restarts=4,
        env={"A": awkward},
        setup=("export B=b",),
    )
    (check,) = xpk.plan(job).checks
    command = [shutil.which("xpk"), *check[1:], f"--output-manifest-file={manifest}"]
    done = subprocess.run(
        command, env=alone, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = manifest.read_text()
    for wanted in ("maxRestarts: 4", "replicas: 2", "terminationGracePeriodSeconds: 300"):
        assert wanted in text
    assert "gcr.io/p/tinker:1" in text and ",143," in text  # after which it starts again
    script = text.partition("- |\n")[2].partition("resources:")[0]
    script = textwrap.dedent(script.rstrip() + "\n")
    body = "import time, signal\nsignal.signal(15, lambda *_: sys.exit(77))\n"
    body += "os.kill(os.getppid(), 15); time.sleep(30)\n" if stops else "sys.exit(7)\n"
    tools.add("tinker", body)
    done = tools.bash(script)
    assert done.returncode == (77 if stops else 7), done.stderr
    (call,) = tools.called("tinker")
    assert call["argv"] == words(workdir)
    assert call["env"]["A"] == awkward and call["env"]["B"] == "b"


@pytest.mark.skipif(not shutil.which("gcloud"), reason="needs gcloud")
def test_gcloud_understands_the_command_and_stops_for_want_of_an_account(alone, awkward):
    job = make(f"gs://b/{awkward}", tpu="pod", zone="us-central2-b", project="p")
    (check,) = tpu_vm.plan(job).checks

    def said(*more):
        command = [shutil.which("gcloud"), *check[1:], *more]
        done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=300)
        assert done.returncode
        return done.stderr

    assert "active account" in said()
    assert "unrecognized arguments" in said("--no-such-flag")
