"""What a run is said to need is what it takes, and follows the settings that are named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.helpers.flex import flex_on_cpu
from tests.helpers.models import LLAMA
from zerosearch.planning.memory import (
    GRAPH_BYTES,
    LOGIT_BYTES,
    graphs_of,
    memory_rows,
    shard_bytes,
    states_per_parameter,
)
from zerosearch.planning.memory_table import GIB, PHASES, MemoryRow, check_fits, total
from zerosearch.planning.run import Critic, Neighbour, PlannedRun, Sampler
from zerosearch.policy.activation_memory import (
    Pass,
    Shape,
    kept_bytes,
    kv_bytes_per_token,
    layer_bytes,
    logits_bytes,
)
from zerosearch.policy.adaptation import decoder_layers
from zerosearch.policy.critic import load_critic, put_value_head
from zerosearch.policy.flex_attention import FLEX_ATTENTION
from zerosearch.policy.gathering import BUCKET_BYTES
from zerosearch.policy.logprobs import token_logprobs
from zerosearch.policy.sharding import Sharding, shard_model
from zerosearch.policy.source import PolicySource

QWEN = {**LLAMA, "model_type": "qwen2", "num_hidden_layers": 3, "vocab_size": 333}
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
BF16, FP32 = torch.bfloat16, torch.float32
RANKS = 8
BATCH: dict[str, Any] = {"engine_share": 0.4, "engine_sleeps": True, "engine_rows": 16}


def source(**fields: Any) -> PolicySource:
    return PolicySource(**{"path": "x", "architecture": QWEN, "random_init": True, **fields})


def sampler(**fields: Any) -> Sampler:
    return Sampler(dtype=BF16, **fields)


def plan(described: PolicySource | None = None, **fields: Any) -> PlannedRun:
    described = described or source()
    model = described.build_on_meta()
    settings: dict[str, Any] = {
        "model": model,
        "shape": Shape(model.config),
        "sampler": sampler(engine_share=0.4, engine_sleeps=True),
        "gpus": RANKS,
        "sharded": True,
        "compute_dtype": BF16,
        "residual_dtype": BF16,
        "packed": True,
        "reduce_dtype": FP32,
        "optimizer_states": 2.0,
        "critic": None,
        "with_reference": described.lora is None,
        "cpu_offload": False,
        "reshard_after_forward": True,
        "gradient_checkpointing": True,
        "tokens_per_micro_batch": 512,
        "longest": 128,
        "logprob_chunk_tokens": 64,
    }
    return PlannedRun(**{**settings, **fields})


def rows(given: PlannedRun, gpu_bytes: int = GIB) -> dict[str, MemoryRow]:
    return {row.name: row for row in memory_rows(given, gpu_bytes)}


def tensor_bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# -- weights, gradients, states -------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [{}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "lora": LORA}],
    ids=["full", "bf16", "lora"],
)
@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_states_are_those_of_a_real_step(fields: dict[str, Any], make: Any) -> None:
    described = source(**fields)
    model = described.load_model()
    optimizer = make([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(input_ids=torch.arange(8)[None]).logits.float().sum().backward()
    optimizer.step()
    states = [
        each
        for state in optimizer.state.values()
        for each in state.values()
        if isinstance(each, Tensor) and each.dim()
    ]
    made = rows(
        plan(
            described,
            gpus=1,
            sharded=False,
            optimizer_states=states_per_parameter(lambda p: make(p, lr=0.1)),
        )
    )
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert made["weights"].training == tensor_bytes(model.parameters())
    assert made["gradients"].training == tensor_bytes(gradients) > 0
    assert made["optimizer states"].training == tensor_bytes(states)
    assert ("reference policy" in made) == (described.lora is None)


@pytest.fixture
def ranks() -> Iterator[None]:
    """A process group of eight ranks of which this is the first, and the others do not exist."""
    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_shards_are_those_of_fsdp(lora: LoraConfig | None) -> None:
    """Also where rows do not divide evenly: 333 words over 8 ranks."""
    model = source(lora=lora).build_on_meta()
    whole = list(model.parameters())
    expected = shard_bytes(whole, RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    shard_model(model, Sharding(mesh=mesh, device=torch.device("meta")))
    local = [p.to_local() for p in model.parameters() if isinstance(p, DTensor)]
    assert len(local) == len(whole)
    assert tensor_bytes(local) == expected


def critic_of(described: PolicySource, optimizer_states: float = 2.0) -> Critic:
    model = described.build_on_meta()
    put_value_head(model)
    return Critic(model=model, optimizer_states=optimizer_states)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_critic_keeps_what_it_keeps(lora: LoraConfig | None) -> None:
    described = source(lora=lora)
    critic = load_critic(described, None)
    trained = [p for p in critic.parameters() if p.requires_grad]
    fields: dict[str, Any] = {"gpus": 1, "sharded": False}
    made = rows(plan(described, critic=critic_of(described, 1.0), **fields))
    assert made["critic: weights"].training == tensor_bytes(critic.parameters())
    assert made["critic: gradients"].training == tensor_bytes(trained)
    assert made["critic: optimizer states"].training == tensor_bytes(trained)
    without = rows(plan(described, **fields))
    del made["fragmentation (a tenth)"], without["fragmentation (a tenth)"]
    assert made.keys() - without.keys() == {name for name in made if name.startswith("critic: ")}
    assert {name: made[name] for name in without} == without, "one of them is in a pass at a time"


def test_the_critics_root_stays_while_the_policy_is_trained() -> None:
    described = source()
    critic = critic_of(described)
    root = sum(p.numel() for n, p in critic.model.named_parameters() if ".layers." not in n)
    name = "gathered weights, gradients"
    with_critic, without = (rows(plan(described, critic=c))[name] for c in (critic, None))
    assert with_critic.training - without.training == 2 * root
    assert with_critic.sampling == without.sampling


# -- activations ----------------------------------------------------------------------------------


def saved_bytes(model: nn.Module, run: Callable[[], Any]) -> int:
    """What autograd saves in a forward pass, beside weights."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    assert result.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


