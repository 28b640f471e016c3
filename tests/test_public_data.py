"""From public data to a run: fetched from a stand-in of the hub, trained on, evaluated on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.test_data import SMALL, make_hub
from tests.helpers.hub import run_with_hub, serving
from tests.helpers.runs import read_metrics
from tests.helpers.words import save_word_policy


@pytest.mark.slow
def test_an_experiment_trains_and_is_evaluated_on_what_was_fetched(tmp_path: Path) -> None:
    public, policy = tmp_path / "public", tmp_path / "tiny"
    save_word_policy(policy, ask=0.45, max_position_embeddings=8192)
    with serving(make_hub()) as url:
        done = run_with_hub(
            url,
            tmp_path,
            "zerosearch",
            "data",
            "name=hotpotqa_small",
            f"folder={public}",
            *SMALL,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    tiny = ["model.gguf_file=null", f"model.path={policy}", "made_for=null"]
    short = ["episode.prompt_template=plain", "episode.max_prompt_tokens=64", "trainer=cpu"]
    run = tmp_path / "run"
    train = [
        "zerosearch",
        "train",
        "experiment=smollm2_135m",
        *tiny,
        *short,
        "policy_steps=1",
    ]
    train += ["trainer.val_check_interval=1", f"hydra.run.dir={run}"]
    done = run_with_hub(None, tmp_path, *train, ZEROSEARCH_DATA=str(public))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(read_metrics(run)) == 1
    evaluate = ["zerosearch", "evaluate", f"checkpoint={run}", "corpus=hotpotqa_small"]
    evaluate += ["benchmark=file", f"benchmark.file.path={public}/hotpotqa_small/qa_test.jsonl"]
    evaluate += ["benchmark.file.label=small", f"hydra.run.dir={tmp_path / 'table'}"]
    done = run_with_hub(None, tmp_path, *evaluate, ZEROSEARCH_DATA=str(public))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "table" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["test/policy/search/file/count"] == 5
    assert "small" in (tmp_path / "table" / "table.md").read_text()
