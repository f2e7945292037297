"""Composition: pure pieces become a program of pure functions.

A program knows nothing of loops, files or devices. Its state is one pytree, so that it can be
jitted, sharded, checkpointed, vmapped over seeds or stepped by hand in a notebook.
"""

import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax

from tinker.numerics import UserError, fold_in, nearest
from tinker.optim.rules import as_gradient, mean_loss, merge_aux


@flax.struct.dataclass
class State:
    """Everything a run carries from step to step; one pytree.

    ``key`` never changes: the key of step t is ``fold_in(key, t)``. ``frozen`` and
    ``model_state`` are keyed by network (``"model"`` and the names in ``nets``).
    """

    step: jax.Array
    key: jax.Array
    trainable: Any
    base: Any
    frozen: Any
    model_state: Any
    opt_state: Any
    gradient_state: Any
    memory: Any


class Program(NamedTuple):
    """The pure functions of a training program; see :func:`compose`."""

    init: Callable
    train_step: Callable
    predict: Callable
    context: Callable
    loss: Callable
    params: Callable


class Net(NamedTuple):
    """A flax module and the names of what it reads; outputs of earlier networks included."""

    module: Any
    inputs: tuple = ("image",)
    frozen: bool = False


class Term(NamedTuple):
    """A loss function, what it reads, and its weight.

    ``inputs`` is a tuple of names (given by position) or a mapping from parameter to name;
    a ``where`` in the mapping is the weight of the mean as well. ``scale``, and any keyword
    whose default is a number, may be a schedule: a function of the step.
    """

    fn: Callable
    inputs: tuple | Mapping = ("logits", "label")
    scale: Any = 1.0
    name: str | None = None
    hyper: Mapping = {}


def lookup(ctx, name):
    """Finds ``name`` in a context: a key of its own, or a path into one (``"memory/ema"``)."""
    parts = name.split("/")
    for end in range(len(parts), 0, -1):  # the longest key that is there, then what lies in it
        head = "/".join(parts[:end])
        if head in ctx:
            value, rest = ctx[head], parts[end:]
            while rest and _has(value, rest[0]):
                value = value[rest[0]] if isinstance(value, Mapping) else getattr(value, rest[0])
                rest = rest[1:]
            if not rest:
                return value
    raise UserError(
        f"no {name!r} to read; there is: {', '.join(sorted(ctx))}{nearest(name, sorted(ctx))}"
    )


def _has(value, part):
    return part in value if isinstance(value, Mapping) else hasattr(value, part)


