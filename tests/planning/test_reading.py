"""The plan that is read from a configuration, the table, and the check before training."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.configs import ROOT, compose_config
from zerosearch import assembly
from zerosearch.assembly import prepare
from zerosearch.commands.plan import main
from zerosearch.core import memory
from zerosearch.core.errors import InputError
from zerosearch.core.runs import Summary
from zerosearch.generation.vllm.llm_engine import GPU_BATCH
from zerosearch.planning.fitting import fit_memory
from zerosearch.planning.memory import memory_rows
from zerosearch.planning.memory_table import GIB, total
from zerosearch.planning.reading import card_of, plan_of
from zerosearch.planning.run import PlannedRun
from zerosearch.policy.sharding import base_model

LARGE = ["experiment=zerosearch_7b", "simulator.endpoints=[http://a:1/v1]", "trainer.devices=8"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Eight GPUs of one kind; their memory can be changed."""
    found = SimpleNamespace(total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    return found


def plan(folder: Path, *overrides: str) -> PlannedRun:
    return plan_of(compose_config(folder, *overrides))


def test_training_is_refused_before_it_loads_anything(gpu: SimpleNamespace, tmp_path: Path) -> None:
    cfg = compose_config(tmp_path, *LARGE)
    fit_memory(cfg)
    gpu.total_memory = 48 * GIB
    with pytest.raises(ValueError, match=r"sync needs .* GiB per GPU, which has 48\.0"):
        fit_memory(compose_config(tmp_path, *LARGE, "generator.gpu_memory_utilization=0.9"))


def test_sampling_ahead_beside_training_is_refused(gpu: SimpleNamespace, tmp_path: Path) -> None:
    """A colocated engine cannot sleep while it samples: 87 of 80 GiB."""
    with pytest.raises(ValueError, match=r"training needs 87\.\d GiB.*80\.0.*set rollout\.lag=0"):
        fit_memory(compose_config(tmp_path, *LARGE, "rollout.lag=1"))
    fit_memory(compose_config(tmp_path, *LARGE, "rollout.lag=1", "generator=vllm_server"))


def on_host(monkeypatch: pytest.MonkeyPatch, gib: float, free: float = 1000.0) -> None:
    """A machine without a GPU that has so much memory."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(memory, "host_bytes", lambda: int(gib * GIB))
    monkeypatch.setattr(memory, "available_bytes", lambda: int(free * GIB))


@pytest.mark.parametrize("trainer", ["cpu", "auto"])
def test_on_a_cpu_a_run_that_does_not_fit_is_refused(
    trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = compose_config(
        tmp_path, f"trainer={trainer}", "module.tokens_per_micro_batch=1000000", "made_for=null"
    )
    on_host(monkeypatch, 100)
    assert fit_memory(large) == 1_000_000
    on_host(monkeypatch, 20)
    with pytest.raises(ValueError, match=r"memory: training needs .*per process, which has 20\.0"):
        fit_memory(large)
    large.trainer.devices = 2  # which share it
    on_host(monkeypatch, 100)
    with pytest.raises(ValueError, match=r"which has 50\.0.*lower module\.tokens_per_micro_batch"):
        fit_memory(large)


def test_a_gpu_that_is_not_there_is_not_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_host(monkeypatch, 1)
    assert fit_memory(compose_config(tmp_path, *LARGE)) == 16_384


def test_the_size_of_a_micro_batch_follows_from_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that can run it the quickstart's is what it always was."""
    tiny: list[str] = []
    large = ["model=qwen2_5_0_5b", "made_for=null", "data.validation_batch=1"]
    found = []
    for gib, overrides in ((4, tiny), (1000, tiny), (1000, large), (24, large)):
        on_host(monkeypatch, gib)
        found.append(fit_memory(compose_config(tmp_path, "questions_per_step=1", *overrides)))
    assert found == [16_384, 16_384, 16_384, 512]


def test_a_new_run_takes_them_and_a_resumed_one_those_of_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(assembly, "fit_memory", lambda cfg, saved: 512)
    caplog.set_level("INFO")
    new = compose_config(tmp_path, "trainer=cpu")
    assert prepare(new, Summary(tmp_path)) is None
    assert new.module.tokens_per_micro_batch == 512 and "batch: 512" in caplog.text
    (tmp_path / "last.ckpt").touch()
    resumed = compose_config(tmp_path, "trainer=cpu", f"resume={tmp_path / 'last.ckpt'}")
    assert prepare(resumed, Summary(tmp_path)) == tmp_path / "last.ckpt"
    assert resumed.module.tokens_per_micro_batch is None
    told = compose_config(tmp_path, "trainer=cpu", "module.tokens_per_micro_batch=64")
    prepare(told, Summary(tmp_path))
    assert told.module.tokens_per_micro_batch == 64


def saved_run(folder: Path, **notes: object) -> Path:
    """Its newest checkpoint, without weights."""
    torch.save({"zerosearch": notes}, folder / "last.ckpt")
    return folder / "last.ckpt"


def test_micro_batches_of_a_larger_machine_are_refused_where_they_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved_run(tmp_path, tokens_per_micro_batch=16_384)
    resumed = compose_config(tmp_path, "trainer=cpu", f"resume={file}")
    on_host(monkeypatch, 1.8)
    assert fit_memory(resumed) < 16_384, "that of a new run here"
    with pytest.raises(InputError, match=r"1\.8 GiB.*add module\.tokens_per_micro_batch=512") as no:
        prepare(resumed, Summary(tmp_path))
    told = compose_config(tmp_path, "trainer=cpu", f"resume={file}", str(no.value).split()[-1])
    assert prepare(told, Summary(tmp_path)) == file
    on_host(monkeypatch, 3)
    assert fit_memory(resumed, 16_384) == 16_384, "half of the memory is not asked for here"


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ({"tokens_per_micro_batch": "many"}, "tokens_per_micro_batch is 'many'"),
        ({"date": "yesterday"}, r"the date of the checkpoint of resume= is 'yesterday'"),
    ],
)
def test_what_a_checkpoint_notes_is_checked(
    notes: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "fit_memory", lambda cfg, saved: 512)
    file = saved_run(tmp_path, **notes)
    with pytest.raises(InputError, match=said):
        prepare(compose_config(tmp_path, "trainer=cpu", f"resume={file}"), Summary(tmp_path))


