"""What a run does, as its configuration says."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.helpers.configs import CONFIGS, compose_config
from zerosearch.generation.vllm.llm_engine import GPU_BATCH
from zerosearch.planning.reading import plan_of
from zerosearch.planning.time import Work
from zerosearch.planning.work import work_of

PUBLISHED = CONFIGS / "speeds" / "published.yaml"
LARGE = ["experiment=zerosearch_7b", "trainer.devices=8"]
WEIGHTS = 7_615_616_512


def work(folder: Path, *overrides: str) -> Work:
    cfg = compose_config(folder, *overrides, name="plan")
    return work_of(cfg, plan_of(cfg))


def test_every_number_that_is_taken_for_given_has_its_source() -> None:
    lines = PUBLISHED.read_text().partition("_convert_: all\n")[2].splitlines()
    for above, line in itertools.pairwise(lines):
        assert "#" in line or above.strip().startswith("#") or line.startswith("cards"), line
    assert {"h100", "h20", "cpu"} <= OmegaConf.load(PUBLISHED).cards.keys()


def test_a_run_of_the_paper(tmp_path: Path) -> None:
    found = work(tmp_path, *LARGE, "simulator.endpoints=[http://a:1/v1,http://b:1/v1]")
    assert (found.gpus, found.episodes, found.policy_steps) == (8, 320, 203)
    assert (found.forwards, found.updates, found.trained) == (1, 1, 1.0)
    assert found.sent_bytes == 2 * WEIGHTS and found.sharded
    assert found.saved_bytes == 12 * WEIGHTS, "weights and two states in float32"
    assert found.size.parameters == WEIGHTS - 152_064 * 3_584, "an embedding is looked up"
    assert found.episode.turn == 125 and found.episode.documents == 5 * 30 * 1.4
    assert found.sampler.rows == GPU_BATCH["max_num_seqs"] and found.sampler.gpus == 8
    simulator = found.search.engine
    assert simulator is not None and simulator.gpus == 2 and not found.shares_simulator
    assert simulator.size.parameters == pytest.approx(WEIGHTS, rel=1e-3)
    assert found.search.written == 210
    assert found.evaluations.searches == (found.search,)
    assert (found.evaluations.validations, found.evaluations.of_validation) == (20, 500)


@pytest.mark.parametrize(
    ("overrides", "forwards", "updates"),
    [
        ([], 1, 1),
        (["algorithm.kl_coefficient=0"], 0, 1),
        (["algorithm.mini_batches=2"], 2, 1),
        (["algorithm.inner_epochs=3"], 2, 3),
        (["algorithm=ppo"], 3, 2),
    ],
)
def test_passes_are_those_of_the_algorithm(
    overrides: list[str], forwards: int, updates: float, tmp_path: Path
) -> None:
    found = work(tmp_path, *overrides)
    assert (found.forwards, found.updates) == (forwards, updates)


def test_who_samples(tmp_path: Path) -> None:
    own = work(tmp_path)
    assert own.sent_bytes == 0 and own.sampler.rows == 256, "the policy itself"
    split = work(tmp_path, "experiment=zerosearch_7b_split", "trainer.devices=8", "sampler_gpus=4")
    assert split.sampler_apart and split.ahead and split.sampler.gpus == 4
    lora = work(tmp_path, "experiment=zerosearch_7b_lora")
    assert lora.sent_bytes < 2e8 and lora.trained < 0.02, "adapters alone"


def test_who_answers(tmp_path: Path) -> None:
    assert work(tmp_path).search.latency_s == 0, "scripted"
    retriever = work(tmp_path, "experiment=search_r1_7b", "trainer.devices=8").search
    assert retriever.engine is None and retriever.latency_s == 0.3
    shared = work(tmp_path, "experiment=one_gpu_24gb")
    assert shared.shares_simulator and shared.search.engine is not None
    more = work(tmp_path, *LARGE, "simulator_gpus=4", "simulator.server.tensor_parallel=2")
    assert more.search.engine is not None
    assert (more.search.engine.replicas, more.search.engine.gpus_each) == (2, 2)
    never = work(tmp_path, "experiment=r1_7b", "trainer.devices=8").episode
    assert never.searches == 0 and never.tokens == never.prompt + never.turn