def compose(
    *,
    model,
    loss,
    optimizer,
    nets=None,
    gradient=None,
    parametrization=None,
    memory=None,
    augment=None,
    accumulate=1,
    compute_dtype=None,
):
    """Composes a training program.

    Args:
      model: A :class:`Net`, or a flax module reading ``"image"``. A dict it returns is merged
        into the context; an array is called ``logits``.
      loss: A :class:`Term` or a list of them, whose sum is minimised.
      optimizer: An ``optax.GradientTransformation`` (extra args: value, grad, value_fn).
      nets: Further networks, ``{name: Net}``, run after the model in this order. Outputs appear
        as ``name/key`` (``name`` where the network returns an array); the unfrozen ones are
        trained. Outputs that nothing reads cost nothing under jit.
      gradient: A gradient rule: an ``(init, step)`` pair such as :class:`tinker.optim.Gradient`,
        or a plain function ``(loss_fn, trainable, key, batch) -> (grads, aux)``. The mean
        gradient by default.
      parametrization: ``(init, materialize[, update])``, see :mod:`tinker.compress`.
      memory: An ``(init, update)`` pair, or a dict of pairs by name.
      augment: ``augment(key, batch, train) -> batch``, part of the compiled step.
      accumulate: Microbatches per step; the batch size must be a multiple.
      compute_dtype: dtype in which networks compute; parameters stay as they are.

    Returns:
      A :class:`Program` of

      - ``init(key, batch, pretrained=None) -> State``; ``pretrained`` maps a network's name to
        flax variables that replace what it drew.
      - ``train_step(state, batch) -> (State, metrics)``
      - ``predict(state, batch) -> outputs``, without augmentation or dropout
      - ``context(state, batch) -> ctx``, all that a metric may read
      - ``loss(state, batch) -> (total, terms)``, evaluated as in prediction
      - ``params(state)``, the parameters that the networks see, by network

      A batch is a dict of arrays with the batch on their leading axis. A boolean ``mask``
      ``[batch]`` marks the examples that count.

    Raises:
      UserError: A rule that needs per-example gradients, or accumulation, met a loss that couples
        the batch or a network with batch statistics.
    """
    nets = {"model": model if isinstance(model, Net) else Net(model), **(nets or {})}
    terms = _named([loss] if isinstance(loss, Term) else list(loss))
    rule = as_gradient(gradient)
    p_init, p_materialize, *p_update = (parametrization or IDENTITY)[:3]
    p_update = p_update[0] if p_update else None
    memories = memory if isinstance(memory, Mapping) or memory is None else {"": memory}
    optimizer = optax.with_extra_args_support(optimizer)
    augment = augment or (lambda key, batch, train: batch)
    splits = "per-example gradients" if rule.per_example else None
    splits = splits or ("gradient accumulation" if accumulate > 1 else None)
    for term in terms:
        if splits and getattr(_unwrapped(term.fn), "batch_coupled", False):
            raise UserError(
                f"loss {term.name!r} couples the examples of a batch, so it cannot be used with "
                f"{splits}; set accumulate=1 and a gradient rule over whole batches"
            )

    def materialize(state, key, train):
        key = fold_in(key, "materialize")
        return p_materialize(state.trainable, state.base, step=state.step, key=key, train=train)

    def forward(batch, call, skip=False):
        """Runs every network in turn; ``call(name, net, args)`` returns (output, new state).

        With ``skip`` a net is left out if the batch lacks what it reads: another stream, say.
        """
        outputs, model_state = {}, {}
        for name, net in nets.items():
            try:
                args = [lookup({**batch, **outputs}, k) for k in net.inputs]
            except UserError as error:
                if skip and name != "model":
                    continue
                raise UserError(f"{'' if name == 'model' else 'nets.'}{name}: {error}") from None
            out, model_state[name] = call(name, net, args)
            if isinstance(out, Mapping):
                outputs |= {(k if name == "model" else f"{name}/{k}"): v for k, v in out.items()}
            else:
                outputs["logits" if name == "model" else name] = out
        return outputs, model_state

    def make_context(state, batch, outputs, params, key):
        everything, calls = {**params, **state.frozen}, itertools.count()

        def apply(*inputs, net="model", params=None, train=True, method=None):
            if net not in nets:
                raise UserError(f"no network {net!r}: {', '.join(nets)}{nearest(net, nets)}")
            weights = (everything if params is None else {**everything, **params})[net]
            call_key = fold_in(fold_in(key, "apply"), next(calls))
            stored = state.model_state[net]
            out, _ = _call(
                nets[net], weights, stored, inputs, call_key, train, compute_dtype, method
            )
            return out

        slow = {"trainable": state.trainable, "memory": state.memory, "step": state.step}
        return {**batch, **outputs, **slow, "params": everything, "key": key, "apply": apply}

    def observe(state, batch, key, train):
        """The main forward: (context, outputs, new model state)."""
        params = materialize(state, key, train)

        def call(name, net, args):
            weights = (state.frozen if net.frozen else params)[name]
            mode, stored = train and not net.frozen, state.model_state[name]
            return _call(net, weights, stored, args, fold_in(key, name), mode, compute_dtype)

        outputs, model_state = forward(batch, call, skip=not train)
        return make_context(state, batch, outputs, params, key), outputs, model_state

    def evaluate_terms(state, key, batch, train):
        """Each term's weighted sum per example (or a scalar) and its weights, before the mean."""
        ctx, outputs, model_state = observe(state, batch, key, train)
        streams = {k.split("/")[0] for k in batch if "/" in k} - batch.keys()
        sums, weights = {}, {}
        for term in terms:
            scoped = {**ctx, "key": fold_in(key, f"loss/{term.name}")}
            try:
                sums[term.name], weights[term.name] = _evaluate(term, scoped, state.step, streams)
            except UserError as error:
                raise UserError(f"loss {term.name!r}: {error}") from None
        return sums, weights, {"model_state": model_state, "outputs": outputs if memories else {}}

    def combine(state, sums, totals, parts=1):
        """Per-example losses whose mean is the loss (a scalar where no term is per example).

        ``totals`` are the terms' summed weights over all ``parts`` of the batch, of which
        ``sums`` hold one.
        """
        means, scaled = {}, {}
        for term in terms:
            value, scale = sums[term.name], _at(term.scale, state.step)
            if value.ndim:
                value = value * (value.shape[0] * parts / jnp.maximum(totals[term.name], 1e-12))
            scaled[term.name] = scale * value
            means[term.name] = scaled[term.name].mean()
        # A term over another stream has another length: only its mean can join the others.
        length = next((v.shape for v in scaled.values() if v.ndim), ())
        total = sum(v if v.shape == length else means[n] for n, v in scaled.items())
        return total, means

    def loss_function(state, train=True):
        def loss_fn(trainable, key, batch):
            def piece(trainable, key, batch):
                return evaluate_terms(state.replace(trainable=trainable), key, batch, train)

            if accumulate == 1 or not train:
                sums, weights, aux = piece(trainable, key, batch)
            else:  # any rule sees the whole batch's losses; activations live for a microbatch
                parts = _microbatches(key, batch, accumulate)
                one = jax.checkpoint(piece)
                sums, weights, aux = jax.lax.map(lambda part: one(trainable, *part), parts)
                sums = {n: v.mean() if v.ndim == 1 else v.reshape(-1) for n, v in sums.items()}
                aux = merge_aux(aux, _sizes(batch, accumulate))
            losses, means = combine(state, sums, {n: w.sum() for n, w in weights.items()})
            return losses, aux | {"losses": means}

        return loss_fn

    def accumulated_gradient(state, key, batch):
        """The mean gradient over microbatches, without the recomputation a general rule needs."""
        parts = _microbatches(key, batch, accumulate)
        # A pass for the weights alone: dead code but for a `where` that reads the network.
        weights = jax.lax.map(lambda part: evaluate_terms(state, *part, True)[1], parts)
        totals = {n: w.sum() for n, w in weights.items()}

        def part_loss(trainable, part):
            sums, _, aux = evaluate_terms(state.replace(trainable=trainable), *part, True)
            losses, means = combine(state, sums, totals, parts=accumulate)
            return losses.mean() / accumulate, aux | {"losses": means}

        def body(grads, part):
            g, aux = jax.grad(part_loss, has_aux=True)(state.trainable, part)
            return jax.tree.map(jnp.add, grads, g), aux

        zeros = jax.tree.map(jnp.zeros_like, state.trainable)
        grads, aux = jax.lax.scan(body, zeros, parts)
        return grads, merge_aux(aux, _sizes(batch, accumulate))

    def init(key, batch, pretrained=None):
        batch = augment(fold_in(key, "augment"), batch, True)
        params, frozen = {}, {}

        def call(name, net, args):
            rngs = {s: fold_in(fold_in(key, f"init/{name}"), s) for s in ("params", "dropout")}
            out, variables = net.module.init_with_output(rngs, *args, **_mode(net.module, False))
            variables = _pretrained(name, pretrained or {}, dict(variables))
            (frozen if net.frozen else params)[name] = variables.pop("params", {})
            return out, variables

        state = State(jnp.zeros((), jnp.int32), key, params, (), frozen, {}, (), (), ())
        outputs, model_state = forward(batch, call)
        for name, stored in model_state.items():
            if splits and stored and not nets[name].frozen:
                raise UserError(
                    f"network {name!r} keeps {', '.join(stored)}, which couples the examples of a "
                    f"batch, so it cannot be used with {splits}; use another norm"
                )
        state = state.replace(model_state=model_state)
        ctx = make_context(state, batch, outputs, params, key)
        trainable, base = p_init(fold_in(key, "parametrization"), params, ctx)
        state = state.replace(
            trainable=trainable,
            base=base,
            opt_state=optimizer.init(trainable),
            gradient_state=rule.init(trainable),
        )
        if memories:
            ctx = make_context(state, batch, outputs, materialize(state, key, False), key)
            slow = {n: m[0](fold_in(key, f"memory/{n}"), ctx) for n, m in memories.items()}
            state = state.replace(memory=slow[""] if "" in memories else slow)
        return state

    def update_memory(state, batch, outputs, key):
        params = materialize(state, key, False)
        ctx = make_context(state, batch, outputs, params, fold_in(key, "memory"))
        if "" in memories:
            return memories[""][1](state.memory, ctx)
        return {name: m[1](state.memory[name], ctx) for name, m in memories.items()}

    def train_step(state, batch):
        key = fold_in(state.key, state.step)
        batch = augment(fold_in(key, "augment"), batch, True)
        loss_fn, gradient_key = loss_function(state), fold_in(key, "gradient")
        gradient_state = state.gradient_state
        if gradient is None and accumulate > 1:
            grads, aux = accumulated_gradient(state, gradient_key, batch)
        else:
            seen = _leading(batch, rule.workers, "workers") if rule.workers else batch
            grads, aux, gradient_state = rule.step(
                loss_fn, gradient_state, state.trainable, gradient_key, seen
            )
        value = sum(aux["losses"].values())
        updates, opt_state = optimizer.update(
            grads,
            state.opt_state,
            state.trainable,
            value=value,
            grad=grads,
            value_fn=lambda t: mean_loss(loss_fn)(t, gradient_key, batch)[0],
        )
        trainable, base = optax.apply_updates(state.trainable, updates), state.base
        if p_update is not None:
            update_key = fold_in(key, "update")
            trainable, base = p_update(trainable, base, grads, step=state.step, key=update_key)
        state = state.replace(
            step=state.step + 1,
            trainable=trainable,
            base=base,
            model_state=aux["model_state"],
            opt_state=opt_state,
            gradient_state=gradient_state,
        )
        if memories:
            state = state.replace(memory=update_memory(state, batch, aux["outputs"], key))
        named = {f"loss/{n}": v for n, v in aux["losses"].items()} if len(terms) > 1 else {}
        metrics = {"loss": value, **named, "grad_norm": optax.global_norm(grads)}
        return state, metrics | aux.get("metrics", {})

    def context(state, batch):
        key = fold_in(state.key, "predict")
        return observe(state, augment(key, batch, False), key, False)[0]

    def predict(state, batch):
        key = fold_in(state.key, "predict")
        return observe(state, augment(key, batch, False), key, False)[1]

    def evaluate_loss(state, batch):
        key = fold_in(state.key, "predict")
        batch = augment(key, batch, False)
        losses, aux = loss_function(state, train=False)(state.trainable, key, batch)
        return losses.mean(), aux["losses"]

    def params_of(state):
        return {**materialize(state, fold_in(state.key, "predict"), False), **state.frozen}

    return Program(init, train_step, predict, context, evaluate_loss, params_of)


