"""Every configuration file composes and makes its objects; the paper's runs have its values."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import torch.distributed as dist
from hydra.errors import InstantiationException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.helpers.configs import CONFIGS, compose_config, hydra_run
from zerosearch.assembly import PolicyRun, assemble, assemble_tuning
from zerosearch.callbacks.curriculum import NoiseCurriculum
from zerosearch.commands.evaluate import table_run
from zerosearch.data.geography.facts import asset
from zerosearch.data.sources import QASource
from zerosearch.evaluation.table_run import Method
from zerosearch.planning.memory import memory_rows, shard_bytes
from zerosearch.planning.memory_table import GIB, check_fits
from zerosearch.planning.reading import plan_of
from zerosearch.policy.sharding import Sharding, shard_model
from zerosearch.simulator.engine import SimulatedSearch
from zerosearch.simulator.scripted import ScriptedSimulator

OF_COLLECTING = ("agent", "judge", "questions")  # groups of other programs
OF_EVALUATION = ("benchmark", "engines", "methods", "prompted", "table")
OF_PLANNING = ("planned", "speeds")
GROUPS = sorted(
    (path.parent.name, path.stem)
    for path in CONFIGS.glob("*/*.yaml")
    if path.parent.name not in ("hydra", *OF_COLLECTING, *OF_EVALUATION, *OF_PLANNING)
)
OF_TUNING = {("callbacks", "tuning"), ("data", "simulation"), ("data", "episodes")}
OF_TUNING |= {
    ("experiment", name)
    for group, name in GROUPS
    if name.startswith(("simulator_sft", "cold_start"))
}
OF_TUNING |= {(group, name) for group, name in GROUPS if group == "tuned"}
CHOICES = [choice for choice in GROUPS if choice not in OF_TUNING]
SHIPPED = "simulator.prompt_template=tuned"
ENDPOINT = "simulator.endpoints=[http://127.0.0.1:9/v1]"
OWN_DATA = ["data.files=[train.jsonl]", "data.validation.own.path=held_out.parquet"]
ANY_ENGINE = "search.engine={_target_: tests.helpers.engines.ScriptedEngine, answer: []}"
ON_CPU = ["trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=1"]
# what a choice needs beside itself, on a machine without GPU
NEEDED: dict[tuple[str, str], list[str]] = {
    ("data", "files"): OWN_DATA,
    ("data", "base"): ["+data.files=[train.jsonl]"],
    ("experiment", "r1_7b"): [*ON_CPU, "generator=transformers_copy"],
    ("experiment", "search_r1_7b"): [*ON_CPU, "generator=transformers_copy"],
    **{
        ("experiment", f"search_r1pp_{size}"): [*ON_CPU, "generator=transformers_copy"]
        for size in ("1_5b", "3b", "7b")
    },
    ("experiment", "any_model"): ["model.path=mine"],
    **{
        ("experiment", name): [ENDPOINT, *ON_CPU, "generator=transformers_copy"]
        for name in ("one_gpu_24gb", "one_gpu_24gb_lora", "one_gpu_80gb")
    },
    ("model", "base"): ["model.path=mine"],
    ("model", "hf"): ["model.path=mine"],
    ("search", "cached"): [ANY_ENGINE],
    ("search", "simulated"): ["simulator=prompted_3b", ENDPOINT],
    ("trainer", "gpu"): ON_CPU,
    ("trainer", "ddp"): ON_CPU,
    ("trainer", "fsdp"): ON_CPU,
    **{
        ("simulator", name): [ENDPOINT]
        for group, name in CHOICES
        if group == "simulator" and not name.startswith("scripted")
    },
    ("simulator", "llm"): [ENDPOINT, "simulator.model=mine"],
    ("simulator", "exported"): [ENDPOINT, "simulator.folder=x", SHIPPED],
    ("simulator", "in_process"): ["simulator.folder=x", SHIPPED],
    ("simulator", "tiny_tuned"): [SHIPPED],
    ("simulator", "tiny_tuned_0_7m"): [SHIPPED],
    ("simulator", "tiny_tuned_3m"): [SHIPPED],
    ("simulator", "tiny_untuned"): [],
    ("simulator", "tiny_tuned_vllm"): [SHIPPED],
    **{  # the template is derived first
        ("simulator", f"tuned_{size}"): [ENDPOINT, SHIPPED] for size in ("3b", "7b", "14b")
    },
}
PAPER = ("zerosearch_3b", "zerosearch_7b", "zerosearch_llama_3b")
GPUS = {  # what each large run is made for: GPUs of 80 GB
    "zerosearch_3b": 4,
    "zerosearch_llama_3b": 4,
    "zerosearch_7b": 8,
    "zerosearch_7b_lora": 1,
    "zerosearch_7b_split": 8,
    "zerosearch_14b": 16,
}
SIZES = {  # parameters: model cards
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_7b": 7_615_616_512,
    "qwen2_5_14b": 14_770_033_664,
    "llama_3_2_3b": 3_212_749_824,
}


def overrides_of(group: str, name: str) -> list[str]:
    """A choice with what it needs here; vLLM is replaced by a sampler that needs no install."""
    large = [ENDPOINT, *ON_CPU, "generator=transformers_copy"]
    is_large = group == "experiment" and name in GPUS
    return [f"{group}={name}", *NEEDED.get((group, name), large if is_large else [])]


def make_run(folder: Path, *overrides: str) -> PolicyRun:
    return assemble(compose_config(folder, *overrides))


def test_groups_are_those_of_the_design() -> None:
    groups = {group for group, _ in GROUPS}
    assert groups == {
        "algorithm",
        "callbacks",
        "compat",
        "corpus",
        "curriculum",
        "data",
        "debug",
        "endpoints",
        "episode",
        "evaluation",
        "experiment",
        "generator",
        "health",
        "hparams_search",
        "logger",
        "model",
        "paths",
        "rubric",
        "search",
        "simulator",
        "simulator_check",
        "trainer",
        "tuned",
    }


@pytest.mark.parametrize("override", ["~logger", "logger=none"])
def test_a_run_may_have_no_logger(override: str, tmp_path: Path) -> None:
    assert make_run(tmp_path).trainer.loggers
    assert make_run(tmp_path, override).trainer.loggers == []


def test_a_run_may_have_several_loggers(tmp_path: Path) -> None:
    made = make_run(tmp_path, "logger=[tensorboard,csv]").trainer.loggers
    assert [type(each).__name__ for each in made] == ["CurveLogger", "CSVLogger"]
    folders = [Path(each.log_dir) for each in made if each.log_dir]
    assert folders == [tmp_path / "tensorboard", tmp_path / "csv" / "version_0"]


def test_a_debug_run_shows_debug_messages_of_this_project_alone(tmp_path: Path) -> None:
    cfg = compose_config(tmp_path, "debug=default", whole=True)
    assert cfg.hydra.verbose == "zerosearch", "true would show those of asyncio, too"


SERVED = ["agent.client.endpoints=[http://127.0.0.1:9/v1]", "agent.client.model=m"]
OF_COLLECTING = [  # command, group, choice, node, what the choice needs beside itself
    ("collect", "agent", "local", "collector", []),
    ("collect", "agent", "rule", "collector", []),
    ("collect", "agent", "chat", "collector", SERVED),
    ("collect", "agent", "tools", "collector", SERVED),
    ("collect", "questions", "geography", "questions", []),
    ("collect", "questions", "files", "questions", ["questions.path=mine.jsonl"]),
    ("judge", "judge", "rule", "judging", []),
    (
        "judge",
        "judge",
        "llm",
        "judging",
        ["judge.client.endpoints=[http://127.0.0.1:9/v1]", "judge.client.model=m"],
    ),
]


@pytest.mark.parametrize(("program", "group", "name", "node", "needed"), OF_COLLECTING)
def test_every_choice_of_collecting_makes_its_objects(
    program: str, group: str, name: str, node: str, needed: list[str], tmp_path: Path
) -> None:
    names = {path.stem for path in (CONFIGS / group).glob("*.yaml")}
    assert names == {each[2] for each in OF_COLLECTING if each[1] == group}
    cfg = compose_config(tmp_path, f"{group}={name}", *needed, name=program)
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert hydra.utils.instantiate(cfg[node], _convert_="all") is not None


CHAT = ["agent=chat", "agent.client.endpoints=[http://127.0.0.1:9/v1]", "agent.client.model=m"]
PROMPTED = ["prompted=chat", "prompted.endpoints=[http://127.0.0.1:9/v1]", "prompted.model=m"]
EVALUATIONS = {  # what a choice needs beside itself
    ("benchmark", "file"): ["benchmark.file.path=x.parquet"],
    ("benchmark", "one_file"): ["benchmark_file=x.parquet"],
    ("prompted", "chat"): PROMPTED[1:],
    ("engines", "geography"): ["simulator.prompt_template=compact"],
    ("table", "quickstart"): ["simulator.prompt_template=compact"],
}


@pytest.mark.parametrize(
    ("group", "name"),
    sorted(
        (path.parent.name, path.stem)
        for path in CONFIGS.glob("*/*.yaml")
        if path.parent.name in OF_EVALUATION
    ),
)
def test_every_choice_of_an_evaluation_makes_a_table(group: str, name: str, tmp_path: Path) -> None:
    overrides = [f"{group}={name}", *EVALUATIONS.get((group, name), [])]
    cfg = compose_config(tmp_path, *overrides, name="evaluate", whole=True)
    with hydra_run(cfg) as cfg:  # for the engine's label
        run = table_run(cfg, tmp_path)
    assert run.methods and run.engines and run.benchmarks
    assert all(isinstance(each, Method) for each in run.methods.values())
    made = [each.prompted(client=None) for each in run.methods.values() if each.prompted]
    assert all(hasattr(agent, "play") for agent in made)
    if name == "all" and group == "benchmark":
        with (Path(str(resources.files("zerosearch.evaluation"))) / "paper.csv").open() as file:
            assert list(run.benchmarks) == file.readline().strip().split(",")[2:]
    if (group, name) == ("methods", "all"):
        labels = [each.label for each in run.methods.values()]
        assert labels == ["Direct answer", "CoT", "RAG", "RA-Agent", "Search-o1", "policy"]


def test_an_evaluation_is_greedy_unless_told_otherwise(tmp_path: Path) -> None:
    cfg = compose_config(tmp_path, "methods=all", name="evaluate")
    assert cfg.agent.sampling.temperature == 0.0
    assert cfg.methods.rag.prompted.temperature == 0.0
    assert compose_config(tmp_path, *CHAT, name="ask").agent.temperature == 0.0
    assert compose_config(tmp_path, name="collect").agent.sampling.temperature == 1.0


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("experiment/*.yaml")), ids=lambda p: p.stem)
def test_an_experiment_leaves_the_episode_to_its_choice(path: Path) -> None:
    """Else `episode=NAME` on the command line would be overridden without a word."""
    assert "episode" not in OmegaConf.load(path), "write a file in configs/episode"


def test_rl_after_a_cold_start_has_the_episode_of_the_command_line(tmp_path: Path) -> None:
    plain = compose_config(tmp_path, "episode=plain", name="collect").episode
    policy = "model.path=RUN/policy"
    for chosen in (["smollm2_geography"], ["any_model", "model=hf", "episode=plain"]):
        assert (
            compose_config(tmp_path, f"experiment={chosen[0]}", *chosen[1:], policy).episode
            == plain
        )
    usual = compose_config(tmp_path, "experiment=any_model", policy).episode
    assert (usual.prompt_template, usual.max_turns, usual.top_k) == ("few_shot", 3, 3)


TUNING_GPUS = {"simulator_sft_3b": 2, "simulator_sft_7b": 4, "simulator_sft_14b": 8}
ROWS = "data.files.train=rows.jsonl"


@pytest.mark.parametrize("name", sorted(name for kind, name in OF_TUNING if kind == "experiment"))
def test_every_tuning_makes_the_objects_of_a_run(name: str, tmp_path: Path) -> None:
    cfg = compose_config(tmp_path, f"experiment={name}", ROWS, *ON_CPU, name="tune")
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    run = assemble_tuning(cfg)
    callbacks = {type(each).__name__ for each in run.trainer.callbacks}  # type: ignore[attr-defined]
    written = {"MetricsCsv", "TensorBoardPages", "PolicyCheckpoint", "PolicyExport"}
    assert written | {"GracefulStop"} <= callbacks
    assert run.trainer.limit_train_batches == run.module.policy_steps == cfg.steps
    assert cfg.callbacks.checkpoint.every_n_steps < cfg.steps, "a run that is killed goes on"
    if name in TUNING_GPUS:
        optimizer = run.module.optimizer_factory([torch.nn.Parameter(torch.zeros(1))])
        assert optimizer.param_groups[0]["lr"] == 1e-6, "paper"
        assert run.module.policy_source.chat and cfg.model.path.endswith("-Instruct")


@pytest.mark.parametrize("name", TUNING_GPUS)
def test_large_simulators_are_built_on_the_meta_device_and_fit_their_gpus(
    name: str, tmp_path: Path
) -> None:
    cfg = compose_config(tmp_path, f"experiment={name}", ROWS, name="tune")
    plan = plan_of(cfg)
    assert plan.sharded and plan.gpus == TUNING_GPUS[name] and not plan.with_reference
    assert {p.device.type for p in plan.model.parameters()} == {"meta"}
    assert all(p.requires_grad for p in plan.model.parameters())
    check_fits(memory_rows(plan, 80 * GIB), 80 * GIB)
    assert cfg.data.examples_per_step % plan.gpus == 0


def test_sampling_ahead_is_one_override_and_a_generator_that_can(tmp_path: Path) -> None:
    run = make_run(tmp_path, "rollout.lag=1", "generator=transformers_copy")
    assert run.module.lag == 1 and make_run(tmp_path).module.lag == 0
    with pytest.raises(InstantiationException, match=r"rollout\.lag=1"):
        make_run(tmp_path, "rollout.lag=1")


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        (["data=files", OWN_DATA[1]], "data.files"),
        (["data=files", OWN_DATA[0]], "data.validation.own.path"),
    ],
)
def test_what_only_the_user_knows_is_asked_for(
    overrides: list[str], missing: str, tmp_path: Path
) -> None:
    assert missing in OmegaConf.missing_keys(compose_config(tmp_path, *overrides))


def corpus_of(folder: Path, *overrides: str) -> Any:
    """What the engine of training reads."""
    corpus = compose_config(folder, *overrides).search.engine.corpus
    return hydra.utils.instantiate(corpus) if isinstance(corpus, DictConfig) else corpus


def test_an_engine_over_a_corpus_follows_the_data(tmp_path: Path) -> None:
    places = compose_config(tmp_path).paths.data_dir
    small, own = f"{places}/hotpotqa_small/corpus.jsonl.gz", "search.engine.corpus=my.jsonl"
    for engine in ("search=bm25", "search=dense"):
        assert corpus_of(tmp_path, engine) == asset("corpus.jsonl.gz")
        assert corpus_of(tmp_path, engine, "data=hotpotqa_small") == small
        assert corpus_of(tmp_path, engine, "data=hotpotqa_small", "corpus=wiki18") != small
        assert corpus_of(tmp_path, engine, "data=hotpotqa_small", own) == "my.jsonl"
    assert corpus_of(tmp_path, "experiment=smollm2_135m") == small
    assert corpus_of(tmp_path, "experiment=smollm2_135m", "data=geography") == asset(
        "corpus.jsonl.gz"
    )
    for program in ("evaluate", "ask", "serve", "retrieve", "collect"):
        cfg = compose_config(tmp_path, "corpus=hotpotqa_small", name=program)
        assert cfg.search.engine.corpus == small


def test_the_data_of_an_experiment_can_be_swapped(tmp_path: Path) -> None:
    run = make_run(tmp_path, "experiment=smollm2_135m", "data=geography", *ON_CPU)
    run.data.setup("fit")
    assert len(run.data.train_dataloader().__iter__().__next__()) == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("group", ["experiment", "algorithm", "simulator", "model"])
def test_an_unknown_name_lists_the_known_ones(group: str, tmp_path: Path) -> None:
    with pytest.raises(MissingConfigException) as error:
        compose_config(tmp_path, f"{group}=no_such")
    message = str(error.value)
    assert f"{group}/no_such" in message
    assert all(name in message for kind, name in CHOICES if kind == group)


# -- values reach their objects -------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7])
def test_the_seed_reaches_rollouts_and_data_zero_too(seed: int, tmp_path: Path) -> None:
    run = make_run(tmp_path, f"seed={seed}")
    assert run.module.seed == seed
    assert run.data._seed == seed  # type: ignore[attr-defined]


def test_the_default_is_quickstart(tmp_path: Path) -> None:
    plain = compose_config(tmp_path)
    assert plain == compose_config(tmp_path, "experiment=quickstart")
    assert plain.seed == 0 and plain.trainer.accelerator == "auto"


def test_command_line_values_go_over_those_of_the_experiment(tmp_path: Path) -> None:
    given = ["experiment=zerosearch_7b", "policy_steps=2", "algorithm=reinforce"]
    given += ["generator=transformers", *ON_CPU, ENDPOINT]
    run = make_run(tmp_path, *given)
    assert (run.module.policy_steps, run.module.algorithm.group_size) == (2, 5)
    assert run.module.algorithm.advantage.keywords == {"baseline": "batch"}  # type: ignore[attr-defined]


def test_simulators_differ_in_reliability_and_the_sweep_goes_over_them(tmp_path: Path) -> None:
    cfg = compose_config(tmp_path, "hparams_search=reliability", whole=True)
    names = cfg.hydra.sweeper.params.simulator.split(",")
    assert cfg.hydra.mode.name == "MULTIRUN" and len(names) == 3
    reliabilities = []
    for name in names:
        engine = make_run(tmp_path, f"simulator={name}").module.search
        assert isinstance(engine, ScriptedSimulator)
        reliabilities.append(engine.reliability)
    assert reliabilities == sorted(set(reliabilities), reverse=True) and reliabilities[0] == 1.0


def test_training_never_sees_held_out_subjects(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert isinstance(run.module.search, ScriptedSimulator)
    splits = {split for _, split in run.module.search.facts.groups}
    assert "train" in splits and not splits & {"validation", "test"}
    assert next(iter(run.module.evaluations)) == "bm25", "the headline is a real engine"


def test_episodes_to_learn_from_show_no_held_out_subject(tmp_path: Path) -> None:
    cfg = compose_config(tmp_path, "search=scripted", "agent=rule", name="collect")
    engine = hydra.utils.instantiate(cfg.search, _convert_="all")
    agent = hydra.utils.instantiate(cfg.agent, _convert_="all")
    assert {split for _, split in engine.facts.groups} == {"train", "bridge"}
    assert agent.splits == ("train",)


@pytest.mark.parametrize("program", ["evaluate", "ask", "serve", "fidelity"])
def test_outside_of_training_the_scripted_engine_knows_all_places(
    tmp_path: Path, program: str
) -> None:
    choices = ["search=scripted", "simulator=scripted"]
    cfg = compose_config(tmp_path, *choices, name=program)
    engine = hydra.utils.instantiate(cfg.search, _convert_="all")
    assert {"train", "validation", "test"} <= {split for _, split in engine.facts.groups}


def test_trainers_use_the_devices_they_name(tmp_path: Path) -> None:
    found = {
        name: compose_config(tmp_path, f"trainer={name}").trainer
        for name in ("auto", "cpu", "gpu", "ddp")
    }
    assert {name: node.accelerator for name, node in found.items()} == {
        "auto": "auto",
        "cpu": "cpu",
        "gpu": "gpu",
        "ddp": "gpu",
    }
    assert found["gpu"].precision == "bf16-mixed" and found["cpu"].precision == "32-true"
    assert found["ddp"].strategy._target_.endswith("ReplicatedStrategy")
    assert found["ddp"].devices == "auto"
    assert {node.devices for name, node in found.items() if name != "ddp"} == {1}


# -- the paper's runs -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "parameters"), SIZES.items())
def test_large_policies_have_their_published_size(
    name: str, parameters: int, tmp_path: Path
) -> None:
    source = hydra.utils.instantiate(compose_config(tmp_path, f"model={name}").model)
    model = source.build_on_meta()
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}, "trained"
    assert model.num_parameters() == parameters
    assert model.is_gradient_checkpointing


@pytest.mark.parametrize(
    ("name", "model", "simulator", "noise"),
    [
        ("zerosearch_3b", "Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-3B-Instruct", (0.0, 0.25)),
        ("zerosearch_7b", "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct", (0.0, 0.75)),
        ("zerosearch_llama_3b", "meta-llama/Llama-3.2-3B", "Qwen/Qwen2.5-3B-Instruct", (0.25, 0.5)),
    ],
)
def test_the_runs_of_the_paper_have_its_values(
    name: str, model: str, simulator: str, noise: tuple[float, float], tmp_path: Path
) -> None:
    cfg = compose_config(tmp_path, *overrides_of("experiment", name))
    run = assemble(cfg)
    module, algorithm, episode = run.module, run.module.algorithm, run.module.episode
    assert (module.policy_steps, cfg.questions_per_step, algorithm.group_size) == (203, 64, 5)
    assert (algorithm.kl_coefficient, algorithm.kl_kind) == (0.001, "k3")
    loss: Any = algorithm.loss
    assert (loss.keywords["clip_low"], loss.keywords["clip_high"]) == (0.2, 0.2)
    assert module.gradient_clip == 1.0
    sampling = module.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    assert module.policy_source.path == model

    assert (episode.max_turns, episode.top_k) == (5, 5)
    assert episode.formatter == "zerosearch"
    assert episode.max_turn_tokens == 500
    assert (episode.max_prompt_tokens, episode.max_observation_tokens) == (2048, 2048)
    assert episode.max_context_tokens == 4096

    engine = module.search
    assert isinstance(engine, SimulatedSearch)
    assert (engine.client.model, engine.temperature, engine.max_tokens) == (simulator, 0.8, 600)
    assert engine.prompt.words_per_document == 30

    curriculum = next(c for c in run.trainer.callbacks if isinstance(c, NoiseCurriculum))  # type: ignore[attr-defined]
    assert (curriculum.start, curriculum.end) == noise
    assert (curriculum.base, curriculum.shape) == (4.0, "exponential")


@pytest.mark.parametrize(
    ("size", "path", "gpus"),
    [
        ("1_5b", "Qwen/Qwen2.5-1.5B", 1),
        ("3b", "Qwen/Qwen2.5-3B", 4),
        ("7b", "Qwen/Qwen2.5-7B", 8),
    ],
)
def test_the_recipe_of_search_r1pp(size: str, path: str, gpus: int, tmp_path: Path) -> None:
    cfg = compose_config(tmp_path, f"experiment=search_r1pp_{size}", f"trainer.devices={gpus}")
    assert (cfg.model.path, cfg.episode.prompt_template, cfg.episode.top_k) == (path, "fast", 3)
    assert (
        cfg.search.engine["_target_"].endswith("RetrieverSearch") and cfg.get("simulator") is None
    )
    assert cfg.algorithm.advantage["_target_"].endswith("advantages.reinforce")
    assert cfg.algorithm.loss["_target_"].endswith("losses.reinforce")
    assert cfg.algorithm.advantage.baseline == "none"
    weights = {name: term.weight for name, term in cfg.module.rubric.terms.items()}
    penalties = {"no_search": 0.1, "no_answer": 0.1, "repeated_query": 0.0, "malformed": 0.0}
    assert weights == {"f1": 1.0} | penalties
    plan = plan_of(cfg)
    assert plan.gpus == gpus
    check_fits(memory_rows(plan, 80 * GIB), 80 * GIB)


def chosen(experiment: str) -> dict[str, str]:
    """What an experiment and those that it goes over choose, by group."""
    every: dict[str, str] = {}
    node: Any = OmegaConf.load(CONFIGS / "experiment" / f"{experiment}.yaml")
    for each in node.get("defaults", []):
        if isinstance(each, str):
            every |= chosen(each)
        else:
            every |= {group.removeprefix("override /"): name for group, name in each.items()}
    return every


def test_what_vllm_samples_in_bfloat16_is_weighed(tmp_path: Path) -> None:
    """In every experiment, and also with the authors' settings on top."""
    sampled = set()
    for name in (name for group, name in CHOICES if group == "experiment"):
        choices = chosen(name)
        if choices.get("generator", "").startswith("vllm"):
            sampled.add(name)
            assert choices.get("algorithm/importance_correction") == "truncate", name
    assert {*PAPER, "one_gpu_24gb", "r1_7b", "search_r1_7b", "zerosearch_7b_split"} <= sampled
    assert {f"search_r1pp_{size}" for size in ("1_5b", "3b", "7b")} <= sampled
    cfg = compose_config(tmp_path, "experiment=zerosearch_7b", "compat=paper_ppo")
    assert cfg.algorithm.importance_correction.kind == "truncate"


