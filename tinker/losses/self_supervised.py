"""Losses without labels: a student predicts its teacher's assignment to prototypes."""

import chex
import jax
import jax.numpy as jnp

from tinker.numerics import UserError, check_choice, l2_normalize, log_vmf_const

PROTOTYPES = ("vmf", "normalized", "unnormalized")


def prototype_logits(embeddings, prototypes, *, temperature=0.1, variant="vmf"):
    r"""Scores of embeddings against prototypes, as components of a mixture on the sphere.

    .. math:: l_k = \frac{w_k \cdot y}{\tau} + \log C_p(\kappa_k), \qquad
              \kappa_k = \frac{\lVert w_k \rVert}{\tau}

    with y scaled to unit length. The softmax of these is the posterior of a mixture of von
    Mises-Fisher densities of mean :math:`w_k / \lVert w_k \rVert` and precision
    :math:`\kappa_k`. "unnormalized" leaves the constant out, "normalized" scales the prototypes to
    unit length too, so that all precisions are :math:`1 / \tau`: the two forms of DINO.

    Args:
      embeddings: y, ``[..., dim]``, any float dtype; computed in float32 at least.
      prototypes: w, ``[K, dim]``.
      temperature: :math:`\tau` > 0.
      variant: "vmf", "normalized" or "unnormalized".

    Returns:
      Logits, ``[..., K]``, float32.

    Raises:
      UserError: An unknown variant.

    Source: DINO as a von Mises-Fisher mixture model, ICLR 2023, arXiv:2405.10939, the logits of
      DINO-vMF. The constant is exact, where the paper keeps the leading term of its expansion;
      prototypes are parameters as they are, where the authors' are weight-normalised.
    """
    check_choice("variant", variant, PROTOTYPES)
    chex.assert_rank(prototypes, 2)
    chex.assert_axis_dimension(embeddings, -1, prototypes.shape[-1])
    y = l2_normalize(embeddings)
    w = prototypes.astype(y.dtype)
    w = l2_normalize(w) if variant == "normalized" else w
    logits = jnp.einsum("...d,kd->...k", y, w, precision="highest") / temperature
    if variant == "vmf":
        length = jnp.sqrt(jnp.maximum(jnp.sum(w * w, -1), 1e-24))  # its gradient at 0 is 0
        logits = logits + log_vmf_const(length / temperature, dim=w.shape[-1])
    return logits


def dino_loss(student_logits, teacher_logits, center=0.0):  # mutate: equivalent
    r"""Cross-entropy of the student's assignment to the teacher's, between different views.

    .. math:: \ell = -\frac{1}{|\{t \ne s\}|} \sum_{t \ne s} \sum_k
              \mathrm{softmax}(l^{teacher}_t - c)_k \log \mathrm{softmax}(l^{student}_s)_k

    Logits are those of :func:`prototype_logits`, temperatures included; c is on their scale. No
    gradient reaches the teacher.

    Args:
      student_logits: ``[batch, student_views, K]``, any float dtype; computed in float32 at least.
      teacher_logits: ``[batch, teacher_views, K]``, of the first of the student's views.
      center: c, ``[K]``: the logarithm of the mean probabilities, so that rare prototypes are
        raised, or DINO's mean of the logits, see :func:`tinker.optim.teacher_center`. 0 is none.

    Returns:
      Loss per example in nats, ``[batch]``, float32.

    Raises:
      UserError: A single view.

    Source: Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021,
      arXiv:2104.14294, the multi-crop loss and Algorithm 1.
    """
    chex.assert_rank([student_logits, teacher_logits], 3)
    chex.assert_equal_shape_prefix([student_logits, teacher_logits], 1)
    chex.assert_axis_dimension(teacher_logits, -1, student_logits.shape[-1])
    views = teacher_logits.shape[1], student_logits.shape[1]
    pairs = ~jnp.eye(*views, dtype=bool)
    if views == (1, 1):
        raise UserError("dino_loss compares different views; the student sees one only")
    chex.assert_scalar_in(views[0], 1, views[1])
    cost = -jnp.einsum(
        "btk,bsk->bts", _targets(teacher_logits, center), _log_softmax(student_logits)
    )
    return jnp.mean(cost, (1, 2), where=pairs)


