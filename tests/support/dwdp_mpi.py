"""A rank that mpirun started: shares a model in groups of two, and compares."""

import importlib

import torch

from modelexpress.dwdp import DwdpConfig, enable
from tests.support.children import say
from tests.support.dwdp_models import Shape, Toy, cut, same_bits

HIDDEN, EXPERTS = 40, 6


def main() -> None:
    """Share twice, and say so."""
    world = importlib.import_module("mpi4py.MPI").COMM_WORLD
    torch.set_num_threads(1)
    torch.manual_seed(4)
    model, tokens = Toy(HIDDEN, [Shape(EXPERTS, 33)] * 3), torch.randn(5, HIDDEN)
    config = DwdpConfig(2, 4, 2, world.Get_size() // 2)
    with torch.no_grad():
        expected = model(tokens)
        cut(model, config, config.place(world.Get_rank(), world.Get_size()).rank, EXPERTS)
        for _ in range(2):
            with enable(model, config, group=world):
                assert same_bits(model(tokens), expected)
    say("right")


if __name__ == "__main__":
    main()
