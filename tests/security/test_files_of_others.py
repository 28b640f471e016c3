"""What somebody else has written runs nothing, reads no file and tells no secret.

Each attack would leave a file behind, `marker`.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.distributed.checkpoint import FileSystemWriter

from tests.helpers.hostile_files import (
    EPISODE,
    ESCAPES,
    Touch,
    node,
    played,
    policy,
    run_folder,
    template,
)
from tests.helpers.words import save_word_policy
from zerosearch.assembly import Run
from zerosearch.callbacks.checkpoint_io import AtomicCheckpointIO
from zerosearch.command_line.arguments import expand_resume
from zerosearch.core.errors import InputError
from zerosearch.policy.checkpoints import read_checkpoint, read_notes, read_weights
from zerosearch.policy.conversion import convert
from zerosearch.policy.shards import data_alone
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.search.embedding import E5Encoder
from zerosearch.simulator.prompt import SimulatorPrompt
from zerosearch.tuning.judges import LLMJudge
from zerosearch.types import Question, SearchRequest

SECRET = "sk-of-the-user"
REQUEST = SearchRequest(query="q", question="q", golden_answers=("a",))
SOURCE = "zerosearch.policy.source.PolicySource"


@pytest.fixture
def marker(tmp_path: Path) -> Any:
    yield (file := tmp_path / "marker")
    assert not file.exists(), "the attack has run"


# -- models ----------------------------------------------------------------------------------------


def test_an_encoder_runs_nothing_whatever_stands_in_the_input(
    marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`zerosearch ask` reads questions there, and the library would ask whether to run the code."""
    save_word_policy(tmp_path / "encoder")
    file = tmp_path / "encoder" / "config.json"
    code = {"AutoConfig": "theirs.Theirs", "AutoModel": "theirs.Theirs"}
    file.write_text(json.dumps({"model_type": "theirs", "auto_map": code}))
    (tmp_path / "encoder" / "theirs.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(InputError, match="cannot be loaded as an encoder"):
        E5Encoder(str(tmp_path / "encoder"))


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weights_only", [False, None, True])
def test_a_checkpoint_is_not_unpickled(weights_only: Any, marker: Path, tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}, "zerosearch": Touch(marker)}, file)
    refused = r"other than tensors and plain values \(\w+\.system\)"
    with pytest.raises(InputError, match=refused):
        AtomicCheckpointIO().load_checkpoint(file, weights_only=weights_only)
    for read in (read_checkpoint, read_notes, lambda path: read_weights(path, "model.")):
        with pytest.raises(InputError, match=refused):
            read(file)


