"""`trainer=fsdp` on real processes: the run of one process, at 1/N of its memory, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.optim import SGD

from tests.helpers.ranks import run_ranks
from tests.helpers.sharded_training import Job, train, train_all
from tests.helpers.words import save_word_policy
from zerosearch.training.sharded_strategy import FullyShardedStrategy

MEASURED = ("time/", "throughput/", "memory/", "search/latency_s")
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": True},
    "tied": {"tied": True},
    "recomputed": {"gradient_checkpointing": True},
    "critic": {"critic": True},
    "critic, a step skipped": {"critic": True, "poisoned_step": 2},
    "tied critic lora": {"tied": True, "critic": True, "lora": True},
    "tied recomputed lora": {"tied": True, "lora": True, "gradient_checkpointing": True},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("policies")
    save_word_policy(root / "full")
    save_word_policy(root / "tied", tie_word_embeddings=True)
    return root


def make_job(root: Path, out: Path, kind: str = "full", **fields: Any) -> Job:
    settings = dict(KINDS[kind])
    policy = root / ("tied" if settings.pop("tied", False) else "full")
    return Job(policy=policy, out=out, **settings, **fields)


def result(out: Path, rank: int = 0) -> dict[str, Any]:
    return torch.load(out.with_name(f"{out.name}.{rank}"))


def alone(root: Path, out: Path, kind: str = "full", **fields: Any) -> dict[str, Any]:
    """The same run in this process, without any sharding."""
    train(0, 1, make_job(root, out, kind, sharded=False, **fields))
    return result(out)


def assert_same_run(ranks: dict[str, Any], single: dict[str, Any]) -> None:
    """Gradients of the updates made, parameters and metrics after the last one, to 1e-5."""
    own = ranks["gradients"]
    for gradients, expected in zip(own, single["gradients"][-len(own) :], strict=True):
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-5)
    assert ranks["weights"].keys() == single["weights"].keys()
    for name, weight in single["weights"].items():
        torch.testing.assert_close(ranks["weights"][name], weight, rtol=0, atol=1e-5)
    for name, value in single["metrics"].items():
        if not name.startswith(MEASURED):
            assert ranks["metrics"][name] == pytest.approx(value, abs=1e-5), name
    assert single["metrics"]["optimizer/gradient_norm"] > 1e-6
    assert single["metrics"]["reward/total"] > 0.1


def assert_share(held: dict[str, int], whole: dict[str, int], world_size: int) -> None:
    """Bytes of one rank: a fair share, but for rows that cannot be halved."""
    for part, size in whole.items():
        assert size / world_size <= held[part] <= 1.1 * size / world_size, part


def check_ranks(world_size: int, kinds: list[str], root: Path, tmp_path: Path) -> None:
    jobs = [make_job(root, tmp_path / kind, kind) for kind in kinds]
    run_ranks(world_size, train_all, jobs)
    for job, kind in zip(jobs, kinds, strict=True):
        single = alone(root, tmp_path / f"{kind} alone", kind)
        for rank in range(world_size):
            own = result(job.out, rank)
            assert_same_run(own, single)
            assert own["left"] == 0, "gradients are freed"
        skipped = 0 if job.poisoned_step is None else 2  # of both epochs
        assert single["metrics"]["optimizer/skipped"] == skipped
        assert_share(result(job.out)["bytes"], single["bytes"], world_size)


@pytest.mark.timeout(900)  # two processes that import everything, on a busy machine too
def test_five_steps_of_two_ranks_are_those_of_one_process(root: Path, tmp_path: Path) -> None:
    check_ranks(2, ["tied recomputed lora", "full", "critic, a step skipped"], root, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # several groups of processes, on a busy machine too
@pytest.mark.parametrize("world_size", [2, 4])
def test_every_kind_of_policy_on_two_and_four_ranks(
    root: Path, tmp_path: Path, world_size: int
) -> None:
    check_ranks(world_size, list(KINDS), root, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # several groups of processes, on a busy machine too
@pytest.mark.parametrize("kind", ["full", "lora", "critic"])
def test_a_run_goes_on_on_another_number_of_ranks(root: Path, tmp_path: Path, kind: str) -> None:
    """One process -> two ranks -> four -> two -> one process: always the run left alone."""

    def job(name: str, **fields: Any) -> Job:
        return make_job(root, tmp_path / name, kind, **fields)

    def saved(name: str, step: int) -> Path:
        return tmp_path / f"{name} saved" / f"step_{step:06d}.ckpt"

    single = alone(root, tmp_path / "alone", kind, checkpoints=saved("one", 0).parent)
    two = job("two", resume=saved("one", 1), checkpoints=saved("two", 0).parent)
    run_ranks(2, train_all, [two])
    four = job("four", resume=saved("two", 2), checkpoints=saved("four", 0).parent)
    run_ranks(4, train_all, [four])
    again = job("again", resume=saved("four", 3), checkpoints=saved("again", 0).parent)
    run_ranks(2, train_all, [again])
    train(0, 1, job("last", sharded=False, resume=saved("again", 4)))
    for name, updates in (("two", 4), ("four", 3), ("again", 2), ("last", 1)):
        own = result(tmp_path / name)
        # restoring makes an update of nothing, to have states that can be restored
        own["gradients"] = own["gradients"][-updates:]
        assert own["policy_step"] == 5
        assert_same_run(own, single)


def refuse(rank: int, world_size: int, job: Job, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(rank, world_size, job)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # several groups of processes, on a busy machine too
def test_a_checkpoint_of_another_model_or_optimizer_is_refused(root: Path, tmp_path: Path) -> None:
    message = "resume= is of another model: .* tensors are only there"
    sharded, file = tmp_path / "sharded", tmp_path / "file"
    run_ranks(2, train_all, [make_job(root, tmp_path / "a", steps=1, checkpoints=sharded)])
    alone(root, tmp_path / "b", steps=1, checkpoints=file)
    for saved in (sharded, file):
        lora = make_job(root, tmp_path / "c", "lora", resume=saved / "step_000001.ckpt")
        run_ranks(2, refuse, lora, message)
        lora.sharded = False
        refuse(0, 1, lora, message)
        other = make_job(root, tmp_path / "d", resume=lora.resume, optimizer=SGD)
        run_ranks(2, refuse, other, "is of another optimizer, which keeps exp_avg.*run nothing")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"param_dtype": "int8"},
            r"trainer.strategy.param_dtype=int8: .*use one of float32, bfloat16$",
        ),
        ({"reduce_dtype": "float16"}, r"reduce_dtype=float16: gradients are not scaled"),
        ({"reduce_dtype": "half"}, "trainer.strategy.reduce_dtype=half"),
        ({"timeout_minutes": 0}, "trainer.strategy.timeout_minutes=0"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FullyShardedStrategy(**settings)


def test_a_precision_that_would_drop_the_float32_weights_is_refused(root: Path) -> None:
    strategy = FullyShardedStrategy()
    Trainer(accelerator="cpu", devices=1, strategy=strategy, precision="bf16-true", logger=False)
    with pytest.raises(ValueError, match=r"trainer.precision=bf16-true .* leave it at 32-true"):
        strategy.setup_environment()
