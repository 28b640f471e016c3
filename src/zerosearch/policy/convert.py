"""Turn a checkpoint into a model folder: `python -m zerosearch.policy.convert CHECKPOINT FOLDER`.

A finished run has exported its policy; this is for any checkpoint of a run, sharded or not. What
it writes works as `model.path=FOLDER`, for servers, and with plain `from_pretrained`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf

from zerosearch.policy.checkpoints import (
    check_same_model,
    is_sharded_checkpoint,
    read_checkpoint,
    shapes_of,
)
from zerosearch.policy.export import save_policy
from zerosearch.policy.source import PolicySource

_PREFIX = "model."  # of the policy's tensors in the training module


def convert(checkpoint: Path, folder: Path) -> Path:
    """Write the policy of a checkpoint as `save_policy` does, with its episode settings.

    Args:
        checkpoint: file or folder inside a run folder, whose `.hydra/config.yaml` says which model
            it is.
        folder: target; an earlier export there is replaced.

    Returns:
        The folder.

    Raises:
        ValueError: there is no checkpoint, or it does not belong to the run's model.
    """
    if not checkpoint.is_file() and not is_sharded_checkpoint(checkpoint):
        raise ValueError(
            f"{checkpoint} is no checkpoint: give a file or folder of a run's checkpoints/, such "
            "as logs/train/latest/checkpoints/last.ckpt"
        )
    source = _source_of(checkpoint)
    saved = read_checkpoint(checkpoint, mmap=True)
    if "episode" not in saved["zerosearch"]:
        raise ValueError(
            f"{checkpoint} is no policy: its run tuned a simulator; resume= that run, whose end "
            "exports the simulator to simulator/ in its folder"
        )
    weights = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in saved["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    model = source.load_model()
    check_same_model(shapes_of(weights), shapes_of(model.state_dict()))
    model.load_state_dict(weights)
    extra = {"episode": saved["zerosearch"]["episode"], "chat": source.chat}
    return save_policy(model, source.load_tokenizer(), folder, extra)


def _source_of(checkpoint: Path) -> PolicySource:
    """The policy that the run of a checkpoint trains."""
    config = checkpoint.resolve().parents[1] / ".hydra" / "config.yaml"
    if not config.is_file():
        raise ValueError(
            f"{checkpoint} does not lie in the checkpoints/ of a run folder: {config}, which says "
            "whose model it is, is missing; copy it there"
        )
    return instantiate(OmegaConf.load(config).model)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="zerosearch export")
    parser.add_argument("checkpoint", type=Path, help="file or folder of a run's checkpoints/")
    parser.add_argument("folder", type=Path, help="where the model is written")
    arguments = parser.parse_args()
    try:
        print(convert(arguments.checkpoint, arguments.folder))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
