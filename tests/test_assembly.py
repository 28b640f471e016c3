"""What the objects of a run do together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from tests.helpers.configs import compose_config
from tests.helpers.policy_stub import PolicyStub, make_trainer
from zerosearch.assembly import Run
from zerosearch.callbacks.tensorboard_logger import CurveLogger
from zerosearch.training.failures import TrainingCollapse


@pytest.mark.parametrize("wanted", [2, 3])
def test_a_run_that_has_done_more_than_is_asked_for_says_so(
    wanted: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(steps: int) -> Any:
        trainer = make_trainer(steps, callbacks=[], val_every=None)
        return Run(trainer=trainer, module=PolicyStub(steps), data=None)  # type: ignore[type-var, arg-type]

    first = run(3)
    first.fit(None)
    first.trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = run(wanted)
    again.fit(tmp_path / "last.ckpt")
    said = f"last.ckpt has done 3 steps, and {wanted} are asked for: nothing was trained"
    assert (said in caplog.text) == (wanted == 2)
    assert again.module.policy_step == 3


def test_a_run_that_fails_has_a_row_in_tensorboard(tmp_path: Path) -> None:
    logger = CurveLogger(tmp_path)
    trainer = make_trainer(1, callbacks=[], val_every=None, logger=logger)
    run = Run(trainer=trainer, module=PolicyStub(1), data=None)  # type: ignore[type-var, arg-type]
    facts = {"status": "running", "seed": 3, "choices": {"experiment": "any"}, "start/f1": 0.25}
    with pytest.raises(TrainingCollapse), run.failing_in_sight(facts):
        raise TrainingCollapse("reward")
    content = EventAccumulator(str(tmp_path)).Reload().PluginTagToContent(metadata.PLUGIN_NAME)
    start = content[metadata.SESSION_START_INFO_TAG]
    row = metadata.parse_session_start_info_plugin_data(start).hparams
    assert (row["status"].string_value, row["start/f1"].number_value) == ("failed", 0.25)
    assert "test/f1" not in row, "it did not come to it"
    table = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    assert "test/f1" in [info.name for info in table.hparam_infos], "other runs have it"


def test_loggers_of_others_get_the_settings_without_secrets(tmp_path: Path) -> None:
    secret = "hush-4f1c"
    server = [
        f"+simulator.server.environment.HF_TOKEN={secret}",
        f"simulator.server.extra_args=[--api_key,{secret},{secret},--seed,3]",
        f"simulator.server.command=[env,'VLLM_API_KEY={secret}',vllm,serve]",
        "+simulator.server.password=40414243",
        f"+simulator.client.api_key={secret}",
        "simulator.client.api_key_env=MY_KEY",
    ]
    words = ["simulator=prompted_3b", "optimizer.lr=0.003", "logger=csv"]
    cfg = compose_config(tmp_path, *words, *server)
    trainer = make_trainer(1, callbacks=[], val_every=None)
    trainer.loggers = [CSVLogger(tmp_path, name="csv", version="")]
    Run(trainer=trainer, module=PolicyStub(1), data=None).log_settings(cfg)  # type: ignore[type-var, arg-type]
    trainer.loggers[0].save()
    text = next(tmp_path.rglob("hparams.yaml")).read_text()
    found = yaml.safe_load(text)
    assert found["module"]["optimizer"]["lr"] == 0.003, "resolved"
    assert secret not in text
    assert "40414243" not in text
    for name in ("extra_args", "command", "environment"):
        assert found["simulator"]["server"][name] == "***"
    assert found["search"]["engine"]["client"]["api_key_env"] == "MY_KEY"
