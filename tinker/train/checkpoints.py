"""Checkpoints: what a run needs to go on, whole or not at all, and checked when it is read.

A checkpoint holds the state as a flat dict from path to array, and ``meta``: the place in the data
with the data's fingerprint, the config, the versions, and a checksum of every array.
"""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from tinker.numerics import UserError
from tinker.train import sharding
from tinker.train.reporting import say
from tinker.train.workdir import move_folder, wait_for_all

FOLDER, BAD = "checkpoints", "checkpoints_bad"


class Corrupt(Exception):
    """A checkpoint that is not what was saved."""


# Checksums.


def _mix(x):
    """Murmur3's finalizer, a bijection of uint32."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _words(x):
    """The bits of an array as uint32, on a further axis where an element has several words."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.stack([_words(x.real), _words(x.imag)], -1)
    if x.dtype == bool or x.dtype.name in ("int2", "int4", "uint2", "uint4"):
        return x.astype(jnp.int32).astype(jnp.uint32)
    if x.dtype.itemsize == 8:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def checksum(x):
    r"""A hash of an array's bits that is the same however the array is sharded.

    .. math:: \sum_i m(b_i + m(i)) \bmod 2^{32}, \qquad m \text{ a bijection of 32-bit words}

    A change of a single word always changes it.

    Args:
      x: An array of any shape and dtype; a random key counts as its data.

    Returns:
      uint32, ``[]``.
    """
    words = _words(jax.random.key_data(x) if _is_key(x) else jnp.asarray(x))
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        place = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index, stride = index + place * jnp.uint32(stride % 2**32), stride * words.shape[axis]
    return jnp.sum(_mix(words + _mix(index)), dtype=jnp.uint32)


@jax.jit
def _examine(flat):
    """Checksums of all arrays, and which of the trained ones hold a NaN."""
    trained = {
        path: jnp.isnan(x).any()
        for path, x in flat.items()
        if path.startswith("trainable") and jnp.issubdtype(x.dtype, jnp.inexact)
    }
    return {path: checksum(x) for path, x in flat.items()}, trained


# From a state to plain arrays and back.