TOKENS = 256  # two blocks of flex attention


def made(dtype: str, *, autocast: bool = False, packed: bool = False) -> Pass:
    return Pass(
        tokens=TOKENS,
        longest=TOKENS // 2,
        dtype=BF16 if autocast else getattr(torch, dtype),
        residual=getattr(torch, dtype),
        packed=packed,
    )


def forward_bytes(layers: int, given: Pass, model_type: str, *, checkpointing: bool = False) -> int:
    """What a decoder keeps of a micro-batch, without copies of its weights."""
    shape = {**QWEN, "num_hidden_layers": layers, "model_type": model_type}
    model = source(
        architecture=shape,
        dtype=str(given.residual).removeprefix("torch."),
        gradient_checkpointing=checkpointing,
    ).load_model(trained=False)
    if given.packed:
        model.set_attn_implementation(FLEX_ATTENTION)
    ids = torch.zeros(1 if given.packed else 2, given.longest * (1 + given.packed)).long()
    mask = torch.ones_like(ids)
    mask[-1, 64:] = 0
    positions = torch.arange(TOKENS).remainder(given.longest)[None]
    told = {"position_ids": positions} if given.packed else {"attention_mask": mask}
    decoder, autocast = model.get_decoder(), given.dtype != given.residual

    def run() -> Tensor:
        embedded = model.get_input_embeddings()(ids)
        with torch.autocast("cpu", BF16, enabled=autocast):
            return decoder(inputs_embeds=embedded, use_cache=False, **told)[0]

    with flex_on_cpu() if given.packed else nullcontext():
        kept = saved_bytes(model, run)
    if not autocast or checkpointing:
        return kept
    return kept - 2 * sum(p.numel() for each in decoder_layers(model) for p in matrices(each))


def matrices(layer: nn.Module) -> list[Tensor]:
    return [p for p in layer.parameters() if p.dim() == 2]


