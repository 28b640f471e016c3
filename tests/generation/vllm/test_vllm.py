"""Both generators on vLLM keep the contract of generators, and sample what transformers would."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.models import make_model, make_tokenizer
from tests.helpers.policies import forward_logprobs, greedy, make_generator, run
from tests.helpers.vllm import CONTEXT, PROMPTS, change, make_policy, serving
from zerosearch.generation.generator import Completion, CompletionRequest, Sampling
from zerosearch.generation.vllm.generator import VLLMGenerator
from zerosearch.generation.vllm.server_generator import VLLMServerGenerator

pytestmark = pytest.mark.vllm
LOGPROB_TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture(scope="module")
def model() -> Any:
    return make_policy()


@pytest.fixture(scope="module", params=["engine", "server"])
def generator(request: pytest.FixtureRequest, model: Any) -> Iterator[Any]:
    """Bound and synced."""
    if request.param == "engine":
        made: Any = VLLMGenerator(max_model_len=CONTEXT)
    else:
        made = VLLMServerGenerator(endpoints=[request.getfixturevalue("endpoint")])
    model.load_state_dict(make_policy().state_dict())
    made.bind(model, make_tokenizer())
    run(made.sync_weights(model))
    yield made
    if request.param == "engine":
        made.close()


def sample(generator: Any, request: CompletionRequest) -> list[Completion]:
    """All prompts at once."""
    return run(*(generator.generate(prompt, request) for prompt in PROMPTS))


def test_after_every_sync_the_greedy_tokens_are_those_of_transformers(
    generator: Any, model: Any
) -> None:
    reference = make_generator(model)
    for seed in range(2):
        before = [c.token_ids for c in sample(generator, greedy(24))]
        change(model, seed)
        run(reference.sync_weights(model))
        wanted = sample(reference, greedy(24))
        assert before != [c.token_ids for c in wanted], "the change shows"
        run(generator.sync_weights(model))
        for prompt, completion, right in zip(
            PROMPTS, sample(generator, greedy(24)), wanted, strict=True
        ):
            assert completion.token_ids == right.token_ids
            assert completion.text == right.text and completion.stop_reason == right.stop_reason
            assert completion.weight_version == generator.weight_version
            logprobs = forward_logprobs(model, prompt, completion.token_ids)
            assert completion.logprobs == pytest.approx(logprobs, abs=LOGPROB_TOLERANCE)


def test_logprobs_are_of_the_distribution_sampled_from(generator: Any, model: Any) -> None:
    reference = make_generator(model)
    filtered = Sampling(temperature=0.7, top_k=3)
    for prompt, completion in zip(
        PROMPTS,
        sample(generator, CompletionRequest(max_new_tokens=1, seed=5, sampling=filtered)),
        strict=True,
    ):
        [token] = completion.token_ids
        for seed in range(200):  # the same token, drawn by the other generator
            [other] = run(
                reference.generate(
                    prompt, CompletionRequest(max_new_tokens=1, seed=seed, sampling=filtered)
                )
            )
            if other.token_ids == [token]:
                assert completion.logprobs == pytest.approx(other.logprobs, abs=LOGPROB_TOLERANCE)
                break
        else:
            pytest.fail("vLLM drew a token outside the three likeliest ones")


def test_a_seed_gives_the_same_draws_alone_and_in_company(generator: Any) -> None:
    requests = [
        CompletionRequest(max_new_tokens=12, seed=2**64 - 1 - n) for n in range(len(PROMPTS))
    ]
    pairs = list(zip(PROMPTS, requests, strict=True))
    together = run(*(generator.generate(*pair) for pair in pairs))
    alone = [run(generator.generate(*pair))[0] for pair in pairs]
    assert [c.token_ids for c in alone] == [c.token_ids for c in together]
    assert len({tuple(c.token_ids) for c in together}) > 1


def test_endings_are_those_of_transformers(generator: Any, model: Any) -> None:
    reference = make_generator(model)
    run(reference.sync_weights(model))
    tokenizer = make_tokenizer()
    free = sample(reference, greedy(24))
    texts = [tokenizer.decode(completion.token_ids[:4][-2:]) for completion in free]
    reasons = set()
    for prompt, text in zip(PROMPTS, texts, strict=True):
        request = greedy(24, stop=(text, "never seen"))
        [[mine], [right]] = [run(each.generate(prompt, request)) for each in (generator, reference)]
        assert (mine.token_ids, mine.text) == (right.token_ids, right.text)
        assert mine.stop_reason == right.stop_reason
        reasons.add(mine.stop_reason)
    assert "stop" in reasons
    bound = run(generator.generate(PROMPTS[1], greedy(2)))[0]
    assert bound.stop_reason == "length" and len(bound.token_ids) == 2


def test_an_eos_stays_in_the_ids_and_out_of_the_text(generator: Any, model: Any) -> None:
    tokenizer = make_tokenizer()
    eos = model.generation_config.eos_token_id
    model.load_state_dict(make_policy().state_dict())
    run(generator.sync_weights(model))
    completions = sample(generator, greedy(24))
    ended = [completion for completion in completions if completion.stop_reason == "eos"]
    assert completions[0] in ended
    for completion in ended:
        *others, last = completion.token_ids
        assert last in eos and not set(others) & set(eos)
        assert completion.text == tokenizer.decode(others)


def test_second_turns_find_their_first_turn_in_the_cache(generator: Any, model: Any) -> None:
    """Of the tokens that a second turn repeats, most are not computed again; none after a sync."""

    async def play(prompt: list[int]) -> tuple[list[int], int]:
        first = await generator.generate(prompt, CompletionRequest(max_new_tokens=40, seed=3))
        known = prompt + first.token_ids
        return known + list(range(60)), len(known)

    run(generator.sync_weights(model))
    contexts = run(*(play(list(range(n, n + 200))) for n in range(4)))
    before = generator.cached_tokens
    run(*(generator.generate(context, greedy(2)) for context, _ in contexts))
    hit = generator.cached_tokens - before
    assert hit > 0.8 * sum(known for _, known in contexts)

    run(generator.sync_weights(model))
    before = generator.cached_tokens
    run(generator.generate(contexts[0][0], greedy(2)))
    assert generator.cached_tokens == before


def test_a_cancelled_request_leaves_the_others_alone(generator: Any) -> None:
    wanted = sample(generator, greedy(20))

    async def cancel_one() -> list[Any]:
        tasks = [asyncio.create_task(generator.generate(p, greedy(20))) for p in PROMPTS]
        long = asyncio.create_task(
            generator.generate(PROMPTS[0], CompletionRequest(max_new_tokens=300, seed=1))
        )
        for _ in range(3):
            await asyncio.sleep(0)  # it is on its way, and cannot be done yet
        long.cancel()
        return await asyncio.gather(*tasks, long, return_exceptions=True)

    *others, cancelled = run(cancel_one())[0]
    assert isinstance(cancelled, asyncio.CancelledError)
    assert [c.token_ids for c in others] == [c.token_ids for c in wanted]


def test_what_makes_no_request_is_refused(generator: Any, model: Any) -> None:
    with pytest.raises(
        ValueError, match=f"has {CONTEXT} tokens, the engine's context .* {CONTEXT}"
    ):
        run(generator.generate([1] * CONTEXT, greedy(4)))
    [completion] = run(generator.generate([1] * (CONTEXT - 1), greedy(4)))
    assert len(completion.token_ids) == 1, "what is left of the context"
    with pytest.raises(ValueError, match="prompt_ids is empty"):
        run(generator.generate([], greedy(4)))
    with pytest.raises(ValueError, match=r"sampling.temperature=0.001: vLLM samples at no less"):
        lukewarm = Sampling(temperature=0.001)
        run(generator.generate([1], CompletionRequest(max_new_tokens=1, seed=0, sampling=lukewarm)))
    with pytest.raises(ValueError, match="not the bound model"):
        run(generator.sync_weights(make_model(1)))


def test_release_lets_the_rollouts_go_on(generator: Any, model: Any) -> None:
    wanted = sample(generator, greedy(8))
    run(generator.release())
    run(generator.sync_weights(model))
    assert [c.token_ids for c in sample(generator, greedy(8))] == [c.token_ids for c in wanted]
    run(generator.release())


# -- servers only ---------------------------------------------------------------------------------


@pytest.fixture
def server(endpoint: str, model: Any) -> VLLMServerGenerator:
    made = VLLMServerGenerator(endpoints=[endpoint])
    made.bind(model, make_tokenizer())
    return made


def test_weights_from_elsewhere_are_noticed_and_sent_again(
    server: VLLMServerGenerator, endpoint: str, model: Any
) -> None:
    """As after a restart of the server: it holds other weights and does not know the link."""
    run(server.sync_weights(model))
    run(server.release())
    other = VLLMServerGenerator(endpoints=[endpoint])
    other.bind(model, make_tokenizer())
    run(other.sync_weights(model))
    with pytest.raises(RuntimeError, match=r"http://127.0.0.1:\d+: it holds the weights"):
        run(server.release())
    run(server.sync_weights(model))
    run(server.release())


def test_a_server_of_another_model_is_refused(server: VLLMServerGenerator) -> None:
    wider = make_model(1, hidden_size=96, head_dim=32)
    server.bind(wider, make_tokenizer())
    with pytest.raises(ValueError, match=r"serves a model with hidden_size=64, the policy has 96"):
        run(server.sync_weights(wider))


def test_a_server_with_another_tokenizer_is_refused(
    server: VLLMServerGenerator, model: Any
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<search>"]})  # type: ignore[arg-type]
    server.bind(model, tokenizer)
    with pytest.raises(ValueError, match="its tokenizer is not the policy's"):
        run(server.sync_weights(model))
