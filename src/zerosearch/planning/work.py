"""What a run does, read from its composed configuration; nothing is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import OmegaConf

from zerosearch.planning.episodes import EpisodeTokens, SearchSpeed
from zerosearch.planning.memory import shard_bytes
from zerosearch.planning.memory_table import GIB
from zerosearch.planning.reading import card_of, class_name
from zerosearch.planning.speeds import BYTES, Card, ReplicatedModel, Size, Speeds
from zerosearch.planning.time import Evaluations, Work
from zerosearch.policy.sharding import base_model
from zerosearch.simulator.cost import (
    CHARS_PER_TOKEN,
    SEARCHES_PER_EPISODE,
    TOKENS_PER_WORD,
    held_out_episodes,
    make_plan,
)
from zerosearch.types import Question

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from zerosearch.planning.run import PlannedRun

SERVER_ROWS = 1024  # that a server of vLLM decodes at a time on a large card (engine/arg_utils.py)
_QUESTION = Question(
    uid="plan",
    text="Which currency is used in the country where the city of Lyon lies?",
    golden_answers=("Euro",),
)


def work_of(cfg: DictConfig, plan: PlannedRun, kv_cache: int = 0) -> Work:
    """The work of a run that trains a policy.

    Args:
        cfg: of `configs/plan.yaml`, with a listed card.
        plan: read from it, see `plan_of`.
        kv_cache: bytes on each GPU of an engine beside the policy; 0: no bound.
    """
    speeds: Speeds = hydra.utils.instantiate(cfg.speeds)
    card = Card(**speeds.cards[card_of(cfg)])
    algorithm: Any = hydra.utils.instantiate(cfg.algorithm, _convert_="all")
    parameters = [*plan.model.parameters()]
    numbers = sum(p.numel() for p in parameters)
    trained = [p for p in parameters if p.requires_grad]
    size = Size.of_policy(
        plan.shape,
        numbers,
        base_model(plan.model).config.tie_word_embeddings,
        plan.sampler.dtype.itemsize,
    )
    apart = class_name(cfg.generator) == "VLLMServerGenerator"
    episode = _episode(cfg, speeds)
    fitting = kv_cache * plan.sampler.engine_gpus / (episode.tokens * size.kv_bytes)
    rows = plan.sampler.engine_rows or cfg.generator.get("max_batch", SERVER_ROWS)
    critics = 0 if plan.critic is None else 1
    optimizer = 1 + plan.optimizer_states
    return Work(
        speeds=speeds,
        card=card,
        gpus=plan.gpus,
        nodes=cfg.trainer.num_nodes,
        policy_steps=cfg.policy_steps,
        episodes=cfg.questions_per_step * cfg.algorithm.group_size,
        episode=episode,
        size=size,
        sampler=ReplicatedModel(
            size=size,
            card=card,
            speeds=speeds,
            replicas=cfg.sampler_gpus or plan.gpus
            if apart
            else plan.gpus / plan.sampler.engine_gpus,
            rows=min(rows, max(1, int(fitting))) if kv_cache else rows,
            gpus_each=1 if apart else plan.sampler.engine_gpus,
        ),
        sampler_apart=apart,
        ahead=bool(cfg.rollout.lag),
        search=_search(cfg, cfg.search, card, speeds),
        shares_simulator=plan.simulator is not None,
        trained=sum(p.numel() for p in trained) / numbers,
        forwards=algorithm.needs_reference + algorithm.needs_old_logprobs + critics,
        updates=algorithm.inner_epochs * (1 + critics),
        sent_bytes=_sent_bytes(cfg, plan, numbers, apart=apart),
        sharded=plan.sharded,
        saved_bytes=shard_bytes(parameters, 1)
        + shard_bytes(trained, 1) * (optimizer * (1 + critics) - 1),
        save_every=cfg.callbacks.checkpoint.every_n_steps,
        evaluations=_evaluations(cfg, card, speeds),
    )


def _episode(cfg: DictConfig, speeds: Speeds) -> EpisodeTokens:
    episode = cfg.episode
    prompt = hydra.utils.instantiate(episode).render_prompt(_QUESTION)
    asked = OmegaConf.select(cfg, "search.engine.words_per_document")
    words = episode.top_k * (asked or speeds.retrieved_words)
    return EpisodeTokens(
        prompt=len(prompt) / CHARS_PER_TOKEN,
        turn=speeds.turn_share * episode.max_turn_tokens,
        documents=min(words * TOKENS_PER_WORD, episode.max_observation_tokens),
        searches=min(SEARCHES_PER_EPISODE, episode.max_turns),
        max_searches=episode.max_turns,
        group_size=cfg.algorithm.group_size,
    )


def _search(cfg: DictConfig, search: DictConfig, card: Card, speeds: Speeds) -> SearchSpeed:
    """Who answers the queries of one `search` node."""
    engine = search.engine if "engine" in search else search
    planned = make_plan(cfg)
    if planned is None or "client" not in engine:
        return SearchSpeed(engine=None, latency_s=engine.get("latency_s", speeds.retrieval_s))
    simulator = cfg.get("simulator")
    weights = (simulator or {}).get("weights_gib")
    if not weights:  # of unknown size, such as an API
        return SearchSpeed(engine=None, latency_s=speeds.retrieval_s)
    each = simulator.server.tensor_parallel
    gpus = cfg.simulator_gpus or len(simulator.server.gpus or simulator.endpoints or [0]) * (
        1 if simulator.server.gpus else each
    )
    return SearchSpeed(
        engine=ReplicatedModel(
            size=Size(parameters=weights * GIB / BYTES),
            card=card,
            speeds=speeds,
            replicas=gpus / each,
            rows=SERVER_ROWS,
            gpus_each=each,
        ),
        read=planned.read_tokens,
        written=planned.written_tokens,
    )


def _sent_bytes(cfg: DictConfig, plan: PlannedRun, numbers: int, *, apart: bool) -> float:
    """Of what the sampler gets at a sync; 0 where it uses the policy itself."""
    sampler = plan.sampler
    if not (apart or sampler.engine_share or sampler.holds_copy):
        return 0.0
    adapters = sum(p.numel() for n, p in plan.model.named_parameters() if ".lora_" in n)
    only = cfg.generator.get("lora_sync") == "adapter"
    return (adapters if only else numbers - adapters) * sampler.dtype.itemsize


def _evaluations(cfg: DictConfig, card: Card, speeds: Speeds) -> Evaluations:
    held_out = held_out_episodes(cfg)
    return Evaluations(
        searches=tuple(_search(cfg, each.search, card, speeds) for each in cfg.evaluation.values()),
        validations=held_out.validations,
        of_validation=held_out.of_validation,
        tests=held_out.tests,
        of_test=held_out.of_test,
        batch=cfg.data.validation_batch,
    )