@pytest.mark.parametrize(
    ("dtype", "autocast", "model_type", "packed"),
    [
        ("bfloat16", False, "llama", False),
        ("float32", False, "qwen2", False),
        ("float32", True, "qwen2", False),
        ("bfloat16", False, "qwen2", True),
        ("float32", True, "llama", True),
    ],
)
def test_a_layer_keeps_what_autograd_saves(
    dtype: str, autocast: bool, model_type: str, packed: bool
) -> None:
    given = made(dtype, autocast=autocast, packed=packed)
    two, three = (forward_bytes(n, given, model_type) for n in (2, 3))
    assert three - two == layer_bytes(Shape(source().load_config()), given)


@pytest.mark.parametrize(("dtype", "autocast"), [("bfloat16", False), ("float32", True)])
def test_with_checkpointing_a_layer_keeps_its_input(dtype: str, autocast: bool) -> None:
    given = made(dtype, autocast=autocast)
    one, three = (forward_bytes(n, given, "qwen2", checkpointing=True) for n in (1, 3))
    assert three - one == 2 * TOKENS * 64 * given.residual.itemsize, "not what it computes in"
    expected = kept_bytes(Shape(source().load_config()), given, checkpointing=True)
    assert three == pytest.approx(expected, rel=0.05)


def test_packed_rows_keep_less_and_are_filled_to_a_block() -> None:
    padded, packed = (rows(plan(packed=each))["activations"] for each in (False, True))
    more = plan(packed=True, tokens_per_micro_batch=512 + 128)
    whole = plan(gradient_checkpointing=False, packed=True)
    assert (
        rows(whole)["activations"].training
        < rows(dataclasses.replace(whole, packed=False, tokens_per_micro_batch=640))[
            "activations"
        ].training
    )
    assert packed.training * 512 == padded.training * 640, "512 tokens and a block of padding"
    assert rows(more)["activations"].training * 640 == packed.training * 768


@pytest.mark.parametrize("chunks", [1, 8])
@pytest.mark.parametrize("with_entropy_bonus", [False, True])
def test_one_chunk_of_logits_takes_what_is_measured_however_many_there_are(
    with_entropy_bonus: bool, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, chunk = 16_384, 64
    described = source(
        architecture={**QWEN, "vocab_size": words, "hidden_size": 16, "num_hidden_layers": 1},
        gradient_checkpointing=True,
    )
    model = described.load_model().train()
    # the tracker refuses a module that is called twice
    head = partial(F.linear, weight=model.get_parameter("lm_head.weight"))
    monkeypatch.setattr(model, "get_output_embeddings", lambda: head)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ids = torch.zeros(chunks, chunk + 1, dtype=torch.long)
    mask = torch.ones_like(ids, dtype=torch.bool)
    select = mask.clone()
    select[:, 0] = False
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        stats = token_logprobs(
            model, ids, mask, select, chunk_tokens=chunk, entropy_gradient=with_entropy_bonus
        )
        (stats.logprobs.sum() + with_entropy_bonus * stats.entropy.sum()).backward()
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    taken = peak - 2 * tensor_bytes(model.parameters())  # weights and gradients
    assert taken == pytest.approx(logits_bytes(Shape(model.config), chunk), rel=0.15)


def test_the_kv_cache_is_counted_by_hand() -> None:
    shape = Shape(source().load_config())
    assert kv_bytes_per_token(shape, BF16) == 2 * 3 * 2 * 16 * 2  # keys, values; layers; heads


def test_an_update_takes_the_weights_again_where_activations_are_gone() -> None:
    small: dict[str, Any] = {"tokens_per_micro_batch": 8, "longest": 8, "packed": False}
    given = plan(gpus=1, sharded=False, **small)
    found = rows(given)
    parameters = sum(p.numel() for p in given.model.parameters())
    pass_over = ("weights computed with", "activations", "the optimizer's update")
    assert sum(found[name].training for name in pass_over) == 4 * parameters
    assert "the optimizer's update" not in rows(plan(gpus=1, sharded=False))


# -- the knobs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"gpus": 8}, {"gpus": 4}),
        ({"gpus": 8}, {"gpus": 8, "sharded": False}),
        ({"cpu_offload": True}, {}),
        ({"gradient_checkpointing": True}, {"gradient_checkpointing": False}),
        ({"tokens_per_micro_batch": 256}, {"tokens_per_micro_batch": 512}),
        ({"logprob_chunk_tokens": 256}, {"logprob_chunk_tokens": 512}),
        ({"reshard_after_forward": True}, {"reshard_after_forward": False}),
        ({"compute_dtype": BF16}, {"compute_dtype": FP32}),
        ({"with_reference": False}, {"with_reference": True}),
        ({"optimizer_states": 1.0}, {"optimizer_states": 2.0}),
        ({}, {"critic": critic_of(source())}),
        ({}, {"sampler": sampler(engine_share=0.4, engine_sleeps=False)}),
        ({}, {"sampler": sampler(engine_share=0.4, engine_sleeps=True, ahead=True)}),
    ],
    ids=lambda part: next(iter(part), "default"),
)
def test_every_knob_lowers_what_training_needs(
    better: dict[str, Any], worse: dict[str, Any]
) -> None:
    small, large = (memory_rows(plan(**fields), GIB) for fields in (better, worse))
    assert total(small, "training") < total(large, "training")


