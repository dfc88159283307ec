"""Cases of what the program does around a block in which experts are shared."""

import os
import time

import torch

from modelexpress.dwdp import DwdpConfig, enable
from tests.support.dwdp_models import Shape, Toy, cut, differing, same_bits, snapshot
from tests.support.dwdp_nursery import Rank

EXPERTS, HIDDEN, INNER = 6, 40, 33
CONFIG = DwdpConfig(2, 4, 2)


def _model(layers: int = 5) -> tuple[Toy, torch.Tensor]:
    torch.manual_seed(6)
    return Toy(HIDDEN, [Shape(EXPERTS, INNER)] * layers), torch.randn(5, HIDDEN)


def inference(rank: Rank) -> None:
    """Parameters are of use for gradients afterwards, if they were before."""
    model, tokens = _model()
    before = snapshot(model)
    with torch.inference_mode():
        expected = model(tokens)
        with enable(model, CONFIG):
            assert same_bits(model(tokens), expected)
    assert not differing(model, before)
    assert not any(parameter.is_inference() for parameter in model.parameters())
    model(tokens).sum().backward()


def compiled(rank: Rank) -> None:
    """A model that was compiled before, within and behind the block computes as it does by itself."""
    model, tokens = _model()
    with torch.no_grad():
        expected = model(tokens)
        other = torch.compile(model, backend="eager")
        assert same_bits(other(tokens), expected)
        with enable(model, CONFIG):
            for _ in range(3):
                assert same_bits(other(tokens), expected)
        assert same_bits(other(tokens), expected)


def forked(rank: Rank) -> None:
    """A child that was forked within the block holds nobody up."""
    model, tokens = _model()
    with torch.no_grad():
        expected = model(tokens)
        with enable(model, CONFIG):
            assert same_bits(model(tokens), expected)
            child = os.fork()
            if child == 0:
                time.sleep(30)
                os._exit(0)
            started = time.monotonic()
        took = time.monotonic() - started
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert took < 10, f"leaving took {took:.1f} s"


def default_device(rank: Rank) -> None:
    """A default device of torch that is another one changes nothing."""
    model, tokens = _model()
    with torch.no_grad():
        expected = model(tokens)
        cut(model, CONFIG, rank.number, EXPERTS)
        with torch.device("meta"), enable(model, CONFIG):
            assert same_bits(model(tokens), expected)
