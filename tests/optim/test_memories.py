"""Memories against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from tinker import optim


def test_parameter_average_warms_up_then_follows_its_decay():
    memory = optim.parameter_average(decay=0.5)
    weights = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    state = memory.init(jax.random.key(0), {"params": {"w": jnp.asarray(weights[0])}})
    mean = weights[0]
    for t in range(1, 12):
        decay = min(0.5, (1 + t) / (10 + t))
        mean = decay * mean + (1 - decay) * weights[t]
        state = memory.update(state, {"params": {"w": weights[t]}, "step": jnp.int32(t)})
        np.testing.assert_allclose(state.ema["w"], mean, rtol=1e-5)


def test_parameter_average_takes_a_schedule():
    memory = optim.parameter_average(decay=lambda step: 1.0 / step, warmup=False)
    state = memory.init(jax.random.key(0), {"params": jnp.float32(0.0)})
    state = memory.update(state, {"params": jnp.float32(8.0), "step": jnp.int32(4)})
    np.testing.assert_allclose(state.ema, 0.25 * 0 + 0.75 * 8)


def test_queue_keeps_the_newest_rows_first():
    memory = optim.output_queue(output="z", size=5)
    state = memory.init(jax.random.key(0), {"z": jnp.zeros((3, 2))})
    rows = np.arange(18, dtype=np.float32).reshape(3, 3, 2)
    for i, filled in enumerate([3, 5, 5]):
        state = memory.update(state, {"z": rows[i]})
        assert int(state.filled) == filled
    np.testing.assert_allclose(state.rows, np.concatenate([rows[2], rows[1]])[:5])
    wide = optim.output_queue(output="z", size=2)
    state = wide.init(jax.random.key(0), {"z": rows[0]})
    np.testing.assert_allclose(wide.update(state, {"z": rows[0]}).rows, rows[0][:2])