def test_more_share_of_the_gpu_is_more_kv_cache() -> None:
    found = [
        rows(plan(sampler=sampler(engine_share=share)))["vLLM: KV cache"].sampling
        for share in (0.3, 0.6)
    ]
    assert found[1] - found[0] == pytest.approx(0.3 * GIB, rel=1e-6)


def test_an_engine_that_sleeps_is_not_there_while_the_policy_is_trained() -> None:
    asleep = rows(plan(sampler=sampler(**BATCH)))
    awake = rows(plan(sampler=sampler(**{**BATCH, "engine_sleeps": False})))
    for name in ("vLLM: weights", "vLLM: work space", "vLLM: KV cache"):
        assert asleep[name].training == 0 < awake[name].training == asleep[name].sampling
        assert asleep[name].sync == asleep[name].sampling, "built at the first sync, awake"


def test_cuda_graphs_are_part_of_the_share_and_outlast_sleep() -> None:
    share = int(0.4 * GIB)
    made = rows(plan(sampler=sampler(**BATCH, engine_graphs=True)))
    graphs = made["vLLM: CUDA graphs"]
    assert {getattr(graphs, phase) for phase in PHASES} == {3 * GRAPH_BYTES * (7 + 5)}
    assert sum(made[name].sampling for name in made if name.startswith("vLLM")) == share
    without = rows(plan(sampler=sampler(**BATCH)))
    assert without["vLLM: CUDA graphs"].sampling == 0
    assert sum(without[name].sampling for name in without if name.startswith("vLLM")) == share


def test_an_engine_works_on_logits_or_on_a_layer() -> None:
    logits = rows(plan(sampler=sampler(**BATCH)))["vLLM: work space"]
    assert logits.sampling == 16 * 333 * (2 + LOGIT_BYTES)
    layer = rows(plan(sampler=sampler(**BATCH, engine_tokens=10_000)))["vLLM: work space"]
    assert layer.sampling == 10_000 * (2 * 64 + 3 * 128) * 2


@pytest.mark.parametrize(("at_a_time", "graphs"), [(0, 0), (16, 12), (256, 51 + 35), (1024, 102)])
def test_graphs_are_those_that_vllm_captures(at_a_time: int, graphs: int) -> None:
    """51 and 35 are what its log says (vllm-project/vllm#39559)."""
    assert graphs_of(at_a_time) == graphs


def test_an_engine_that_samples_ahead_cannot_sleep() -> None:
    ahead = rows(plan(sampler=sampler(engine_share=0.4, engine_sleeps=True, ahead=True)))
    awake = rows(plan(sampler=sampler(engine_share=0.4)))
    for phase in PHASES:
        assert total(ahead.values(), phase) == total(awake.values(), phase)
    copy = rows(plan(sampler=sampler(holds_copy=True, kv_tokens=100, ahead=True)))
    assert copy["KV cache"].training == copy["KV cache"].sampling > 0


