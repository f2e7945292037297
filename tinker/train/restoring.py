"""Restoring: trained states read back, for notebooks and for what starts from them."""

import jax
import jax.numpy as jnp

from tinker.numerics import UserError, nearest
from tinker.train import sharding
from tinker.train.building import build
from tinker.train.checkpoints import Checkpoints
from tinker.train.compiling import abstract_state
from tinker.train.workdir import folder, read_config


def restore(workdir, step=None, *, mesh=None):
    """Reads a trained state back; nothing in the workdir is changed.

    Args:
      workdir: Of a run.
      step: Which checkpoint; the newest good one by default.
      mesh: Where the state goes, by default the first device.

    Returns:
      ``(program, state, config)``.

    Raises:
      UserError: There is no such run or checkpoint, or the code has changed since.
    """
    program, state, config, _ = _restore(workdir, step, mesh)
    return program, state, config


def _restore(workdir, step=None, mesh=None):
    workdir, built = folder(workdir), {}
    config = read_config(workdir)
    missing = UserError(f"there is no checkpoint{'' if step is None else f' {step}'} in {workdir}")
    if not (workdir / "checkpoints").exists():
        raise missing
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1]) if mesh is None else mesh
    saved = Checkpoints(workdir, read_only=True)

    def read(at, meta):
        batch = {
            name: jax.ShapeDtypeStruct(shape, dtype)
            for name, (shape, dtype) in meta["batch"].items()
        }
        program = build(config, batch, mesh)
        abstract = abstract_state(program, batch)
        shardings = sharding.tree_shardings(abstract, mesh, config.sharding_rules)
        built.update(program=program, batch=batch)
        return saved.read(at, meta, abstract, shardings)

    try:
        found = saved.newest(read, only=step)
    finally:
        saved.close()
    if found is None:
        raise missing
    return built["program"], found[1], config, built["batch"]


def load_pretrained(config):
    """Trained variables that ``init_from`` names: ``{network: flax variables}``.

    ``config.init_from`` is a run's workdir whose model this one starts from; a net's own
    ``init_from`` likewise gives it that run's model.
    """
    wanted = {"model": config.init_from}
    wanted |= {name: spec.get("init_from") for name, spec in config.nets.items()}
    return {name: trained_variables(path) for name, path in wanted.items() if path} or None


def trained_variables(workdir, net="model"):
    """The flax variables of a trained network, its parametrization materialized.

    Args:
      workdir: Of the run.
      net: The network's name there.

    Returns:
      ``{"params": …, "batch_stats": …}``, on the host.
    """
    program, state, _, batch = _restore(workdir)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
    # The networks' outputs are not read, so under jit they are not computed.
    if net not in state.model_state:
        raise UserError(f"{workdir} has no network {net!r}{nearest(net, state.model_state)}")
    params = jax.jit(lambda s, b: program.context(s, b)["params"][net])(state, zeros)
    return jax.device_get({"params": params, **state.model_state[net]})