def test_a_run_goes_on_from_data_alone(marker: Path, tmp_path: Path) -> None:
    """Also where Lightning itself reads the file."""
    file = tmp_path / "last.ckpt"
    quiet: dict[str, Any] = {"enable_progress_bar": False, "logger": False}
    trainer = Trainer(max_steps=1, accelerator="cpu", enable_model_summary=False, **quiet)
    torch.save({"state_dict": {}, "hyper_parameters": Touch(marker)}, file)
    make_run: Any = Run  # of any module
    run = make_run(trainer=trainer, module=BoringModel(), data=None)
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        run.fit(file)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of shards as torch writes it, with values that are no tensors."""
    folder = tmp_path / "last.ckpt"
    saved = {"state_dict": {"model.a": torch.ones(2)}, "optimizer_0": {"param_groups": []}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(saved, storage_writer=FileSystemWriter(folder), no_dist=True)
    torch.save({"zerosearch": {}}, folder / "meta.pt")
    return folder


def test_shards_of_ours_are_read(shards: Path) -> None:
    assert torch.equal(read_weights(shards, "model.")["a"], torch.ones(2))
    assert read_checkpoint(shards)["optimizer_states"] == [{"state": {}, "param_groups": []}]
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_the_metadata_of_shards_are_not_unpickled(shards: Path, marker: Path) -> None:
    (shards / ".metadata").write_bytes(pickle.dumps(Touch(marker)))
    for read in (read_checkpoint, lambda path: read_weights(path, "model.")):
        with pytest.raises(InputError, match=r"other than tensors.*\.system\)"):
            read(shards)


def test_an_attribute_in_the_metadata_is_that_of_an_enumeration_alone(shards: Path) -> None:
    # as Python 3.11.0 to 3.11.3 pickles a member, and as a way to anything else
    for owner, name, right in (
        ("_MEM_FORMAT_ENCODING", "TORCH_PRESERVE_FORMAT", True),
        ("Metadata", "__init__", False),
    ):
        module = "torch.distributed.checkpoint.metadata"
        code = f"cbuiltins\ngetattr\n(c{module}\n{owner}\nV{name}\ntR."
        (shards / ".metadata").write_bytes(code.encode())
        refused = pytest.raises(InputError, match="getattr of '__init__'")
        with nullcontext() if right else refused, data_alone(shards):
            pass


def test_a_value_in_shards_is_not_unpickled(marker: Path, tmp_path: Path) -> None:
    folder = tmp_path / "last.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = {"optimizer_0": {"param_groups": [Touch(marker)]}}
        dcp.save(saved, storage_writer=FileSystemWriter(folder), no_dist=True)
    torch.save({"zerosearch": {}}, folder / "meta.pt")
    with pytest.raises(InputError, match=r"other than tensors.*\.system\)"):
        read_checkpoint(folder)


# -- a policy's folder -----------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["_target_", "invalid_hint", "formatter", "top_k", "new"])
def test_a_saved_episode_makes_nothing(field: str, marker: Path, tmp_path: Path) -> None:
    attack = node(marker)
    if field == "_target_":
        saved = {**EPISODE, **attack}
    else:
        saved = {**EPISODE, field: attack}
    folder = policy(tmp_path / "policy", episode=saved)
    if field in ("_target_", "new"):  # names that an episode does not have
        assert played(folder, tmp_path).episode.as_dict() == EPISODE
        return
    with pytest.raises(InputError, match=rf"zerosearch\.json: episode\.{field} is .*Input should"):
        played(folder, tmp_path)


@pytest.mark.parametrize(
    "field",
    [{"top_k": "5"}, {"top_k": True}, {"top_k": 0}, {"max_turns": 1e9}, {"prompt_text": 7}],
    ids=str,
)
def test_values_of_a_saved_episode_are_of_their_types(field: dict, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"episode\.{next(iter(field))} is"):
        played(policy(tmp_path / "policy", episode={**EPISODE, **field}), tmp_path)


@pytest.mark.parametrize("named", [{"dtype": "${oc.env:KEY}"}, {"chat": "yes"}], ids=str)
def test_how_a_policy_is_loaded_is_one_of_our_words(named: dict, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"zerosearch\.json: {next(iter(named))} is"):
        played(policy(tmp_path / "policy", **named), tmp_path)


@pytest.mark.parametrize("text", ["[]", '"x"', "{", "[" * 100_000, '{"episode": []}'])
def test_settings_that_are_none(text: str, tmp_path: Path) -> None:
    folder = policy(tmp_path / "policy")
    (folder / "zerosearch.json").write_text(text)
    with pytest.raises(InputError, match="policy"):
        played(folder, tmp_path)


def test_a_template_that_saved_settings_name_is_not_read(marker: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil.j2"
    evil.write_text(template(marker))
    named = {**EPISODE, "prompt_template": str(evil)}
    agent = played(policy(tmp_path / "policy", episode=named), tmp_path)
    assert agent.episode.render_prompt(QUESTION) == EpisodeSettings(
        prompt_template="search", invalid_hint="What?"
    ).render_prompt(QUESTION)
    with pytest.raises(InputError, match="a file that a policy's settings name is not read"):
        played(policy(tmp_path / "bare", episode={**named, "prompt_text": None}), tmp_path)


QUESTION = Question(uid="q", text="Why?", golden_answers=("x",))


def test_saved_text_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    texts = {
        "invalid_hint": "${oc.env:OPENAI_API_KEY}",
        "prompt_text": "In ${currency}: {question} \\${oc.env:OPENAI_API_KEY}",
    }
    agent = played(policy(tmp_path / "policy", episode={**EPISODE, **texts}), tmp_path)
    assert agent.episode.invalid_hint == texts["invalid_hint"]
    assert agent.episode.prompt_text == texts["prompt_text"]
    assert SECRET not in json.dumps(agent.settings(), default=str)


# -- the run folder of a checkpoint ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("{attack}", "no PolicySource|missing .* 'path'"),
        ("{{_target_: {source}, path: {start}, lora: {attack}}}", r"model\.lora\.filename"),
        ("{{_target_: {source}, path: {start}, architecture: [{attack}]}}", "architecture is"),
        ("{{_target_: {source}, path: {start}, dtype: {attack}}}", "dtype is"),
        ("{{path: {start}, lora: {{megatron_core: os, megatron_config: {{}}}}}}", "megatron_core"),
        ("{{path: {start}, trust_remote_code: true}}", "trust_remote_code is set"),
        ("{{path: '${{oc.env:OPENAI_API_KEY}}'}}", "nothing is looked up"),
        ("{{path: {start}, architecture: {{a: ['${{oc.env:HOME}}']}}}}", "nothing is looked up"),
        ("!!python/object/apply:os.system ['touch {marker}']", "has no model"),
        ("[[", "has no model"),
    ],
)
def test_the_configuration_beside_a_checkpoint_makes_nothing(
    model: str, said: str, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    start = save_word_policy(tmp_path / "start", 0)
    names = {"attack": json.dumps(node(marker)), "source": SOURCE, "start": start}
    run = run_folder(tmp_path, model.format(**names, marker=marker))
    with pytest.raises(InputError, match=said) as caught:
        convert(run / "checkpoints" / "last.ckpt", tmp_path / "out")
    assert SECRET not in str(caught.value)


def test_its_target_is_not_looked_at(marker: Path, tmp_path: Path) -> None:
    start = save_word_policy(tmp_path / "start", 0)
    target = "logging.FileHandler"
    run = run_folder(tmp_path, f"{{_target_: {target}, path: {start}, filename: {marker}}}")
    convert(run / "checkpoints" / "last.ckpt", tmp_path / "out")
    assert (tmp_path / "out" / "zerosearch.json").is_file()


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ({"date": "yesterday"}, r"last\.ckpt: date is 'yesterday': it should be as 2026"),
        ({"date": 5}, r"date is 5: it should be as"),
        ({"dtype": "load"}, "dtype is 'load'"),
    ],
)
def test_notes_that_are_none(notes: dict[str, Any], said: str, tmp_path: Path) -> None:
    run = run_folder(tmp_path, f"{{path: {save_word_policy(tmp_path / 'start', 0)}}}", **notes)
    with pytest.raises(InputError, match=said):
        convert(run / "checkpoints" / "last.ckpt", tmp_path / "out")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away, which root alone can")
@pytest.mark.parametrize("given_away", [".", ".hydra/overrides.yaml"])
def test_a_run_folder_of_another_user_is_not_resumed(given_away: str, tmp_path: Path) -> None:
    saved = tmp_path / ".hydra" / "overrides.yaml"
    saved.parent.mkdir()
    saved.write_text("- seed=3\n")
    assert "seed=3" in expand_resume([f"resume={tmp_path}"])
    os.chown(tmp_path / given_away, 4321, -1)
    with pytest.raises(InputError, match=r"belongs to another user \(uid 4321\).*copy"):
        expand_resume([f"resume={tmp_path}"])


# -- templates -------------------------------------------------------------------------------------


def test_the_template_of_a_simulator_runs_nothing(marker: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.j2").write_text(template(marker))
    with pytest.raises(InputError, match=r"cannot be rendered \(SecurityError: .*unsafe"):
        SimulatorPrompt(str(tmp_path), 30).render(REQUEST, noisy=True)


@pytest.mark.parametrize("escape", ESCAPES)
def test_ways_out_of_a_template_are_shut(escape: str, tmp_path: Path) -> None:
    file = tmp_path / "prompt.j2"
    file.write_text(f"{{{{ query }}}}{{{{ noisy }}}}{escape}")
    with pytest.raises(InputError, match=r"simulator\.prompt_template="):
        SimulatorPrompt(str(file), 30).render(REQUEST, noisy=True)


def test_the_templates_of_judges_and_episodes_run_nothing(marker: Path, tmp_path: Path) -> None:
    file, client = tmp_path / "mine.j2", object()
    file.write_text(template(marker).replace("{{ noisy }}", ""))
    with pytest.raises(InputError, match=r"judge\.prompt_template.*SecurityError"):
        LLMJudge(client, prompt_template=str(file))  # type: ignore[arg-type]
    file.write_text(template(marker).replace("{{ noisy }}", "").replace("{{ query }}", ""))
    with pytest.raises(InputError, match=r"episode\.prompt_template.*SecurityError"):
        EpisodeSettings(prompt_template=str(file))


@pytest.mark.parametrize(
    ("way", "places"),
    [
        (r"^\s*(import|from) jinja2", {"core/templates.py", "policy/tokenizer.py"}),  # an error's
        (r"pickle\.loads?\(", set()),
        (r"Unpickler", {"policy/shards.py"}),
        (r"weights_only=False", {"callbacks/policy_checkpoint.py"}),  # of what is saved
        (r"yaml\.(unsafe_|full_)?load\(", set()),
        (r"OmegaConf\.load\(", {"command_line/made_for.py"}),  # the program's own files
    ],
)
def test_no_other_place_renders_or_unpickles(way: str, places: set[str]) -> None:
    source = Path(__file__).parents[2] / "src" / "zerosearch"
    found = {
        file.relative_to(source).as_posix()
        for file in source.rglob("*.py")
        if re.search(way, file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert found == places