def test_what_trains_only_is_not_there_while_others_work() -> None:
    given = plan(critic=critic_of(source()), gpus=2, sharded=False)
    for name, row in rows(given).items():
        phases = {phase for phase in PHASES if getattr(row, phase)}
        if "gradients" in name or name in ("activations", "a chunk of logits", "gradient buckets"):
            assert phases == {"training"}, name
        elif name.endswith(("weights", "optimizer states", "reference policy")):
            assert phases >= {"sync", "sampling", "training", "validation"} or "vLLM" in name


def test_a_validation_is_sampling_with_its_own_sequences() -> None:
    given = rows(plan(sampler=sampler(uses_policy=True, kv_tokens=100, validation_kv_tokens=30)))
    for name, row in given.items():
        if name not in ("KV cache", "fragmentation (a tenth)"):
            assert row.validation == row.sampling, name
    assert given["KV cache"].validation == 30 * kv_bytes_per_token(plan().shape, BF16)


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_a_sync_gathers_in_the_engines_dtype(dtype: torch.dtype) -> None:
    size = dtype.itemsize
    given = plan(sampler=Sampler(dtype=dtype, engine_share=0.9))
    layer = max(sum(p.numel() for p in each.parameters()) for each in decoder_layers(given.model))
    numbers = sum(p.numel() for p in given.model.parameters())
    bucket = numbers * size + numbers * size // RANKS
    assert numbers * size < BUCKET_BYTES, "all of it in one"
    assert rows(given)["weights being sent"].sync == bucket + layer * size
    elsewhere = plan(sampler=Sampler(dtype=dtype))
    assert rows(elsewhere)["weights being sent"].sync == bucket
    largest = max(p.numel() for p in given.model.parameters())
    whole: dict[str, Any] = {"gpus": 1, "sharded": False}
    cast = rows(plan(sampler=Sampler(dtype=dtype, engine_share=0.9), **whole))
    assert cast["weights being sent"].sync == (largest + layer) * size
    copied = rows(plan(sampler=Sampler(dtype=dtype, holds_copy=True), **whole))
    assert copied["weights being sent"].sync == largest * size
    own = rows(plan(sampler=sampler(uses_policy=True), **whole))
    assert own["weights being sent"].sync == 0


def test_a_bucket_is_the_streams_and_a_larger_weight_goes_alone() -> None:
    wide = {**QWEN, "vocab_size": 600_000, "hidden_size": 1024, "num_hidden_layers": 1}
    found = rows(plan(source(architecture=wide), sampler=sampler()))
    assert found["weights being sent"].sync == 2 * 1024 * 600_000 * (1 + 1 / RANKS)
    two = {**wide, "vocab_size": 80_000}  # 164 MB each
    found = rows(plan(source(architecture=two), sampler=sampler()))
    assert found["weights being sent"].sync == BUCKET_BYTES * (1 + 1 / RANKS)


def test_adapted_layers_are_merged_as_they_are_kept() -> None:
    """Beside the whole weight there is the float32 product of its adapters."""
    described = source(lora=LORA, architecture={**QWEN, "vocab_size": 99})
    for dtype, size in (("float32", 8), ("bfloat16", 6)):
        given = plan(
            dataclasses.replace(described, dtype=dtype), sampler=sampler(), gpus=1, sharded=False
        )
        assert rows(given)["weights being sent"].sync == 64 * 128 * size


def test_a_copy_and_the_policy_itself_as_samplers() -> None:
    own = rows(plan(sampler=sampler(uses_policy=True, kv_tokens=100)))
    copied = rows(plan(sampler=sampler(holds_copy=True, kv_tokens=100)))
    assert own["KV cache"].sampling == 100 * kv_bytes_per_token(plan().shape, BF16)
    assert own["gathered weights, gradients"].sampling > 0
    assert copied["gathered weights, gradients"].sampling == 0
    assert copied["the sampler's copy"].training == 2 * sum(
        p.numel() for p in plan().model.parameters()
    )


