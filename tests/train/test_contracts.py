"""Every noun through the unmodified trainer: it trains, and it resumes bit for bit."""

import shutil

import jax
import numpy as np
import pytest

from tests.train import contracts
from tinker import compress, train
from tinker.numerics import UserError


def bits(state):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state.replace(key=()))]


@pytest.mark.parametrize("contract", contracts.RESUMED, ids=lambda c: c.__name__)
def test_it_trains_and_resumes(contract, tmp_path):
    config = contract()
    state, _ = train.fit(config, tmp_path, progress=False)
    assert int(state.step) == 6
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    again, _ = train.fit(config, tmp_path, progress=False)
    assert bits(again) == bits(state)
    fresh, _ = train.fit(config, progress=False)
    assert bits(fresh) == bits(state)
    CHECKS.get(contract.__name__, lambda state: None)(state)


def _pruned(state):
    shares = [1 - float(m.mean()) for m in state.base["masks"].values()]
    assert shares
    np.testing.assert_allclose(shares, 0.8, atol=0.02)


def _worker_memory(state):
    error = jax.tree.leaves(state.gradient_state)
    assert all(x.shape[0] == 4 for x in error)
    assert all(float(abs(x).max()) > 0 for x in error)


def _quantized(state):
    packed = [
        x
        for x in jax.tree.leaves(state.base, is_leaf=lambda x: isinstance(x, compress.Packed))
        if isinstance(x, compress.Packed)
    ]
    assert packed
    assert all(x.codes.dtype == np.uint8 for x in packed)


def _temperature(state):
    assert set(state.trainable) == {"model", "temperature"}
    assert abs(float(state.trainable["temperature"]["log"]) - np.log(0.2)) > 1e-4


def _teacher(state):
    assert set(state.frozen) == {"teacher"}


CHECKS = {
    "gradual_pruning": _pruned,
    "worker_memory": _worker_memory,
    "quantized_lora": _quantized,
    "learnable_temperature": _temperature,
    "frozen_teacher": _teacher,
}


@pytest.mark.parametrize(
    "contract, message",
    [
        (contracts.coupled_accumulation, "tempered_pairs.*couples.*accumulation"),
        (contracts.per_example_with_batch_norm, "batch_stats.*per-example"),
    ],
    ids=lambda c: getattr(c, "__name__", ""),
)
def test_what_cannot_work_is_refused_before_it_compiles(contract, message):
    with pytest.raises(UserError, match=message):
        train.build(contract())


def test_a_net_starts_from_the_model_of_another_run(tmp_path):
    teacher = contracts.base(eval_splits=("test",))
    state, _ = train.fit(teacher, tmp_path, progress=False)
    config = contracts.frozen_teacher()
    config.nets = {"teacher": {**teacher.model, "frozen": True, "init_from": str(tmp_path)}}
    config.init_from = str(tmp_path)
    config.steps = 1
    config.optimizer = {"fn": "optax:sgd", "learning_rate": 0.0}
    student, _ = train.fit(config, progress=False)
    for have in (student.frozen["teacher"], student.trainable["model"]):
        jax.tree.map(np.testing.assert_array_equal, have, state.trainable["model"])
