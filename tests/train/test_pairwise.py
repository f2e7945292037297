"""Every pair of nouns' members together, and the scanned model beside the unrolled one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.models.drawing import jit
from tests.train.contracts import base
from tinker import compress, losses, models, optim, train

SIDE, CLASSES, ROWS = 8, 10, 8

MODELS = {
    "MLP": {"hidden": (8,)},
    "CNN": {"widths": (4, 4)},
    "ViT": {"patch": 4, "depth": 2, "width": 8, "heads": 2},
    "ViT ": {"patch": 4, "depth": 2, "width": 8, "heads": 2, "scan": True, "remat": "full"},
}
LOSSES = {
    "cross_entropy": {},
    "focal": {},
    "cross_entropy ": {"label_smoothing": 0.1},
    "info_nce": {"inputs": ("embeddings", "embeddings")},
}
GRADIENTS = {
    "mean_gradient": {},
    "sam": {"rho": 0.1},
    "clipped_per_example": {"max_norm": 0.5},
    "worker_mean": {"workers": 2},
}
OPTIMIZERS = {
    "optax:sgd": {"learning_rate": 0.1, "momentum": 0.9},
    "optax:adamw": {"learning_rate": 1e-3},
    "optax:lion": {"learning_rate": 1e-4},
    "optax:adafactor": {"learning_rate": 1e-3},
}
PARAMETRIZATIONS = {
    "none": None,
    "masked": {"sparsity": 0.5},
    "quantize": {"bits": 4},
    "lora": {"rank": 2, "full": "head"},
}
MEMORIES = {"none": None, "parameter_average": {}, "output_queue": {"size": 12}}
NOUNS = (MODELS, LOSSES, GRADIENTS, OPTIMIZERS, PARAMETRIZATIONS, MEMORIES)
REFUSED = {("info_nce", "clipped_per_example")}


def covering_array(nouns, refused, seed=0):
    """Rows in which every allowed pair of two nouns' members stands together; greedy."""
    rng = np.random.default_rng(seed)
    names = [list(n) for n in nouns]
    places = list(itertools.combinations(range(len(names)), 2))
    missing = {
        (i, a, j, b)
        for i, j in places
        for a, b in itertools.product(names[i], names[j])
        if (a, b) not in refused
    }
    rows = []
    while missing:
        candidates = [tuple(n[rng.integers(len(n))] for n in names) for _ in range(200)]
        i, a, j, b = min(missing)
        candidates = [
            tuple(a if k == i else b if k == j else x for k, x in enumerate(row))
            for row in candidates
        ]
        candidates = [r for r in candidates if not set(itertools.permutations(r, 2)) & refused]
        pairs = [{(i, r[i], j, r[j]) for i, j in places} & missing for r in candidates]
        best = max(range(len(candidates)), key=lambda k: len(pairs[k]))
        rows.append(candidates[best])
        missing -= pairs[best]
    return rows


ARRAY = covering_array(NOUNS, REFUSED)


def spec(room, name, options):
    return None if name == "none" else {"fn": f"tinker.{room}:{name.strip()}", **options}


@pytest.mark.parametrize("row", ARRAY, ids="-".join)
def test_a_pair_of_members_trains_together(row):
    model, loss, gradient, optimizer, parametrization, memory = row
    config = base(
        model={**spec("models", model, MODELS[model]), "classes": CLASSES, "inputs": ("image",)},
        loss={"inputs": ("logits", "label"), **spec("losses", loss, LOSSES[loss])},
        gradient=spec("optim", gradient, GRADIENTS[gradient]),
        optimizer={"fn": optimizer, **OPTIMIZERS[optimizer]},
        parametrization=spec("compress", parametrization, PARAMETRIZATIONS[parametrization]),
        memory=spec("optim", memory, MEMORIES[memory]),
        batch_size=ROWS,
    )
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.uniform(size=(ROWS, SIDE, SIDE, 1)).astype(np.float32),
        "label": rng.integers(0, CLASSES, ROWS).astype(np.int32),
    }
    program = train.build(config, batch)
    start = jit(program.init)(jax.random.key(0), batch)
    state, metrics = jit(program.train_step)(start, batch)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.trainable))
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), start.trainable, state.trainable)
    assert max(jax.tree.leaves(moved)) > 0


def test_the_array_holds_every_pair():
    for (i, first), (j, second) in itertools.combinations(enumerate(NOUNS), 2):
        found = {(row[i], row[j]) for row in ARRAY}
        wanted = set(itertools.product(first, second)) - REFUSED
        assert found >= wanted
        assert not found & REFUSED
    assert len(ARRAY) < 32  # of 3,072 combinations


@pytest.mark.parametrize(
    "optimizer, parametrization",
    [
        (optax.sgd(0.1, momentum=0.9), None),
        (optax.adamw(1e-2, eps=1e-3), compress.quantize(bits=4)),
        (optax.rmsprop(1e-3, eps=1e-3), compress.masked(sparsity=0.5)),
        (optax.sgd(0.1), compress.gradually_pruned(sparsity=0.8, end=2, every=1)),
    ],
    ids=["sgd", "adamw-quantize", "rmsprop-masked", "sgd-pruned"],
)
def test_scanned_and_unrolled_take_equal_steps(optimizer, parametrization):
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.uniform(size=(ROWS, SIDE, SIDE, 1)).astype(np.float32),
        "label": rng.integers(0, CLASSES, ROWS).astype(np.int32),
    }
    seen = []
    for scan in (False, True):
        model = models.ViT(patch=4, depth=3, width=8, heads=2, scan=scan)
        program = train.compose(
            model=model,
            loss=train.Term(losses.cross_entropy),
            optimizer=optimizer,
            parametrization=parametrization,
            gradient=optim.sam,
        )
        params = models.ViT(patch=4, depth=3, width=8, heads=2).init(
            jax.random.key(1), batch["image"]
        )["params"]
        given = {"model": {"params": models.stack_layers(params) if scan else params}}
        state = jit(program.init)(jax.random.key(0), batch, given)
        step = jit(program.train_step)
        for _ in range(3):
            state, metrics = step(state, batch)
        params = program.params(state)["model"]
        seen.append((params if scan else models.stack_layers(params), metrics["loss"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *seen)