def test_adapters_cost_no_gradients_of_the_base() -> None:
    described = source(lora=LORA, dtype="bfloat16")
    made = rows(plan(described, gpus=1))
    adapters = sum(p.numel() for p in described.build_on_meta().parameters() if p.requires_grad)
    assert made["gradients"].training == 4 * adapters
    assert made["weights"].training == 4 * adapters + 2 * sum(
        p.numel() for p in source().build_on_meta().parameters()
    )


def test_a_tenth_of_what_is_taken_in_pieces_is_lost_between_them() -> None:
    beside = Neighbour(share=0.3, weights=0)
    made = rows(plan(sampler=sampler(engine_share=0.4), simulator=beside), 8 * GIB)
    lost = made.pop("fragmentation (a tenth)")
    whole = [name for name in made if name.startswith(("vLLM", "simulator", "CUDA"))]
    assert len(whole) == 7
    for phase in PHASES:
        pieces = sum(getattr(row, phase) for name, row in made.items() if name not in whole)
        assert getattr(lost, phase) == int(0.1 * pieces) > 0


def test_a_simulator_on_the_same_gpu_is_there_all_the_time() -> None:
    beside = Neighbour(share=0.5, weights=2 * GIB)
    alone, made = rows(plan(), 8 * GIB), rows(plan(simulator=beside), 8 * GIB)
    assert made.keys() - alone.keys() == {
        "simulator: weights",
        "simulator: KV cache, work space",
    }
    for phase in PHASES:
        more = total(made.values(), phase) - total(alone.values(), phase)
        assert more == 4 * GIB, "its share, whatever it holds"
    with pytest.raises(ValueError, match=r"simulator.server.gpu_memory_utilization=0.3 is 2.4 GiB"):
        rows(plan(simulator=Neighbour(share=0.3, weights=2 * GIB)), 8 * GIB)


# -- refusal --------------------------------------------------------------------------------------


def test_what_fits_is_accepted_and_what_does_not_says_what_to_change() -> None:
    tight = plan(logprob_chunk_tokens=512)
    every = memory_rows(tight, GIB)
    needed = total(every, "training")
    others = max(total(every, phase) for phase in PHASES)
    check_fits(every, others)
    short = [dataclasses.replace(row, sync=0, sampling=0, validation=0) for row in every]
    check_fits(short, needed)
    with pytest.raises(ValueError, match=r"training needs .* GiB per GPU.*logprob_chunk_tokens"):
        check_fits(short, needed - 1)


@pytest.mark.parametrize(
    ("largest", "knob"),
    [
        ("weights", r"trainer\.num_nodes.*trainer\.strategy\.cpu_offload=true"),
        ("vLLM: weights", r"generator\.gpu_memory_utilization.*sleep_while_training=true"),
        ("a chunk of logits", r"module\.logprob_chunk_tokens"),
        ("activations", r"module\.tokens_per_micro_batch"),
    ],
)
def test_the_largest_part_decides_what_is_advised(largest: str, knob: str) -> None:
    given = plan(logprob_chunk_tokens=512, sampler=sampler(engine_share=0.4))
    row = dataclasses.replace(rows(given)[largest], training=10 * GIB)
    with pytest.raises(ValueError, match=rf"{largest} 10\.0.*{knob}"):
        check_fits([row], GIB)


def test_a_share_too_small_for_the_engine() -> None:
    with pytest.raises(ValueError, match=r"gpu_memory_utilization=1e-05 .*one episode: raise it"):
        memory_rows(plan(sampler=sampler(engine_share=1e-5)), GIB)


def test_sampling_ahead_is_refused_with_its_own_remedy() -> None:
    given = plan(sampler=sampler(engine_share=0.4, engine_sleeps=True, ahead=True))
    row = dataclasses.replace(rows(given)["vLLM: KV cache"], training=10 * GIB)
    with pytest.raises(ValueError, match=r"training needs.*set rollout\.lag=0.*vllm_server"):
        check_fits([row], GIB)


def test_a_phase_is_the_sum_of_its_rows() -> None:
    every = [MemoryRow(name="a", sync=1, sampling=2, training=3), MemoryRow(name="b", training=4)]
    assert [total(every, phase) for phase in PHASES] == [1, 2, 7, 0]