def _is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def flatten(state):
    """A state as ``{path: array}``; random keys as their data, without arrays of no elements."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    flat = {sharding.path_of(p): jax.random.key_data(x) if _is_key(x) else x for p, x in leaves}
    if len(flat) != len(leaves):
        raise UserError("two arrays of the state have the same path; rename one of them")
    return {path: x for path, x in flat.items() if x.size}


def unflatten(flat, abstract, keys):
    """The state of which :func:`flatten` gave ``flat``.

    ``abstract`` gives its structure, ``keys`` the implementation of each random key by path.
    """

    def leaf(path, like):
        name = sharding.path_of(path)
        if _is_key(like):
            return jax.random.wrap_key_data(flat[name], impl=keys[name])
        return flat[name] if name in flat else jnp.zeros(like.shape, like.dtype)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def _key_kinds(state):
    return {
        sharding.path_of(p): str(jax.random.key_impl(x))
        for p, x in jax.tree_util.tree_leaves_with_path(state)
        if _is_key(x)
    }


def _shapes(flat):
    return {path: [list(x.shape), x.dtype.name] for path, x in flat.items()}


def _targets(abstract, shardings):
    """What to read: ``{path: jax.ShapeDtypeStruct}`` with the sharding wanted."""
    placed = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )
    targets = {}
    for path, like in jax.tree_util.tree_leaves_with_path(placed):
        if _is_key(like):
            whole = sharding.replicated(like.sharding.mesh)
            data = jax.eval_shape(jax.random.key_data, like)
            like = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=whole)
        if like.size:
            targets[sharding.path_of(path)] = like
    return targets


# Reading and writing.


class Keep(checkpoint_managers.PreservationPolicy):
    """Keeps the latest n checkpoints, and the best one."""

    def __init__(self, latest):
        self.latest, self.best = max(int(latest), 1), None

    def should_preserve(self, checkpoints, *, context):
        """Which of the checkpoints, in order of their steps, stay."""
        del context
        newest = {info.step for info in checkpoints[-self.latest :]}
        return [info.step in newest or info.step == self.best for info in checkpoints]


class Checkpoints:
    """The checkpoints of a workdir.

    Args:
      workdir: An ``epath.Path``.
      keep: How many of the latest are kept.
      read_only: Whether the workdir is someone else's: nothing is written or moved.
    """

    def __init__(self, workdir, keep=3, read_only=False):
        self.workdir, self.read_only, self.policy = workdir, read_only, Keep(keep)
        folder = workdir / FOLDER
        if read_only:
            options = ocp.CheckpointManagerOptions(create=False, lightweight_initialize=True)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self.policy,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,  # what a kill left half written
                lightweight_initialize=True,  # metadata may be damaged: read none of it
            )
        self.manager = ocp.CheckpointManager(folder, options=options)
        # Each process reads by itself, or one that cannot would leave the others waiting.
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=None, active_processes={me}, barrier_sync_key_prefix=f"reader{me}"
        )
        composite = ocp.CompositeOptions(multiprocessing_options=alone)
        self.reader = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(composite_options=composite),
            multiprocessing_options=alone,
        )

    @property
    def last_step(self):
        """The newest step that was saved, or None."""
        return self.manager.latest_step()

    def save(self, state, meta):
        """Starts to write a checkpoint; returns when the state may change again.

        Args:
          state: The state.
          meta: JSON-able facts about the run; its step, best step, config and so on.

        Raises:
          NotFinite: A trained array holds a NaN; nothing is written.
        """
        step, flat = int(meta["step"]), flatten(state)
        if step in self.manager.all_steps():
            return
        sums, has_nan = jax.device_get(_examine(flat))
        for path, found in has_nan.items():
            if found:
                raise NotFinite(path, "nan", step, self.where())
        meta = meta | {
            "arrays": _shapes(flat),
            "checksums": {path: int(value) for path, value in sums.items()},
            "keys": _key_kinds(state),
        }
        if jax.default_backend() == "cpu":  # where the host's view is the buffer the step donates
            flat = jax.tree.map(jnp.copy, flat)
        self.policy.best = (meta.get("best") or {}).get("step")
        text = json.dumps(meta, sort_keys=True)
        self.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(flat),
                meta=ocp.args.JsonSave({"text": text, "crc32": zlib.crc32(text.encode())}),
            ),
            force=True,
        )

    def where(self):
        """The last good checkpoint in words."""
        self.wait()
        if self.last_step is None:
            return "there is no checkpoint"
        return f"the last good checkpoint is step {self.last_step} in {self.workdir / FOLDER}"

    def read_meta(self, step):
        """Reads what a checkpoint says of itself.

        Raises:
          Corrupt: It is damaged.
        """
        stored = self._read(step, meta=ocp.args.JsonRestore())
        text, crc = (stored.get(k) for k in ("text", "crc32")) if stored else (None, None)
        if not isinstance(text, str) or zlib.crc32(text.encode()) != crc:
            raise Corrupt("meta: its checksum is wrong")
        return json.loads(text)

    def _read(self, step, **args):
        """One item of a checkpoint; if one process cannot read it, :class:`Corrupt` for all."""
        ((item, _),), found, damage = args.items(), None, None
        try:
            place = self.workdir / FOLDER / str(step)
            found = self.reader.restore(place, args=ocp.args.Composite(**args))[item]
        except Exception as error:  # a damaged file raises whatever its reader happens to
            damage = error
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            unable = multihost_utils.process_allgather(np.array(damage is not None))
            if unable.any() and damage is None:
                damage = f"process {np.argmax(unable)} cannot read it"
        if damage is not None:
            raise Corrupt(f"{item}: {_short(damage)}")
        return found

    def read(self, step, meta, abstract, shardings):
        """Reads the state of a checkpoint and verifies every array.

        Args:
          step: Which.
          meta: What :meth:`read_meta` gave.
          abstract: The state's structure, ``jax.eval_shape`` of the program's init.
          shardings: A tree of ``NamedSharding`` like it; those of the saving run do not matter.

        Returns:
          The state.

        Raises:
          Corrupt: It is damaged.
          UserError: It is whole, but of another program.
        """
        targets = _targets(abstract, shardings)
        expected = _shapes(targets)
        for path in sorted(expected.keys() | meta["arrays"].keys()):
            if meta["arrays"].get(path) != expected.get(path):
                there, here = meta["arrays"].get(path), expected.get(path)
                raise UserError(
                    f"{self.workdir}: the code has changed since checkpoint {step}: {path} is "
                    f"{there or 'absent'} there, {here or 'absent'} here"
                )
        flat = dict(self._read(step, state=ocp.args.StandardRestore(targets)))
        sums, _ = jax.device_get(_examine(flat))
        for path, value in meta["checksums"].items():
            if int(sums[path]) != value:
                raise Corrupt(f"{path}: its checksum is wrong")
        # Buffers of our own: a reader's may be views that cannot be donated.
        return unflatten(jax.tree.map(jnp.copy, flat), abstract, meta["keys"])

    def newest(self, read, only=None):
        """Goes back from the newest checkpoint to the first that can be read.

        Damaged ones are told of and moved aside into ``checkpoints_bad``.

        Args:
          read: ``read(step, meta)``, which may raise :class:`Corrupt`.
          only: The one step to look at.

        Returns:
          ``(meta, what read returned)``, or None where there is no good checkpoint.
        """
        steps = [s for s in self.manager.all_steps() if only is None or s == only]
        steps.sort(reverse=True)
        for step in steps:
            try:
                meta = self.read_meta(step)
                return meta, read(step, meta)
            except Corrupt as error:
                say(
                    f"checkpoint {step} in {self.workdir} is damaged ({error}); trying an older one"
                )
                if not self.read_only:
                    self._move_aside(step)
        if steps:
            anew = "" if self.read_only else "; starting anew"
            say(f"no checkpoint in {self.workdir} can be read{anew}")
        return None

    def _move_aside(self, step):
        if jax.process_index() == 0:
            folder, target, n = self.workdir / BAD, self.workdir / BAD / str(step), 1
            folder.mkdir(exist_ok=True)
            while target.exists():
                n += 1
                target = folder / f"{step}-{n}"
            move_folder(self.workdir / FOLDER / str(step), target)
        wait_for_all(f"aside {step}")
        self.manager.reload()

    def wait(self):
        """Returns when all that was saved is on disk; raises what went wrong with it."""
        self.manager.wait_until_finished()

    def close(self):
        """Waits, then lets go."""
        self.manager.close()
        self.reader.close()


def _short(error):
    """The beginning of an error's text, in one line."""
    text = " ".join(str(error).split()).partition(". See ")[0]
    return text if 0 < len(text) <= 100 else text[:97] + "…" if text else type(error).__name__


class NotFinite(UserError):
    """A value became NaN or infinite."""

    def __init__(self, name, value, step, where):
        super().__init__(f"{name} is {value} at step {step}; {where}")
        self.name, self.step = name, step