IDENTITY = (
    lambda key, params, ctx: (params, ()),
    lambda trainable, base, *, step, key, train: trainable,
)


def _named(terms):
    """Gives every term a name of its own: its function's, numbered where two share it."""
    names, named = set(), []
    for term in terms:
        stem = term.name or getattr(_unwrapped(term.fn), "__name__", "loss")
        fresh = (stem if i == 0 else f"{stem}_{i}" for i in itertools.count())
        name = next(n for n in fresh if n not in names)
        names.add(name)
        named.append(term._replace(name=name))
    return named


def _unwrapped(fn):
    while hasattr(fn, "func"):
        fn = fn.func
    return fn


def _at(value, step):
    return value(step) if callable(value) else value


def _evaluate(term, ctx, step, streams):
    """Evaluates a term: (weighted sums [batch] or a scalar, weights)."""
    parameters = inspect.signature(term.fn).parameters
    hyper = {}
    for name, value in term.hyper.items():
        default = parameters[name].default if name in parameters else None
        is_number = isinstance(default, int | float) and not isinstance(default, bool)
        hyper[name] = _at(value, step) if is_number else value
    named = isinstance(term.inputs, Mapping)
    names = list(term.inputs.values() if named else term.inputs)
    read = [lookup(ctx, n) for n in names]
    args = () if named else read
    hyper |= dict(zip(term.inputs, read, strict=True)) if named else {}

    # The padding of the main stream, unless the term reads another one alone.
    mask, coupled = ctx.get("mask"), getattr(_unwrapped(term.fn), "batch_coupled", False)
    heads = [n.split("/")[0] for n in names]
    rows = [getattr(x, "shape", ())[:1] for x in read]
    in_main = mask is not None and any(
        r == mask.shape and h not in streams for r, h in zip(rows, heads, strict=True)
    )
    others = [h for h in heads if h in streams]
    if others and not in_main:
        mask = ctx.get(f"{others[0]}/mask")
    where = hyper.get("where")
    if mask is not None and coupled:
        if "where" not in parameters:
            raise UserError(
                "it couples the examples of a batch and takes no `where`, so it cannot leave out "
                "the padding of a last batch; set data.drop_remainder=True"
            )
        hyper["where"] = mask if where is None else where & _expand(mask, where)

    value = term.fn(*args, **hyper)
    value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
    if value.ndim == 0:
        if mask is not None and not coupled and mask.shape in rows:
            raise UserError(
                "it returns one number for the batch, which would count the padding of a last "
                "batch; set data.drop_remainder=True"
            )
        return value, jnp.ones(())
    weight = jnp.ones(value.shape, value.dtype)
    for w in (where, mask):
        if w is not None:
            weight = weight * _expand(w, value)
    value = jnp.where(weight != 0, value, 0.0) * weight
    return value.reshape(value.shape[0], -1).sum(1), weight


