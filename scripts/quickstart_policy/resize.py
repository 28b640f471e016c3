"""The quickstart's policy with fewer or more layers: what simulators of other sizes begin with.

Weights drawn at random learn to write, but in the steps of a tuning not to copy a name they never
saw; those of the quickstart's policy have learnt it. Layers that are left out take a part of that
away; layers that are added are silent copies, so that the larger model begins as the policy itself
(depth-wise growth, as in LLaMA Pro, arXiv 2401.02415). Run:
    python -m scripts.quickstart_policy.resize 3m --output FOLDER
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from scripts.quickstart_policy.__main__ import DEFAULT_OUTPUT

SIZES = {  # layers of the policy, by their index; what is named again is a silent copy
    "0_7m": (0, 3),  # the two that lose least of its skill
    "3m": (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3),
}


def with_layers(model: LlamaForCausalLM, layers: Sequence[int]) -> LlamaForCausalLM:
    """A model of some layers of another one.

    Args:
        model: not changed.
        layers: indices in its layers; an index that is named again gives a copy whose two outputs
            are zero, which changes nothing until it is trained.
    """
    made = copy.deepcopy(model)
    chosen = [copy.deepcopy(cast(LlamaDecoderLayer, model.model.layers[i])) for i in layers]
    for place, layer in enumerate(chosen):
        layer.self_attn.layer_idx = place
        if layers[place] in layers[:place]:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    made.model.layers = torch.nn.ModuleList(chosen)
    made.config.num_hidden_layers = len(layers)
    return made


def main() -> None:
    """Write one size into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    made = with_layers(LlamaForCausalLM.from_pretrained(DEFAULT_OUTPUT), SIZES[args.size])
    made.save_pretrained(args.output)
    AutoTokenizer.from_pretrained(DEFAULT_OUTPUT).save_pretrained(args.output)
    print(f"{args.output}: {made.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
