"""From an agent's searches to a simulator in use: what `make simulator-quickstart` calls, small."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import LlamaForCausalLM

from scripts.quickstart_policy.__main__ import DEFAULT_OUTPUT, SETTINGS
from scripts.quickstart_policy.resize import SIZES, with_layers
from tests.helpers.configs import CONFIGS, compose_config
from tests.helpers.recorded import calls, make_environment, run
from zerosearch.rollout.settings import EpisodeSettings

COLLECT, JUDGE, FIDELITY, TUNE = "collect", "judge", "fidelity", "tune"
SMALL = {
    COLLECT: ["questions.limit=60", "attempts=4"],
    JUDGE: ["rows.validation_share=0.2"],
    FIDELITY: ["data.limit=4", "thresholds.failed=1"],
    TUNE: ["steps=4", "data.examples_per_step=8", "module.fidelity_examples=4", "trainer=cpu"],
}


def call(folder: Path, command: str, *overrides: str) -> str:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "zerosearch",
            command,
            *overrides,
            f"paths.log_dir='{folder / 'logs'}'",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_every_size_of_the_miniature_is_one_that_make_makes(tmp_path: Path) -> None:
    swept = OmegaConf.load(CONFIGS / "hparams_search" / "simulator_size_tiny.yaml")
    assert OmegaConf.select(swept, "hydra.sweeper.params.seed") == "0,1,2"
    names = OmegaConf.select(swept, "hydra.sweeper.params.simulator").split(",")
    assert names == ["tiny_tuned_0_7m", "tiny_tuned", "tiny_tuned_3m"]
    for name in names:
        size = name.removeprefix("tiny_tuned")
        experiment = f"experiment=simulator_sft_tiny{size}"
        tuning = compose_config(tmp_path, experiment, name="tune")
        made = OmegaConf.load(CONFIGS / "simulator" / f"{name}.yaml")
        places = [OmegaConf.to_container(node, resolve=False) for node in (tuning, made)]
        assert places[0]["export_dir"] == places[1]["folder"], name  # type: ignore[index,call-overload]
        if size:
            assert size[1:] in SIZES and tuning.model.path.endswith(f"geography/start{size}")


def test_the_script_of_the_quickstart_reads_the_settings_of_its_episodes() -> None:
    assert isinstance(SETTINGS, EpisodeSettings) and SETTINGS.prompt_template == "plain"


def test_a_size_begins_with_what_the_policy_of_the_quickstart_knows() -> None:
    policy = LlamaForCausalLM.from_pretrained(DEFAULT_OUTPUT).eval()
    ids = torch.arange(300, 340)[None]
    made = {size: with_layers(policy, layers).eval() for size, layers in SIZES.items()}
    found = {size: model.num_parameters() for size, model in made.items()}
    assert found == {"0_7m": 655_872, "3m": 3_018_240}
    with torch.no_grad():
        known = policy(input_ids=ids).logits
        assert torch.equal(made["3m"](input_ids=ids).logits, known)
        assert not torch.allclose(made["0_7m"](input_ids=ids).logits, known, atol=0.1)
    made["3m"](input_ids=ids, labels=ids).loss.backward()
    outputs = [p for name, p in made["3m"].named_parameters() if "o_proj" in name]
    assert len(outputs) == 14
    for each in outputs:
        assert each.grad is not None and each.grad.any(), "a silent copy would stay silent"
    with torch.no_grad():
        begun = made["3m"](input_ids=ids[:, :-1], use_cache=True).past_key_values
        last = made["3m"](input_ids=ids[:, -1:], past_key_values=begun).logits
    torch.testing.assert_close(last, known[:, -1:], atol=1e-4, rtol=1e-4)  # a cache for each layer


@pytest.mark.slow
@pytest.mark.timeout(1800)  # seven processes one after the other, on a busy machine too
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_collect_judge_tune_measure_and_train(tmp_path: Path) -> None:
    (tmp_path / "environment").mkdir()
    environment = make_environment(tmp_path / "environment")
    folder = tmp_path / "logs" / "simulation" / "geography"
    made = run(environment, "make", "simulator-quickstart", f"GEOGRAPHY={folder}")
    assert made.returncode == 0
    steps = [each.arguments[2:] for each in calls(environment)]
    assert [command for command, *_ in steps] == [COLLECT, JUDGE, FIDELITY, TUNE, FIDELITY]
    for command, *overrides in steps:
        call(tmp_path, command, *overrides, *SMALL[command])

    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert {row["quality"] for row in rows} == {"useful", "noisy"}
    summary = json.loads((folder / "tune" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["test/loss"] < 0.8 * summary["start/loss"]
    _, *tuning = steps[3]
    call(tmp_path, TUNE, *tuning, *SMALL[TUNE])  # goes on, though there is nothing left to do
    again = json.loads((folder / "tune" / "summary.json").read_text())
    assert again["test/loss"] == pytest.approx(summary["test/loss"])
    logs = tmp_path / "logs"
    report = json.loads((logs / "fidelity" / "latest" / "fidelity.json").read_text())
    assert report["useful"]["searches"] == report["noisy"]["searches"] == 4

    short = ["policy_steps=1", "questions_per_step=2", "algorithm.group_size=2", "test=false"]
    short += ["data.validation_limit=2", "trainer.val_check_interval=1", "trainer=cpu"]
    # four steps do not make a simulator
    short += ["module.max_failed_share=1", "simulator_check=off"]
    call(tmp_path, "train", "simulator=tiny_tuned", *short)
    trained = json.loads((logs / "train" / "latest" / "summary.json").read_text())
    assert trained["status"] == "completed"