def test_a_gpu_takes_the_largest_that_fits(gpu: SimpleNamespace, tmp_path: Path) -> None:
    cfg = compose_config(tmp_path, "model=qwen2_5_0_5b", "made_for=null", "trainer=gpu")
    assert fit_memory(cfg) == 16_384
    gpu.total_memory = 16 * GIB
    assert fit_memory(cfg) == 1024


def test_other_programs_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_host(monkeypatch, 16, free=8)
    chosen = fit_memory(compose_config(tmp_path))
    fit_memory(compose_config(tmp_path, "trainer.num_nodes=8"))
    assert not caplog.records, "other nodes have memory of their own"
    on_host(monkeypatch, 16, free=1)
    assert fit_memory(compose_config(tmp_path)) == chosen, "no matter of what is free just now"
    assert "other programs leave 1.0" in caplog.text


def test_all_visible_gpus_are_counted(gpu: SimpleNamespace, tmp_path: Path) -> None:
    auto = [*LARGE[:2], "trainer.devices=auto", "trainer.num_nodes=2"]
    assert plan(tmp_path, *auto).gpus == 16
    assert plan(tmp_path, "trainer.devices=[0,2,3]").gpus == 3
    assert plan(tmp_path, "trainer.devices='0,2'").gpus == 2


def test_where_no_gpu_is_visible_their_number_must_be_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"trainer\.devices=auto.*such as trainer\.devices=8"):
        plan(tmp_path, *LARGE[:2])


@pytest.mark.parametrize(
    ("overrides", "computed", "residual"),
    [
        (["trainer=cpu"], torch.float32, torch.float32),
        (["trainer=gpu"], torch.bfloat16, torch.float32),
        (["trainer=gpu", "trainer.precision=bf16"], torch.bfloat16, torch.float32),
        (["trainer=fsdp", "trainer.devices=2"], torch.bfloat16, torch.bfloat16),
    ],
)
def test_precision_is_that_of_the_trainer(
    overrides: list[str], computed: torch.dtype, residual: torch.dtype, tmp_path: Path
) -> None:
    found = plan(tmp_path, *overrides)
    assert (found.compute_dtype, found.residual_dtype) == (computed, residual)
    assert found.sharded == ("trainer=fsdp" in overrides)


