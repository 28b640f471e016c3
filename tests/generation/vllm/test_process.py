"""What the building of an engine leaves behind in its process."""

from __future__ import annotations

import torch

from zerosearch.generation.vllm.process import process_left_alone


def test_training_multiplies_float32_as_before_an_engine_was_built() -> None:
    """vLLM's worker sets "highest", which is no TF32, for its whole process."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with process_left_alone():
            torch.set_float32_matmul_precision("highest")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
