"""Files that try to run code when they are read; each would make a file, the marker."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from tests.helpers.configs import compose_config
from tests.helpers.words import make_word_model, save_word_policy
from zerosearch.evaluation.trained_policy import use_checkpoint
from zerosearch.rollout.settings import EpisodeSettings

EPISODE = EpisodeSettings(prompt_template="search", invalid_hint="What?").as_dict()


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


def node(marker: Path) -> dict[str, str]:
    """Makes a file when it is instantiated."""
    return {"_target_": "logging.FileHandler", "filename": str(marker)}


def template(marker: Path) -> str:
    """Makes a file when it is rendered."""
    call = f"cycler.__init__.__globals__.os.system('touch {marker}')"
    return f"{{{{ question }}}} {{{{ query }}}} {{{{ noisy }}}} {{{{ {call} }}}}"


def policy(folder: Path, **settings: Any) -> Path:
    """An exported policy, with these settings in place of its own."""
    save_word_policy(folder)
    text = json.dumps({"episode": EPISODE, "chat": False, **settings})
    (folder / "zerosearch.json").write_text(text)
    return folder


def played(folder: Path, tmp_path: Path) -> Any:
    """The agent that plays the policy of a folder."""
    cfg = compose_config(tmp_path / "out", f"checkpoint={folder}", name="ask")
    use_checkpoint(cfg, [], tmp_path / "out")
    return instantiate(cfg.agent, _convert_="all")


def run_folder(tmp_path: Path, model: str, **notes: Any) -> Path:
    """A run that has not ended, whose configuration holds this model.

    Args:
        notes: what its checkpoint notes beside an episode.
    """
    run = tmp_path / "run"
    for folder in (".hydra", "checkpoints"):
        (run / folder).mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_text(f"model: {model}\n")
    weights = {f"model.{n}": w for n, w in make_word_model(1).state_dict().items()}
    saved = {"state_dict": weights, "zerosearch": {"episode": EPISODE, **notes}}
    torch.save(saved, run / "checkpoints" / "last.ckpt")
    return run


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ query.__class__ }}{{ golden_answers.append('x') }}",
    "{{ lipsum.__globals__['os'].environ }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(noisy) }}{{ golden_answers.append(1) }}",
    "{{ range(10 ** 7) | list }}",
    "{{ 1 // 0 }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]