@pytest.mark.parametrize(
    ("overrides", "packed"),
    [
        ([], True),
        (["trainer=cpu"], False),
        (["model.attn_implementation=sdpa"], False),
        (["model.attn_implementation=flash_attention_2"], True),
        (["+model.architecture.head_dim=8"], False),
        (["model.architecture.model_type=gemma2"], False),
    ],
    ids=lambda part: part and part[0] if isinstance(part, list) else str(part),
)
def test_sequences_share_rows_where_they_will_on_a_gpu(
    overrides: list[str], packed: bool, tmp_path: Path
) -> None:
    """Heads too small for flex attention and scores that are capped are padded."""
    assert plan(tmp_path, "model=qwen2_5_0_5b", *overrides).packed == packed


def test_settings_of_the_run_reach_the_plan(tmp_path: Path) -> None:
    found = plan(
        tmp_path,
        "trainer=fsdp",
        "trainer.devices=4",
        "trainer.strategy.cpu_offload=true",
        "module.tokens_per_micro_batch=1000",
        "module.logprob_chunk_tokens=100",
        "episode.max_context_tokens=700",
        "optimizer._target_=torch.optim.SGD",
        "algorithm.kl_coefficient=0",
    )
    assert found.cpu_offload and found.optimizer_states == 0 and not found.with_reference
    assert (found.tokens_per_micro_batch, found.logprob_chunk_tokens, found.longest) == (
        1000,
        100,
        700,
    )
    # 16 questions x 8 siblings on 4 GPUs, each as long as an episode may be
    assert found.sampler.kv_tokens == 32 * 700
    assert found.sampler.holds_copy and not found.sampler.uses_policy, "it cannot use shards"


@pytest.mark.parametrize(
    ("generator", "share", "copy"),
    [
        ("vllm", 0.4, False),
        ("vllm_server", 0.0, False),
        ("transformers", 0.0, False),
        ("transformers_copy", 0.0, True),
    ],
)
def test_who_samples_decides_what_sampling_takes(
    generator: str, share: float, copy: bool, tmp_path: Path
) -> None:
    sampler = plan(tmp_path, f"generator={generator}").sampler
    assert (sampler.engine_share, sampler.holds_copy) == (share, copy)
    assert sampler.uses_policy == (generator == "transformers")


@pytest.mark.parametrize(
    ("overrides", "dtype"),
    [
        (["generator=vllm"], torch.bfloat16),
        (["generator=vllm", "generator.dtype=float32"], torch.float32),
        (["generator=transformers_copy", "generator.copy_dtype=bfloat16"], torch.bfloat16),
        (["generator=transformers_copy"], torch.float32),
        (["generator=transformers_copy", "trainer=fsdp", "trainer.devices=2"], torch.bfloat16),
        (["generator=transformers"], torch.bfloat16),
    ],
)
def test_what_samples_is_counted_in_its_own_dtype(
    overrides: list[str], dtype: torch.dtype, tmp_path: Path
) -> None:
    """Under autocast a copy has the weights' dtype, and an engine that of the computation."""
    assert plan(tmp_path, "trainer=gpu", *overrides).sampler.dtype == dtype


def test_an_engine_is_counted_as_it_is_built(tmp_path: Path) -> None:
    found = plan(tmp_path, "generator=vllm").sampler
    assert [found.engine_rows, found.engine_tokens] == [*GPU_BATCH.values()]
    assert found.engine_graphs
    few = plan(tmp_path, "generator=vllm", "+generator.engine_args.max_num_seqs=16").sampler
    assert few.engine_rows == 16
    eager = plan(tmp_path, "generator=vllm", "+generator.engine_args.enforce_eager=true").sampler
    assert not eager.engine_graphs and eager.engine_rows == found.engine_rows
    batches = plan(tmp_path, "data.validation_batch=10", "trainer.devices=2").sampler
    assert batches.validation_kv_tokens == 5 * 640