def _expand(mask, like):
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def _mode(module, train, method=None):
    """How a module is told whether it trains: flax's two conventions, or not at all."""
    call = getattr(module, method) if isinstance(method, str) else method or module.__call__
    parameters = inspect.signature(call).parameters
    if "train" in parameters:
        return {"train": train}
    return {"deterministic": not train} if "deterministic" in parameters else {}


def _call(net, params, stored, args, key, train, dtype, method=None):
    """Applies a network; returns its output and its new state (unchanged unless training)."""
    if dtype is not None:
        floating = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.floating)  # noqa: E731
        cast = lambda x: x.astype(dtype) if floating(x) else x  # noqa: E731
        params, args = jax.tree.map(cast, (params, list(args)))
    mutable = list(stored) if train and stored else False
    out = net.module.apply(
        {"params": params, **stored},
        *args,
        **_mode(net.module, train, method),
        rngs={s: fold_in(key, s) for s in ("params", "dropout")},
        mutable=mutable,
        method=method,
    )
    return out if mutable else (out, stored)


def _pretrained(name, pretrained, drawn):
    """What the network starts from: ``pretrained[name]`` where given, of the shapes drawn."""
    if name not in pretrained:
        return drawn
    given = dict(pretrained[name])
    shapes = lambda tree: {  # noqa: E731
        jax.tree_util.keystr(p, simple=True, separator="/"): jnp.shape(x)
        for p, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    have, want = shapes(given), shapes(drawn)
    for path in sorted(have.keys() | want.keys()):
        if have.get(path) != want.get(path):
            raise UserError(
                f"network {name!r} cannot start from these weights: {path} is "
                f"{have.get(path, 'absent')} there and {want.get(path, 'absent')} here"
            )
    return given


def _leading(batch, parts, what):
    """Splits the leading axis of every array: [batch, …] -> [parts, batch / parts, …]."""
    for name, x in batch.items():
        if x.shape[0] % parts:
            raise UserError(f"{what}={parts} does not divide the {x.shape[0]} rows of {name!r}")
    return {k: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]) for k, x in batch.items()}


def _microbatches(key, batch, parts):
    return jax.random.split(key, parts), _leading(batch, parts, "accumulate")


def _sizes(batch, parts):
    return {x.shape[0] // parts for x in batch.values()}
