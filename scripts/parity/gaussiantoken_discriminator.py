"""The patch discriminator: logits in both modes, gradients of a training pass and the batch statistics after it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from scripts.parity.comparison import Comparison, NotACase
from scripts.parity.gaussiantoken_case import GaussianTokenCase
from token_methods.core.weights import WeightsError, compare_keys
from token_methods.gaussiantoken.discriminator import PatchDiscriminator


def compare(case: GaussianTokenCase) -> Iterator[Comparison]:
    """Every stored output, gradient and statistic."""
    prefix = case.setting("key_prefix")
    discriminator = PatchDiscriminator(case.setting("ndf"), case.setting("n_layers"), case.setting("input_nc"))
    weights = {name.removeprefix(f"w.{prefix}"): value for name, value in case.tensors.items() if name.startswith(f"w.{prefix}")}
    try:
        compare_keys(weights, discriminator.state_dict(), str(case.path), "the case was made with another network")
    except WeightsError as error:
        raise NotACase(str(error)) from None
    discriminator.load_state_dict(weights)
    images = case["in.image"].clone().requires_grad_()

    yield case.compare("out.logits_eval", discriminator.eval()(images))
    logits = discriminator.train()(images)
    yield case.compare("out.logits_train", logits)
    logits.backward(case["in.v_logits"])
    assert images.grad is not None
    yield case.compare("grad.image", images.grad, "grad")
    for name in (name for name in case.tensors if name.startswith(f"grad.{prefix}")):
        gradient = discriminator.get_parameter(name.removeprefix(f"grad.{prefix}")).grad
        assert gradient is not None
        yield case.compare(name, gradient, "grad")
    yield from compare_statistics(case, discriminator, prefix)


def compare_statistics(case: GaussianTokenCase, discriminator: nn.Module, prefix: str) -> Iterator[Comparison]:
    """The running statistics that training passes left behind, as far as they are stored."""
    state = discriminator.state_dict()
    for name in (name for name in case.tensors if name.startswith(f"after.{prefix}")):
        yield case.compare(name, state[name.removeprefix(f"after.{prefix}")])
