"""A model that only samples is loaded in the dtype asked for, not as one that is trained."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch

from tests.helpers.models import save_policy_folder
from zerosearch.generation.loading import load_to_sample
from zerosearch.generation.transformers.generator import TransformersGenerator
from zerosearch.policy.source import PolicySource


class Watched(TransformersGenerator):
    def bind(self, model: torch.nn.Module, tokenizer: object) -> None:
        self.dtypes = {parameter.dtype for parameter in model.parameters()}
        super().bind(model, tokenizer)  # type: ignore[arg-type]


def test_a_model_that_only_samples_takes_no_more_memory_than_asked(tmp_path: Path) -> None:
    source = PolicySource(path=str(save_policy_folder(tmp_path)), dtype="bfloat16")
    generator = Watched()
    asyncio.run(load_to_sample(source, generator, "cpu"))
    assert generator.dtypes == {torch.bfloat16}