def test_a_critic_is_the_policys_model_with_an_optimizer_of_its_own(tmp_path: Path) -> None:
    assert plan(tmp_path).critic is None
    found = plan(
        tmp_path,
        "algorithm=ppo",
        "algorithm.critic.optimizer._target_=torch.optim.SGD",
        "+algorithm.critic.optimizer.momentum=0.9",
    )
    assert found.critic is not None and found.critic.optimizer_states == 1
    assert found.optimizer_states == 2
    vocabulary, hidden = found.shape.vocabulary, found.shape.hidden
    sizes = [sum(p.numel() for p in m.parameters()) for m in (found.model, found.critic.model)]
    tied = base_model(found.model).config.tie_word_embeddings
    assert sizes[0] - sizes[1] == (0 if tied else vocabulary * hidden) - (hidden + 1)


@pytest.mark.parametrize(
    ("overrides", "beside"),
    [
        ([], False),
        (["simulator.launch=true"], True),
        (["simulator.launch=true", "simulator.server.gpus=[7]"], False),
        (["simulator.launch=true", "simulator.server.gpus=[6,7]", "trainer.devices=[0,7]"], True),
    ],
)
def test_a_simulator_counts_where_it_shares_a_gpu(
    overrides: list[str], beside: bool, tmp_path: Path
) -> None:
    large = ["experiment=zerosearch_7b", "trainer.devices=7"]
    found = plan(tmp_path, *large, *overrides).simulator
    assert (found is not None) == beside
    if found is not None:
        assert found.share == 0.9 and found.weights == pytest.approx(2 * 7_615_616_512, rel=1e-3)


def test_the_quickstart_fits_anywhere(tmp_path: Path) -> None:
    rows = memory_rows(plan(tmp_path), 8 * GIB)
    assert all(total(rows, phase) < 4 * GIB for phase in ("sync", "sampling", "training"))


@pytest.mark.parametrize("page", ["scale.md", "one_gpu.md"])
def test_the_pages_show_what_the_command_prints(
    page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / page).read_text()
    [(command, shown)] = re.findall(
        r"```\n(zerosearch plan [^\n]+)\n```\n```\n(GiB .*?)```", text, re.DOTALL
    )
    monkeypatch.setattr("sys.argv", ["zerosearch plan", *command.split()[2:]])
    main()
    printed = capsys.readouterr().out
    assert [line.rstrip() for line in printed.splitlines()] == shown.splitlines()


def test_the_command_plans_this_machine_for_a_run_on_its_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["plan", "trainer=cpu"])
    on_host(monkeypatch, 6)
    main()
    printed = capsys.readouterr().out
    assert printed.startswith("GiB in the process;") and "batches of 16,384 tokens" in printed
    assert "policy step on cpu" in printed
    assert re.search(r"^of +6\.00", printed, re.MULTILINE) and "CUDA" not in printed
    on_host(monkeypatch, 1)
    monkeypatch.setattr("sys.argv", ["plan", "trainer=cpu"])  # Hydra has changed it
    with pytest.raises(SystemExit):
        main()
    assert "batches of 512 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "card"),
    [
        (["trainer=cpu"], "cpu"),
        (["trainer=cpu", "trainer.precision=bf16-mixed"], "cpu_bfloat16"),
        (["trainer=cpu", "trainer.precision=bf16-mixed", "card=cpu"], "cpu"),
        (["trainer=gpu", "trainer.precision=bf16-mixed"], "h100"),
    ],
)
def test_time_is_planned_for_a_core_in_the_precision_of_training(
    overrides: list[str], card: str, tmp_path: Path
) -> None:
    cfg = compose_config(tmp_path, *overrides, name="plan")
    assert card_of(cfg) == card and card in cfg.speeds.cards


def test_the_processes_of_a_cpu_share_the_memory_that_is_planned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["plan", "trainer=cpu", "trainer.devices=2"])
    on_host(monkeypatch, 12)
    main()
    assert re.search(r"^of +6\.00", capsys.readouterr().out, re.MULTILINE)


def test_the_command_refuses_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["plan", *LARGE, "rollout.lag=1"])
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code == 1
    assert "a simulator of half the size" in capsys.readouterr().out, "the plan is shown first"
