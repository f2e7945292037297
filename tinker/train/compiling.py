"""Compiling: one program for all the runs that differ in nothing that a program reads."""

import collections
import contextlib
import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib

from tinker.compress import coverage
from tinker.numerics import UserError
from tinker.train import evaluation, feeding, sharding
from tinker.train.building import build, build_metrics, build_parametrization
from tinker.train.composition import Program
from tinker.train.specs import resolve
from tinker.train.workdir import STARTS, plain


class Compiled(NamedTuple):
    """What runs of one program share."""

    program: Program
    mesh: Any
    batch: dict  # of jax.ShapeDtypeStruct
    abstract: Any  # the state's structure
    shardings: Any
    names: tuple  # of the training metrics, in the order of the step's vector
    convolves: bool  # whether a step has a convolution
    init: Any
    step: Any  # (state, batch) -> (state, metrics [names])
    step_rows: Any  # (state, arrays, index) -> the same
    steps_rows: Any  # (state, arrays, index, count) -> (state, metrics [capacity, names])
    metrics: dict
    measure: Any
    coverage: str  # what the parametrization acts on, in words; empty without one


_COMPILED = collections.OrderedDict()


def compiled(config, streams):
    """Builds a config's program and jits its functions, once per process for all seeds."""
    batch = feeding.batch_spec(streams)
    facts = program_facts(config)
    functions = tuple(resolve(path) for path in _function_paths(facts))  # new after a reload
    shapes = tuple((name, x.shape, str(x.dtype)) for name, x in sorted(batch.items()))
    known = (json.dumps(facts, sort_keys=True), functions, shapes)
    if known not in _COMPILED:
        _COMPILED[known] = _compile(config, batch)
        if len(_COMPILED) > 8:
            _COMPILED.popitem(last=False)
    _COMPILED.move_to_end(known)
    return _COMPILED[known]


def _compile(config, batch):
    mesh = sharding.make_mesh(config.mesh)
    program = build(config, batch, mesh)
    abstract = abstract_state(program, batch)
    shardings = sharding.tree_shardings(abstract, mesh, config.sharding_rules)
    jaxpr, (_, shapes) = jax.make_jaxpr(program.train_step, return_shape=True)(abstract, batch)
    names = _metric_names(shapes)

    def step(state, batch):
        state, metrics = program.train_step(state, batch)
        return state, jnp.stack([jnp.asarray(metrics[n], jnp.float32) for n in names])

    def step_rows(state, arrays, index):
        return step(state, feeding.gather(arrays, index, mesh))

    def steps_rows(state, arrays, index, count):
        def body(i, carry):
            state, rows = carry
            state, row = step_rows(state, arrays, jax.tree.map(lambda x: x[i], index))
            return state, rows.at[i].set(row)

        capacity = jax.tree.leaves(index)[0].shape[0]
        rows = jnp.zeros((capacity, len(names)), jnp.float32)
        return jax.lax.fori_loop(0, count, body, (state, rows))

    placed = {"out_shardings": (shardings, sharding.replicated(mesh)), "donate_argnums": 0}
    metrics = build_metrics(config)
    return Compiled(
        program=program,
        mesh=mesh,
        batch=batch,
        abstract=abstract,
        shardings=shardings,
        names=names,
        convolves="conv_general_dilated" in str(jaxpr),
        init=jax.jit(program.init, out_shardings=shardings),
        step=jax.jit(step, **placed),
        step_rows=jax.jit(step_rows, **placed),
        steps_rows=jax.jit(steps_rows, **placed),
        metrics=metrics,
        measure=evaluation.make_measure(program, metrics, mesh),
        coverage=_coverage(config, program, abstract),
    )


def abstract_state(program, batch):
    """The structure of a program's state: ``jax.ShapeDtypeStruct`` leaves."""
    return jax.eval_shape(program.init, jax.eval_shape(lambda: jax.random.key(0)), batch)


def _coverage(config, program, abstract):
    built = build_parametrization(config.parametrization)
    if built is None:
        return ""
    covers = getattr(built, "covers", lambda path, leaf: True)
    matched, skipped = coverage(covers, jax.eval_shape(program.params, abstract))
    if not matched:
        there = ", ".join(skipped)
        raise UserError(f"config.parametrization acts on none of the parameters: {there}")
    inside, outside = sum(matched.values()), sum(skipped.values())
    return (
        f"parametrization: {inside:,} weights in {len(matched)} leaves, "
        f"{outside:,} in {len(skipped)} leaves left as they are"
    )


def _metric_names(metrics):
    for name, value in metrics.items():
        if value.shape:
            raise UserError(
                f"training metric {name!r} has shape {value.shape}; it must be a number"
            )
    return tuple(sorted(metrics, key=lambda name: (name != "loss", name)))


# Keys of a config that only the loop reads.
LOOP = ("steps", "steps_per_dispatch", "log_every", "eval_every", "eval_splits", "checkpoint_every")
LOOP += ("keep", "keep_best", "profile", "init_from", *STARTS)


def program_facts(config):
    """What of a config decides its program, as plain data: neither seeds nor the loop's keys."""
    return _without_seeds({k: v for k, v in plain(config).items() if k not in LOOP})


def _without_seeds(value):
    if isinstance(value, dict):
        seeds = ("seed", "split_seed")
        return {k: _without_seeds(v) for k, v in value.items() if k not in seeds or "fn" in value}
    return [_without_seeds(v) for v in value] if isinstance(value, list) else value


def _function_paths(value):
    if isinstance(value, dict):
        own = [value["fn"]] if isinstance(value.get("fn"), str) else []
        return own + [p for v in value.values() for p in _function_paths(v)]
    return [p for v in value for p in _function_paths(v)] if isinstance(value, list) else []


def use_compilation_cache():
    """Keeps compiled programs in ``$TINKER_CACHE`` (~/.cache/tinker), unless jax is told a place.

    The folder is of this jax and kind of machine, as a program compiled for one processor may not
    run on another that shares the home. An entry that a kill cut off fails its checksum and is
    compiled anew.
    """
    if jax.config.jax_compilation_cache_dir or os.environ.get("TINKER_CACHE") == "":
        return
    root = pathlib.Path(os.environ.get("TINKER_CACHE", "~/.cache/tinker")).expanduser()
    flags = ""
    with contextlib.suppress(OSError, IndexError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    kind = hashlib.blake2b(flags.encode(), digest_size=4).hexdigest()
    folder = root / "xla" / f"{jax.__version__}-{jaxlib.__version__}-{kind}"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
