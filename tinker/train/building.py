"""From a config to a program: every noun of a training job, checked before anything is compiled."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import optax

from tinker import data
from tinker.compress.parametrization import stack
from tinker.numerics import UserError, fold_in, nearest
from tinker.train.composition import Net, Program, Term, compose, lookup
from tinker.train.sharding import under
from tinker.train.specs import (
    Config,
    as_type,
    called,
    check_call,
    instantiate,
    is_mapping,
    parts,
    signature_of,
)


def default_config():
    """The keys of a training job and their defaults; a job's config starts from these."""
    return Config(
        {
            # What is trained. `model`, `loss`, `optimizer` and `data.source` are the job's to set.
            "seed": 0,
            "steps": 1000,
            "batch_size": 128,
            "data": {"source": None},
            "model": None,
            "nets": {},
            "loss": {"fn": "tinker.losses:cross_entropy", "inputs": ("logits", "label")},
            "gradient": None,
            "optimizer": None,
            "parametrization": None,
            "memory": None,
            "metrics": None,  # None: those of the data's task
            "init_from": None,  # a workdir whose model this one starts from
            "accumulate": 1,
            "workers": 0,
            "compute_dtype": "float32",
            # How it runs.
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "sharding_rules": (),
            "peak_flops": None,  # FLOP/s of a device, for MFU; None: the vendor's figure, if known
            "steps_per_dispatch": None,
            # What is kept and shown. An interval of 0 means only at the end.
            "log_every": 50,
            "eval_every": 0,
            "eval_splits": ("test",),
            "eval_batch_size": None,
            "checkpoint_every": 0,
            "keep": 3,
            "keep_best": None,
            "profile": None,
            # Several runs: values by dotted key, and how they are combined; see sweep_points.
            "sweep": None,
            "sweep_by": "product",
            # Where it runs: what `tinker launch` tells the engine.
            "launch": {
                "name": None,  # of the job; by default the workdir's
                "nodes": 1,  # machines; of xpk, slices
                "processes": 1,  # on each machine
                "devices": None,  # GPUs of each process (locally, without any: virtual CPU devices)
                "time": None,  # at most, such as "12:00:00" (slurm)
                "restarts": 3,  # of a run that was killed; one asked to stop goes on without limit
                "parallel": None,  # points of a sweep at a time; None: as many as there is room for
                "partition": None,  # slurm
                "account": None,  # slurm
                "address": None,  # ray: of the cluster; None: the one that is found, or a local one
                "project": None,  # tpu-vm, xpk: Google Cloud's
                "zone": None,  # tpu-vm, xpk
                "tpu": None,  # tpu-vm: the TPU's name; xpk: its type, such as "v5litepod-256"
                "cluster": None,  # xpk
                "image": None,  # xpk: of the container, with this library in it
                "setup": (),  # lines of shell before the run
                "env": {},  # environment variables
                "flags": (),  # further flags of sbatch, gcloud or xpk
            },
        },
    )


def build(config, example=None, mesh=None):
    """Builds the training program that a config describes.

    Args:
      config: As :func:`default_config`, with the nouns filled in.
      example: A batch, abstract or not, to check names and shapes against; by default what
        ``config.data`` gives. Nothing is compiled or put on a device.
      mesh: What the program is for: losses may name its axes, as ``axis=("data", "fsdp")``, and
        the zoo's transformers split their activations over it. None for one device.

    Returns:
      A :class:`tinker.train.Program`.

    Raises:
      UserError: A path, keyword, input name or combination that cannot work, in one line.
    """
    check_keys(config)
    nets = {"model": _build_net(config.model, "model")}
    nets |= {n: _build_net(s, f"nets.{n}") for n, s in config.nets.items()}
    program = compose(
        model=nets.pop("model"),
        nets=nets,
        loss=_build_losses(config.loss),
        gradient=_build_gradient(config),
        optimizer=_build_optimizer(config.optimizer),
        parametrization=build_parametrization(config.parametrization),
        memory=_build_memory(config.memory),
        augment=build_augment(config.data),
        accumulate=config.accumulate,
        compute_dtype=None if config.compute_dtype == "float32" else config.compute_dtype,
    )
    if mesh is not None:
        program = Program(*(under(mesh, fn) for fn in program))
    given = example is not None
    example = example if given else data_spec(config)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(program.init, key, example)
    jax.eval_shape(program.train_step, state, example)
    ctx = jax.eval_shape(lambda s, b: _arrays(program.context(s, b)), state, example)
    if config.metrics is None and given:
        return program  # the data's own metrics fit the data; it may not even be here
    for name, metric in build_metrics(config).items():
        for key in metric.inputs:
            try:
                lookup({**ctx, "apply": None}, key)
            except UserError as error:
                raise UserError(f"metrics.{name}: {error}") from None
    return program


def _arrays(ctx):
    return {k: v for k, v in ctx.items() if k != "apply"}


