"""The losses of boxes; their overlaps are held to in tests/numerics/test_boxes.py."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.numerics.test_boxes import PREDICTED, TARGET
from tinker import losses
from tinker.numerics import UserError

GOLDEN = json.loads((ROOT / "tests" / "golden" / "diou.json").read_text())


def test_they_are_one_less_the_authors_overlap():
    where = np.arange(len(PREDICTED)) % 3 > 0
    for kind in ("iou", "giou", "diou", "ciou"):
        found = losses.box_loss(PREDICTED, TARGET, kind=kind)
        np.testing.assert_allclose(found, 1 - np.array(GOLDEN[kind]), atol=5e-6)
        np.testing.assert_allclose(losses.box_loss(TARGET, TARGET, kind=kind), 0.0, atol=1e-6)
        kept = losses.box_loss(PREDICTED, TARGET, kind=kind, where=where)
        np.testing.assert_array_equal(kept, jnp.where(where, found, 0.0))
    np.testing.assert_array_equal(
        losses.box_loss(PREDICTED, TARGET), losses.box_loss(PREDICTED, TARGET, kind="diou")
    )
    with pytest.raises(UserError, match="did you mean 'diou'"):
        losses.box_loss(PREDICTED, TARGET, kind="dious")
