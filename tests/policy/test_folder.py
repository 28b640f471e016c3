"""A plain folder of a model, made once, that any program loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.words import save_word_policy
from zerosearch.policy.folder import plain_folder
from zerosearch.policy.source import PolicySource


def test_the_folder_is_made_once_and_holds_the_model(tmp_path: Path) -> None:
    source = PolicySource(path=str(save_word_policy(tmp_path / "source")))
    folder = str(tmp_path / "logs" / "plain")
    assert plain_folder(source, folder) == folder
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name, tensor in source.load_model().state_dict().items():
        assert torch.equal(loaded[name], tensor)
    assert AutoTokenizer.from_pretrained(folder).get_vocab()

    nowhere = PolicySource(path=str(tmp_path / "gone"))
    assert plain_folder(nowhere, folder) == folder
    with pytest.raises(ValueError, match="gone"):
        plain_folder(nowhere, str(tmp_path / "other"))