def ibot_loss(student_logits, teacher_logits, center=0.0, *, where):  # mutate: equivalent
    r"""Cross-entropy of the student's masked patches to the teacher's same patches, unmasked.

    .. math:: \ell = -\frac{1}{\sum_i m_i} \sum_i m_i \sum_k
              \mathrm{softmax}(l^{teacher}_i - c)_k \log \mathrm{softmax}(l^{student}_i)_k

    Args:
      student_logits: Of patches of images seen with holes, ``[batch, patches, K]``, any float
        dtype; computed in float32 at least.
      teacher_logits: Of the same patches of the whole images, ``[batch, patches, K]``. No gradient
        reaches them.
      center: What to subtract from the teacher's, as in :func:`dino_loss`; patches have their own.
      where: m, which patches were masked, boolean ``[batch, patches]``.

    Returns:
      Loss per example in nats, ``[batch]``, float32; 0 where no patch is masked.

    Source: iBOT: Image BERT Pre-Training with Online Tokenizer, ICLR 2022, arXiv:2111.07832, the
      masked image modelling loss; as a mixture, with :func:`prototype_logits`, in DINO as a von
      Mises-Fisher mixture model, ICLR 2023, arXiv:2405.10939.
    """
    chex.assert_equal_shape([student_logits, teacher_logits])
    chex.assert_shape(where, student_logits.shape[:2])
    cost = -jnp.sum(_targets(teacher_logits, center) * _log_softmax(student_logits), -1)
    return jnp.where(where, cost, 0.0).sum(1) / jnp.maximum(where.sum(1), 1)


def teacher_logits(apply, params, *images, temperature=0.04, variant="vmf"):
    """Logits of views as the teacher sees them, each by itself.

    Args:
      apply: ``apply(*inputs, net=, params=, train=)``, of a program whose network ``model`` returns
        ``projections [batch, dim]`` and whose network ``prototypes`` returns ``[K, dim]``.
      params: The teacher's parameters, by network.
      *images: Views, ``[batch, …]`` each.
      temperature: The teacher's, > 0.
      variant: As in :func:`prototype_logits`.

    Returns:
      Logits, ``[batch, views, K]``, float32.
    """
    seen = [apply(x, params=params, train=False)["projections"] for x in images]
    prototypes = apply(net="prototypes", params=params, train=False)
    return prototype_logits(
        jnp.stack(seen, 1), prototypes, temperature=temperature, variant=variant
    )


def self_distillation(
    projections,
    prototypes,
    apply,
    teacher,
    center,
    *images,
    student_temperature=0.1,
    teacher_temperature=0.04,
    variant="vmf",
):
    """DINO as a program's loss: :func:`dino_loss` against a teacher of averaged parameters.

    It reads ``("projections", "prototypes", "apply", "memory/teacher/ema",
    "memory/center/value", "image/0", "image/1")`` where the model is a
    :class:`tinker.models.Siamese` over the views, ``nets.prototypes`` a
    :class:`tinker.nn.Prototypes`, and the memories are :func:`tinker.optim.parameter_average`
    and :func:`tinker.optim.teacher_center`.

    Args:
      projections: The student's, ``[batch, views, dim]``, any float dtype.
      prototypes: The student's, ``[K, dim]``.
      apply: The networks as functions, see :func:`teacher_logits`.
      teacher: Parameters by network.
      center: ``[K]``, see :func:`dino_loss`.
      *images: The views that the teacher sees, the first of the student's, ``[batch, …]`` each.
      student_temperature: > 0.
      teacher_temperature: > 0, the lower of the two; that of the center's memory.
      variant: As in :func:`prototype_logits`.

    Returns:
      Loss per example in nats, ``[batch]``, float32.

    Source: as :func:`dino_loss` and :func:`prototype_logits`.
    """
    student = prototype_logits(
        projections, prototypes, temperature=student_temperature, variant=variant
    )
    targets = teacher_logits(
        apply, teacher, *images, temperature=teacher_temperature, variant=variant
    )
    return dino_loss(student, targets, center)


def _log_softmax(logits):
    return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))


def _targets(logits, center):
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jax.lax.stop_gradient(jax.nn.softmax(logits - center))