@pytest.mark.parametrize("name", PAPER)
def test_the_learning_rate_of_the_paper_warms_up_for_most_of_the_run(
    name: str, tmp_path: Path
) -> None:
    module = make_run(tmp_path, *overrides_of("experiment", name)).module
    optimizer = module.optimizer_factory([torch.nn.Parameter(torch.zeros(1))])
    schedule = module.schedule_factory(optimizer, module.policy_steps)
    rates = []
    for _ in range(module.policy_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    warm = round(0.95 * 203)
    assert max(rates) == rates[-1] == 1e-6
    assert rates[warm - 2] < 1e-6 and rates[warm - 1] == pytest.approx(1e-6)
    assert rates[0] == pytest.approx(1e-6 / warm)


@pytest.mark.parametrize("name", PAPER)
def test_the_runs_of_the_paper_train_on_its_questions(name: str, tmp_path: Path) -> None:
    cfg = compose_config(tmp_path, *overrides_of("experiment", name))
    sources = hydra.utils.instantiate(cfg.data.train, _convert_="all")
    fetched = f"{cfg.paths.data_dir}/nq_hotpotqa/train.parquet"
    assert [source.path for source in sources.values()] == [fetched]
    published = compose_config(tmp_path, name="data").sets.nq_hotpotqa
    assert published.repo == "Alibaba-NLP/ZeroSearch_dataset"
    assert all(isinstance(source, QASource) for source in sources.values())
    held_out = hydra.utils.instantiate(cfg.data.test, _convert_="all")
    assert cfg.test and len(held_out) == 1, "measured before the first step, too"
    assert cfg.data.test_limit == cfg.data.validation_limit == 500


# -- large runs -----------------------------------------------------------------------------------


def compose_large(folder: Path, name: str, *more: str) -> DictConfig:
    nodes = {"zerosearch_14b": 2}.get(name, 1)
    devices = f"trainer.devices={GPUS[name] // nodes}"
    return compose_config(folder, f"experiment={name}", ENDPOINT, devices, *more)


@pytest.fixture
def ranks() -> Iterator[None]:
    """A process group of eight ranks of which this is the first, and the others do not exist."""
    dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize("name", GPUS)
def test_large_runs_are_built_and_sharded_without_memory(name: str, tmp_path: Path) -> None:
    cfg = compose_large(tmp_path, name)
    model = hydra.utils.instantiate(cfg.model).build_on_meta()
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    assert trained == {torch.float32}, "master weights"
    expected = shard_bytes(list(model.parameters()), 8)
    mesh = init_device_mesh("cpu", (8,))
    strategy = hydra.utils.instantiate(cfg.trainer.strategy)
    device = torch.device("meta")
    shard_model(model, Sharding(mesh=mesh, device=device, param_dtype=strategy.param_dtype))
    local = [p.to_local() for p in model.parameters() if isinstance(p, DTensor)]
    assert len(local) == len(list(model.parameters()))
    assert sum(p.numel() * p.element_size() for p in local) == expected
    assert {p.device.type for p in local} == {"meta"}


@pytest.mark.parametrize("name", GPUS)
def test_large_runs_fit_the_gpus_they_are_made_for(name: str, tmp_path: Path) -> None:
    cfg = compose_large(tmp_path, name)
    assert cfg.trainer.strategy["_target_"].endswith("FullyShardedStrategy")
    plan = plan_of(cfg)
    assert plan.sharded and plan.gpus == GPUS[name] and plan.compute_dtype == torch.bfloat16
    rows = memory_rows(plan, 80 * GIB)
    check_fits(rows, 80 * GIB)
    engine = {row.name for row in rows if row.name.startswith("vLLM")}
    assert bool(engine) == (name != "zerosearch_7b_split"), "colocated, or on other GPUs"
    assert cfg.questions_per_step % plan.gpus == 0


@pytest.mark.parametrize(
    ("name", "gib", "knob"),
    [
        ("zerosearch_14b", 40, "generator.gpu_memory_utilization"),
        ("zerosearch_7b_lora", 24, "generator.gpu_memory_utilization"),
    ],
)
def test_large_runs_do_not_fit_small_gpus(name: str, gib: int, knob: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"GiB.*{knob}|{knob}.*GiB"):
        check_fits(memory_rows(plan_of(compose_large(tmp_path, name)), gib * GIB), gib * GIB)


def test_the_split_run_samples_ahead_with_a_correction(tmp_path: Path) -> None:
    cfg = compose_large(tmp_path, "zerosearch_7b_split", "generator.endpoints=[http://a:1/v1]")
    assert cfg.rollout.lag == 1 and cfg.generator.endpoints == ["http://a:1/v1"]
    assert cfg.algorithm.importance_correction.kind == "truncate"


def test_adapters_are_all_that_the_lora_run_trains(tmp_path: Path) -> None:
    model = plan_of(compose_large(tmp_path, "zerosearch_7b_lora")).model
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # r (in + out) of every linear layer but the head, 28 layers of Qwen2.5-7B
    attention = 2 * (3584 + 3584) + 2 * (3584 + 512)
    assert trained == 28 * 32 * (attention + 3 * (3584 + 18944))
