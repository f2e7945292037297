"""The composition against hand-written NumPy steps of softmax regression."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tinker import losses, optim, train
from tinker.numerics import UserError

CLASSES, FEATURES, ROWS = 3, 5, 8


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(x)


class Net(nn.Module):
    norm: bool = False
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        h = nn.relu(nn.Dense(6)(x))
        if self.norm:
            h = nn.BatchNorm(use_running_average=not train, momentum=0.9)(h)
        h = nn.Dropout(self.rate, deterministic=not train)(h)
        return {"logits": nn.Dense(CLASSES)(h), "embeddings": h}


@pytest.fixture(name="batch")
def _batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(ROWS, FEATURES)).astype(np.float32),
        "label": rng.integers(0, CLASSES, ROWS),
        "where": np.arange(ROWS) % 3 > 0,
    }


def program(**changes):
    pieces = {
        "model": train.Net(Linear()),
        "loss": train.Term(losses.cross_entropy),
        "optimizer": optax.sgd(1.0),
    }
    return train.compose(**{**pieces, **changes})


def steps(prog, batch, count=1, seed=0):
    state = prog.init(jax.random.key(seed), batch)
    step = jax.jit(prog.train_step)
    for _ in range(count):
        state, metrics = step(state, batch)
    return state, metrics


def weights(state, net="model"):
    dense = state.trainable[net]["Dense_0"]
    return np.asarray(dense["kernel"], np.float64), np.asarray(dense["bias"], np.float64)


def numpy_gradients(w, b, x, y):
    """Per-example gradients of softmax cross-entropy, from the formula x (p - onehot)^T."""
    z = x.astype(np.float64) @ w + b
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    delta = p - np.eye(CLASSES)[y]
    return np.einsum("ni,nk->nik", x, delta), delta, -np.log(p[np.arange(len(y)), y])


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_mean_step_is_numpys(batch):
    prog = program()
    start = prog.init(jax.random.key(0), batch)
    w, b = weights(start)
    gw, gb, value = numpy_gradients(w, b, batch["image"], batch["label"])
    end, metrics = steps(prog, batch)
    np.testing.assert_allclose(weights(end)[0], w - gw.mean(0), atol=1e-6)
    np.testing.assert_allclose(weights(end)[1], b - gb.mean(0), atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], value.mean(), rtol=1e-6)
    norm = np.sqrt((gw.mean(0) ** 2).sum() + (gb.mean(0) ** 2).sum())
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert int(end.step) == 1


def test_sam_is_numpys(batch):
    rho = 0.3
    prog = program(gradient=functools.partial(optim.sam, rho=rho))
    w, b = weights(prog.init(jax.random.key(0), batch))
    gw, gb, value = numpy_gradients(w, b, batch["image"], batch["label"])
    gw, gb = gw.mean(0), gb.mean(0)
    norm = np.sqrt((gw**2).sum() + (gb**2).sum())
    there = w + rho * gw / norm, b + rho * gb / norm
    hw, hb, _ = numpy_gradients(*there, batch["image"], batch["label"])
    end, metrics = steps(prog, batch)
    np.testing.assert_allclose(weights(end)[0], w - hw.mean(0), atol=1e-6)
    np.testing.assert_allclose(weights(end)[1], b - hb.mean(0), atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], value.mean(), rtol=1e-6)  # unperturbed


def test_clipping_is_numpys(batch):
    clip = 1.4
    batch = batch | {"mask": np.arange(ROWS) < 6}
    prog = program(gradient=functools.partial(optim.clipped_per_example, max_norm=clip))
    w, b = weights(prog.init(jax.random.key(0), batch))
    gw, gb, value = (g[:6] for g in numpy_gradients(w, b, batch["image"], batch["label"]))
    norms = np.sqrt((gw**2).sum((1, 2)) + (gb**2).sum(1))
    factor = np.minimum(1, clip / norms)
    assert 0 < (factor < 1).sum() < 6  # the test sees both sides
    end, metrics = steps(prog, batch)
    expected = w - np.einsum("n,nik->ik", factor, gw) / 6
    np.testing.assert_allclose(weights(end)[0], expected, atol=1e-6)
    np.testing.assert_allclose(weights(end)[1], b - (factor[:, None] * gb).sum(0) / 6, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], value.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["clipped"], (factor < 1).mean())


def test_padding_counts_for_nothing(batch):
    ragged = batch | {"mask": np.arange(ROWS) < 5}
    ragged["image"] = np.where(ragged["mask"][:, None], ragged["image"], 1e4).astype(np.float32)
    cut = {k: v[:5] for k, v in batch.items()}
    contrast = train.Term(losses.info_nce, ("embeddings", "embeddings"), scale=0.3)
    for loss in (
        train.Term(losses.cross_entropy),
        train.Term(losses.cross_entropy, {"logits": "logits", "labels": "label", "where": "where"}),
        [train.Term(losses.cross_entropy), contrast],
    ):
        prog = program(model=train.Net(Net()), loss=loss)
        (a, ma), (b, mb) = steps(prog, ragged, 2), steps(prog, cut, 2)
        assert_trees_close(a.trainable, b.trainable, atol=2e-6)
        assert_trees_close(ma, mb, atol=2e-6)


@pytest.mark.parametrize("gradient", [None, optim.sam])
def test_accumulation_is_the_whole_batch(batch, gradient):
    named = {"logits": "logits", "labels": "label", "where": "where"}
    loss = [train.Term(losses.cross_entropy, named), train.Term(losses.focal, scale=0.5)]
    batch = batch | {"mask": np.arange(ROWS) != 3}
    pieces = {"model": train.Net(Net()), "loss": loss, "gradient": gradient}
    pieces["memory"] = optim.output_queue(size=ROWS)
    whole, metrics = steps(program(**pieces), batch, 2)
    parts, part_metrics = steps(program(**pieces, accumulate=4), batch, 2)
    assert_trees_close(whole.trainable, parts.trainable, atol=1e-6)
    assert_trees_close(metrics, part_metrics, atol=1e-6)
    assert_trees_close(whole.memory.rows, parts.memory.rows, atol=1e-6)


def test_workers_mean_is_the_mean(batch):
    a, _ = steps(program(), batch)
    b, _ = steps(program(gradient=optim.worker_mean(workers=4)), batch)
    assert_trees_close(a.trainable, b.trainable, atol=1e-6)
    with pytest.raises(UserError, match="workers=3 does not divide the 8 rows"):
        steps(program(gradient=optim.worker_mean(workers=3)), batch)


def test_schedules_follow_the_step(batch):
    def gap(logits, labels, *, weight=1.0):
        return weight * losses.cross_entropy(logits, labels)

    term = train.Term(gap, scale=lambda step: 2.0 * step, hyper={"weight": lambda step: 3.0 + step})
    prog = program(loss=term, optimizer=optax.sgd(0.0))
    state = prog.init(jax.random.key(0), batch)
    _, _, value = numpy_gradients(*weights(state), batch["image"], batch["label"])
    for t in range(3):
        state, metrics = prog.train_step(state, batch)
        np.testing.assert_allclose(metrics["loss"], 2 * t * (3 + t) * value.mean(), rtol=1e-5)


def test_nets_feed_each_other_and_frozen_ones_stay(batch):
    nets = {
        "teacher": train.Net(Net(), ("image",), frozen=True),
        "head": train.Net(Linear(), ("embeddings",)),
    }
    seen = {}

    def loss(logits, teacher, head):
        seen.update(logits=logits.shape, teacher=teacher.shape, head=head.shape)
        return jnp.square(logits - teacher).mean(-1) + jnp.square(head).mean(-1)

    term = train.Term(loss, ("logits", "teacher/embeddings", "head"))
    term = term._replace(inputs=("logits", "teacher/logits", "head"))
    prog = program(model=train.Net(Net()), nets=nets, loss=term)
    start = prog.init(jax.random.key(0), batch)
    end, _ = steps(prog, batch, 2)
    assert seen == {"logits": (ROWS, CLASSES), "teacher": (ROWS, CLASSES), "head": (ROWS, CLASSES)}
    assert set(end.trainable) == {"model", "head"}
    assert_trees_close(start.frozen, end.frozen, atol=0)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), start.trainable, end.trainable)
    assert moved["head"]["Dense_0"]["kernel"] > 1e-3
    assert set(prog.params(end)) == {"model", "head", "teacher"}
    outputs = prog.predict(end, batch)
    assert set(outputs) == {"logits", "embeddings", "teacher/logits", "teacher/embeddings", "head"}


def test_a_net_that_reads_another_stream_is_left_out_of_prediction(batch):
    nets = {"other": train.Net(Linear(), ("extra/image",))}
    term = train.Term(lambda logits, other: jnp.square(logits).sum(-1) + other.sum(), ())
    prog = program(nets=nets, loss=term._replace(inputs=("logits", "other")))
    state, _ = steps(prog, batch | {"extra/image": batch["image"][:2]})
    assert set(prog.predict(state, batch)) == {"logits"}
    with pytest.raises(UserError, match="nets.other: no 'extra/image'"):
        prog.init(jax.random.key(0), batch)


def test_names_reach_into_what_a_network_returns():
    ctx = {"teacher/maps": {"blocks_0": 1}, "memory": optim.Averaged({"w": 2}), "image/0": 3}
    assert train.lookup(ctx, "teacher/maps/blocks_0") == 1
    assert train.lookup(ctx, "memory/ema/w") == 2
    assert train.lookup(ctx, "image/0") == 3
    with pytest.raises(UserError, match="no 'teacher/maps/blocks_1'"):
        train.lookup(ctx, "teacher/maps/blocks_1")


def test_pretrained_weights_replace_the_drawn_ones(batch):
    prog = program(model=train.Net(Net(norm=True)))
    state, _ = steps(prog, batch, 3)
    given = {"model": {"params": prog.params(state)["model"], **state.model_state["model"]}}
    fresh = jax.jit(prog.init)(jax.random.key(7), batch, given)
    assert_trees_close(prog.predict(fresh, batch), prog.predict(state, batch), atol=1e-6)
    given["model"]["params"]["Dense_0"]["kernel"] = jnp.zeros((2, 2))
    with pytest.raises(UserError, match=r"Dense_0/kernel is \(2, 2\) there and \(5, 6\) here"):
        prog.init(jax.random.key(0), batch, given)


def test_only_the_main_forward_writes_batch_statistics(batch):
    def loss(logits, labels, apply, image):
        apply(100.0 * image)  # batch statistics of this pass are dropped
        return losses.cross_entropy(logits, labels)

    term = train.Term(loss, ("logits", "label", "apply", "image"))
    prog = program(model=train.Net(Net(norm=True)), loss=term)
    start = prog.init(jax.random.key(0), batch)
    end, _ = steps(prog, batch)
    dense = start.trainable["model"]["Dense_0"]
    hidden = np.maximum(batch["image"] @ dense["kernel"] + dense["bias"], 0)
    stats = end.model_state["model"]["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], 0.1 * hidden.mean(0), atol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * hidden.var(0), atol=1e-5)


def test_dropout_changes_with_the_step_and_the_seed_only(batch):
    prog = program(model=train.Net(Net(rate=0.5)), optimizer=optax.sgd(0.0))
    state = prog.init(jax.random.key(0), batch)
    one, first = prog.train_step(state, batch)
    _, again = prog.train_step(state, batch)
    _, second = prog.train_step(one, batch)
    assert first["loss"] == again["loss"]
    assert first["loss"] != second["loss"]
    assert prog.loss(one, batch)[0] == prog.loss(state, batch)[0]  # none outside training


def test_average_of_parameters_is_numpys(batch):
    prog = program(memory=optim.parameter_average(decay=0.9, warmup=False))
    state = prog.init(jax.random.key(0), batch)
    mean = weights(state)[0]
    for _ in range(3):
        state, _ = prog.train_step(state, batch)
        mean = 0.9 * mean + 0.1 * weights(state)[0]
    np.testing.assert_allclose(state.memory.ema["model"]["Dense_0"]["kernel"], mean, atol=1e-6)


def test_two_memories_live_side_by_side(batch):
    memory = {"ema": optim.parameter_average(), "bank": optim.output_queue(size=12)}

    def loss(logits, bank, ema):
        assert bank.shape == (12, 6)
        return jnp.square(logits).mean(-1) + 0 * ema["model"]["Dense_0"]["bias"].sum()

    term = train.Term(loss, ("logits", "memory/bank/rows", "memory/ema/ema"))
    prog = program(model=train.Net(Net()), memory=memory, loss=term, optimizer=optax.sgd(0.0))
    state, _ = steps(prog, batch, 2)
    embeddings = prog.predict(state, batch)["embeddings"]
    np.testing.assert_allclose(state.memory["bank"].rows[:ROWS], embeddings, atol=1e-6)
    np.testing.assert_allclose(state.memory["bank"].rows[ROWS:], embeddings[:4], atol=1e-6)
    assert int(state.memory["bank"].filled) == 12


def test_networks_compute_in_the_dtype_asked(batch):
    seen = {}

    class Spy(nn.Module):
        @nn.compact
        def __call__(self, x):
            out = nn.Dense(CLASSES)(x)
            seen.update(x=x.dtype, out=out.dtype)
            return out

    prog = program(model=train.Net(Spy()), compute_dtype="bfloat16")
    state, metrics = steps(prog, batch)
    assert seen == {"x": jnp.bfloat16, "out": jnp.bfloat16}
    assert state.trainable["model"]["Dense_0"]["kernel"].dtype == jnp.float32
    assert metrics["loss"].dtype == jnp.float32


def test_a_term_over_another_stream_joins_by_its_mean(batch):
    batch = batch | {"extra/image": batch["image"][:4] * 2, "mask": np.ones(ROWS, bool)}

    def consistency(apply, image):
        return jnp.square(apply(image)).sum(-1)

    loss = [
        train.Term(losses.cross_entropy),
        train.Term(consistency, ("apply", "extra/image"), scale=0.1),
    ]
    prog = program(loss=loss)
    start = prog.init(jax.random.key(0), batch)
    w, b = weights(start)
    gw, _, _ = numpy_gradients(w, b, batch["image"], batch["label"])
    x = batch["extra/image"].astype(np.float64)
    extra = np.einsum("ni,nk->ik", x, 2 * (x @ w + b)) / 4
    end, metrics = steps(prog, batch)
    np.testing.assert_allclose(weights(end)[0], w - gw.mean(0) - 0.1 * extra, atol=1e-5)
    np.testing.assert_allclose(
        metrics["loss/consistency"], 0.1 * ((x @ w + b) ** 2).sum(1).mean(), rtol=1e-5
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"model": train.Net(Net(norm=True)), "accumulate": 2},
            "keeps batch_stats.*accumulation",
        ),
        (
            {"model": train.Net(Net(norm=True)), "gradient": optim.clipped_per_example},
            "keeps batch_stats.*per-example",
        ),
        (
            {"loss": train.Term(losses.info_nce, ("logits", "logits")), "accumulate": 2},
            "info_nce.*couples.*accumulation",
        ),
        (
            {
                "loss": train.Term(losses.info_nce, ("logits", "logits")),
                "gradient": functools.partial(optim.clipped_per_example, max_norm=1.0),
            },
            "info_nce.*couples.*per-example",
        ),
        ({"loss": train.Term(losses.cross_entropy, ("logit", "label"))}, "did you mean 'logits'"),
        ({"model": train.Net(Linear(), ("imag",))}, "model: no 'imag'.*did you mean 'image'"),
        ({"accumulate": 3}, "accumulate=3 does not divide the 8 rows"),
    ],
)
def test_mistakes_are_told_in_one_line(batch, changes, message):
    with pytest.raises(UserError, match=message) as error:
        steps(program(**changes), batch)
    assert "\n" not in str(error.value)


def test_a_loss_of_one_number_refuses_padding(batch):
    def mean_loss(logits, labels):
        return losses.cross_entropy(logits, labels).mean()

    def decay(params):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    padded = batch | {"mask": np.arange(ROWS) < 5}
    with pytest.raises(UserError, match="drop_remainder"):
        steps(program(loss=train.Term(mean_loss)), padded)
    steps(program(loss=[train.Term(losses.focal), train.Term(decay, ("params",))]), padded)
