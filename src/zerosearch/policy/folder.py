"""Models that other programs are to read: a server wants a plain folder, not a GGUF file."""

from __future__ import annotations

from pathlib import Path

from zerosearch.core.hub import CONFIG_FILE
from zerosearch.policy.export import save_policy
from zerosearch.policy.source import PolicySource


def plain_folder(source: PolicySource, folder: str) -> str:
    """A model as `save_pretrained` writes it, made at the first call and kept.

    Args:
        source: the model.
        folder: where it is kept; to make it anew, remove it.

    Returns:
        The folder.

    Raises:
        InputError: the model cannot be had.
        FileError: the folder cannot be written.
    """
    if not (Path(folder) / CONFIG_FILE).is_file():
        model = source.load_model(trained=False)
        save_policy(model, source.load_tokenizer(), folder, extra={})
    return folder
