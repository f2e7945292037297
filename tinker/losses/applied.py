"""Losses of what a network gives for other inputs than a batch's own."""


def on_inputs(apply, inputs, *targets, loss, output="logits"):
    r"""A loss of the model's output for further inputs, such as those of a second stream.

    .. math:: \ell\big(f(x'), y'\big)

    As a program's loss it reads ``("apply", "held/image", "held/label")``, say, where the data has
    a stream ``held``.

    Args:
      apply: The networks as functions, ``apply(inputs) -> outputs``.
      inputs: x', what the model reads, ``[batch, …]``.
      *targets: What the loss reads beside the output, ``[batch, …]``.
      loss: ``loss(output, *targets)``; in a config a partial spec.
      output: The name of the output, where the model gives a dict of them.

    Returns:
      What ``loss`` returns.
    """
    found = apply(inputs)
    return loss(found[output] if isinstance(found, dict) else found, *targets)


on_inputs.batch_coupled = True  # for all that it knows of the loss