def check_keys(config):
    """Raises a UserError for a key that no part of a training job reads, or one not filled in."""
    known = default_config()
    for key in config:
        if key not in known:
            raise UserError(f"there is no config.{key}{nearest(key, known)}")
        as_type(config[key], known[key], f"config.{key}")
    for key in ("model", "optimizer", "loss"):
        if config.get(key) is None:
            raise UserError(f"config.{key} is not set; it takes dict(fn='package.module:name', …)")
    if config.data.get("source") is None:
        raise UserError("config.data.source is not set; `tinker data` lists the sources")


def _build_net(spec, where):
    own = ("init_from", "frozen")
    plain = {k: v for k, v in spec.items() if k not in own}
    if "fn" not in plain:
        raise UserError(f"{where} needs fn='package.module:name'")
    module = instantiate(plain, where)
    if not isinstance(module, nn.Module):
        raise UserError(f"{where}: {spec['fn']} is not a flax module")
    inputs = tuple(spec.get("inputs", ("image",) if where == "model" else ()))
    return Net(module, inputs, bool(spec.get("frozen", False)))


def _build_losses(specs):
    if is_mapping(specs):
        return _build_loss(specs, "loss")
    return [_build_loss(spec, f"loss.{i}") for i, spec in enumerate(specs)]


def _build_loss(spec, where):
    if "fn" not in spec:
        raise UserError(f"{where} needs fn='package.module:name'")
    fn, path, keywords = parts(spec, where)
    inputs = spec.get("inputs", ("logits", "label"))
    if is_mapping(inputs):
        inputs = dict(inputs)
        check_call(fn, path, {**keywords, **inputs}, where)
    else:
        inputs = tuple(inputs)
        check_call(fn, path, keywords, where, positional=len(inputs))
    scale = instantiate(spec.get("scale", 1.0), f"{where}.scale")
    return Term(fn, inputs, scale, spec.get("name"), keywords)


def _build_gradient(config):
    spec, workers = config.gradient, config.workers
    if spec is None:
        if workers:
            raise UserError(
                "config.workers is set, but there is no config.gradient to use them "
                "(tinker.optim:worker_mean does)"
            )
        return None
    fn, path, keywords = parts(spec, "gradient")
    parameters = list(signature_of(fn))
    if workers:
        if "workers" not in parameters:
            raise UserError(f"config.workers={workers}, but gradient {path} takes no workers")
        keywords.setdefault("workers", workers)
    elif "workers" in parameters and "workers" not in keywords:
        raise UserError(f"gradient {path} works on workers: set config.workers")
    if parameters[:1] == ["loss_fn"]:  # a rule without state, used as it is
        check_call(fn, path, keywords, "gradient", positional=4)
        return functools.partial(fn, **keywords)
    check_call(fn, path, keywords, "gradient")
    return called(fn, path, keywords, "gradient")


def _build_optimizer(spec):
    optimizer = instantiate(spec, "optimizer")
    if isinstance(spec, list | tuple):
        optimizer = optax.chain(*optimizer)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise UserError(f"optimizer: {spec['fn']} gives no optax.GradientTransformation")
    return optimizer


def build_parametrization(spec):
    """The parametrization of ``config.parametrization``; a list of specs is a stack."""
    built = instantiate(spec, "parametrization")
    return (
        stack(*built)
        if isinstance(built, list | tuple) and isinstance(spec, list | tuple)
        else built
    )


def _build_memory(spec):
    if spec is None:
        return None
    built = instantiate(spec, "memory")
    if isinstance(spec, list | tuple):
        names = [s.get("name") or s["fn"].partition(":")[2] for s in spec]
        return dict(zip(names, built, strict=True))
    return built


# Data.


class Stream(NamedTuple):
    """A dataset of a batch: its keys are prefixed by ``prefix`` (empty for the main one)."""

    prefix: str
    dataset: data.Dataset
    batch_size: int
    drop_remainder: bool


DATA_KEYS = ("source", "batch_size", "drop_remainder", "views", "augment", "streams", "splits")


def load_streams(config, split, training=True):
    """Loads a split of every stream that ``config.data`` names.

    Args:
      config: The config.
      split: The main stream's split. ``config.data.splits`` may rename it: ``{"train":
        "train+validation"}``.
      training: Whether the further streams are wanted too; they always give their train split.

    Returns:
      A list of :class:`Stream`, the main one first.
    """
    spec = config.data
    size = config.batch_size if training else config.eval_batch_size or config.batch_size
    streams = [_load_stream("", spec, split, size, False)]
    for name, other in spec.get("streams", {}).items() if training else ():
        size = other.get("batch_size", config.batch_size)
        streams.append(_load_stream(f"{name}/", other, "train", size, True))
    return streams


def _load_stream(prefix, spec, split, batch_size, drop):
    options = {k: v for k, v in spec.items() if k not in DATA_KEYS}
    split = spec.get("splits", {}).get(split, split)
    dataset = data.load(spec["source"], split, **options)
    return Stream(prefix, dataset, batch_size, bool(spec.get("drop_remainder", drop)))


