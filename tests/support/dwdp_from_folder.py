"""A rank that loads its experts, and no others, from a checkpoint folder, and computes with those of all ranks."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import modelexpress as mx
from modelexpress.dwdp import DwdpConfig, enable
from modelexpress.engines.transformers import load_from_peer
from tests.support.dwdp_models import same_bits
from tests.support.dwdp_nursery import Rank
from tests.support.dwdp_transformers import EXPERTS

NOBODY = "127.0.0.1:9"
"""Where no registry is."""


def share(rank: Rank, model: str) -> list[int]:
    """Compare logits with those of the whole model, and return the experts of this rank."""
    config = DwdpConfig.spreading(EXPERTS, rank.world)
    held = config.partition(EXPERTS).held(rank.number)
    settings = mx.Settings(source_query_timeout=0.5)
    part = load_from_peer(Path(model), rows=held, registry=NOBODY, settings=settings)
    whole = AutoModelForCausalLM.from_pretrained(model).eval()
    tokens = torch.randint(0, 96, (2, 17), generator=torch.Generator().manual_seed(rank.number))
    with torch.inference_mode():
        expected = whole(tokens).logits
        with enable(part, config):
            assert same_bits(part(tokens).logits, expected)
    return [held.start, held.stop]