def data_spec(config):
    """The abstract training batch of a config: ``{name: jax.ShapeDtypeStruct}``."""
    batch = {}
    for prefix, dataset, size, drop in load_streams(config, "train"):
        length = len(
            next(iter(dataset.source.values())) if data.in_memory(dataset) else dataset.source
        )
        fields = dict(data.spec(dataset, size))
        if length % size and not drop:
            fields["mask"] = jax.ShapeDtypeStruct((size,), bool)
        batch |= {prefix + k: v for k, v in fields.items()}
    return batch


def build_augment(spec):
    """The augmentation of ``config.data``, ``augment(key, batch, train) -> batch``, or None.

    ``augment`` is a list of specs whose functions map ``(key, *inputs)`` to the new inputs
    (``("image",)`` by default). With ``views=n`` it is applied n times with keys of their own, to
    give ``image/0`` … beside the untouched ``image``; a list of lists gives each view its own.
    Streams have theirs. Outside training the views are the untouched input.
    """
    plans = [("", *_plan(spec, "data"))]
    plans += [(f"{n}/", *_plan(s, f"data.streams.{n}")) for n, s in spec.get("streams", {}).items()]
    if not any(base or views for _, base, views in plans):
        return None

    def run(key, batch, steps, prefix):
        out = {}
        for i, (fn, inputs) in enumerate(steps):
            args = [out.get(n, lookup(batch, prefix + n)) for n in inputs]
            result = fn(fold_in(key, i), *args)
            out |= dict(
                zip(inputs, result if isinstance(result, tuple) else (result,), strict=True)
            )
        return out

    def augment(key, batch, train):
        batch = dict(batch)
        for prefix, base, views in plans:
            key = fold_in(key, f"stream/{prefix}")
            touched = {n: None for steps in (base, *views) for _, inputs in steps for n in inputs}
            present = [n for n in touched if prefix + n in batch]
            for v, steps in enumerate(views):
                out = run(fold_in(key, f"view/{v}"), batch, steps, prefix) if train else {}
                batch |= {f"{prefix}{n}/{v}": out.get(n, batch[prefix + n]) for n in present}
            if train and base:
                out = run(fold_in(key, "base"), batch, base, prefix)
                batch |= {prefix + n: x for n, x in out.items()}
        return batch

    return augment


def _plan(spec, where):
    """(steps for the input itself, steps per view)."""
    views, augment = spec.get("views", 0), spec.get("augment", ())
    if isinstance(views, int):
        steps = _augment_steps(augment, f"{where}.augment")
        if views and not steps:
            raise UserError(
                f"{where}.views={views} needs {where}.augment, what the views differ by"
            )
        return ([], [steps] * views) if views else (steps, [])
    steps = [_augment_steps(v, f"{where}.views.{i}") for i, v in enumerate(views)]
    return _augment_steps(augment, f"{where}.augment"), steps


def _augment_steps(specs, where):
    steps = []
    for i, spec in enumerate(specs):
        fn, path, keywords = parts(spec, f"{where}.{i}")
        inputs = tuple(spec.get("inputs", ("image",)))
        check_call(fn, path, keywords, f"{where}.{i}", positional=1 + len(inputs))
        steps.append((functools.partial(fn, **keywords), inputs))
    return steps


# Metrics.


class Metric(NamedTuple):
    """A metric's function (or :class:`tinker.metrics.SplitSums`), what it reads, and where."""

    fn: object
    inputs: tuple
    splits: tuple | None = None  # None: every split that is evaluated


def task_metrics(task):
    """The metrics of a task, as a config would name them."""
    scores = ("logits", "label")
    named = {
        "classification": {
            "accuracy": {"fn": "tinker.metrics:accuracy", "inputs": scores},
            "nll": {"fn": "tinker.metrics:nll", "inputs": scores},
        },
        "regression": {
            "mse": {"fn": "tinker.metrics:mean_squared_error", "inputs": ("logits", "target")},
            "r_squared": {"fn": "tinker.metrics:r_squared", "inputs": ("logits", "target")},
        },
        "language": {
            "bits_per_byte": {
                "fn": "tinker.metrics:bits_per_byte",
                "inputs": ("logits", "targets"),
            }
        },
    }
    return named.get(task, {})


def build_metrics(config):
    """The metrics of a config, ``{name: Metric}``: its own, or else those of the data's task."""
    specs = config.metrics
    if specs is None:
        dataset = data.load(
            config.data["source"],
            **{k: v for k, v in config.data.items() if k not in DATA_KEYS},
        )
        specs = task_metrics(dataset.info.get("task"))
    built = {}
    for name, spec in specs.items():
        where = f"metrics.{name}"
        fn, path, keywords = parts({k: v for k, v in spec.items() if k != "split"}, where)
        inputs, split = tuple(spec.get("inputs", ("logits", "label"))), spec.get("split")
        if any(p.default is p.empty for p in signature_of(fn).values()) or not inputs:
            check_call(fn, path, keywords, where, positional=len(inputs))
            if keywords:
                marked = getattr(fn, "whole_split", False)
                fn = functools.partial(fn, **keywords)
                fn.whole_split = marked
        else:
            fn = called(fn, path, keywords, where)
        splits = (split,) if isinstance(split, str) else split
        built[name] = Metric(fn, inputs, splits and tuple(splits))
    return built
