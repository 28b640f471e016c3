import asyncio
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from tests.helpers.models import VOCABULARY, make_tokenizer
from tests.helpers.waiting import GUARD_S
from zerosearch.data.corpus import Passage, join_contents, write_corpus
from zerosearch.search import dense
from zerosearch.search.dense import DenseSearch
from zerosearch.search.embedding import E5Encoder
from zerosearch.search.engine import Cacheable, Checkable
from zerosearch.search.retrieval import Retriever
from zerosearch.types import Document, SearchError, SearchRequest

faiss = pytest.importorskip("faiss", reason="dense search needs zerosearch[retriever]")

WORDS = ["river", "city", "capital", "Peru", "on the", "Rhône", "film", "known", "for a", "Poland"]
PASSAGES = [
    Passage(
        id=str(i),
        title=f"Title {i}" if i % 3 else "",
        text=" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 3 + i % 9)) + f" {i}",
    )
    for i in range(60)
]
QUERIES = ["city", "the capital of Peru", "a film in Poland known for a river", "17", ""]


def save_encoder(folder: Path, seed: int = 0, **fields) -> str:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.3,  # large, so that texts differ
        **fields,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def engine(model):
    engine = DenseSearch(PASSAGES, model, batch_size=8)
    engine.prepare()
    return engine


def by_hand(model: str, text: str) -> torch.Tensor:
    """Vector [D] of one text: no batch, no padding."""
    encoder, tokenizer = BertModel.from_pretrained(model).eval(), make_tokenizer()
    with torch.inference_mode():
        states = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]  # (T, D)
    mean = states.sum(dim=0) / len(states)
    return mean / mean.norm()


@pytest.fixture(scope="module")
def expected(model):
    """Scores [queries, passages] by brute force."""
    passages = torch.stack(
        [by_hand(model, "passage: " + join_contents(p.title, p.text)) for p in PASSAGES]
    )
    queries = torch.stack([by_hand(model, "query: " + query) for query in QUERIES])
    return queries @ passages.T


def asking(query, top_k=3, timeout_s=30.0):
    return SearchRequest(
        query=query, question="q", golden_answers=("a",), top_k=top_k, timeout_s=timeout_s
    )


def ids(rows):
    return [[hit.passage.id for hit in row] for row in rows]


# --- vectors ---


def test_vectors_are_means_over_the_tokens_of_length_one(model):
    texts = [passage.text for passage in PASSAGES[:20]]  # of many lengths: most rows are padded
    found = E5Encoder(model, batch_size=7).encode_passages(texts)
    assert found.dtype == np.float32
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(20), abs=1e-5)
    for row, text in zip(found, texts, strict=True):
        assert row == pytest.approx(by_hand(model, "passage: " + text).numpy(), abs=1e-5)


def test_queries_and_passages_have_prefixes_of_their_own(model):
    encoder = E5Encoder(model)
    query, passage = encoder.encode_queries(["Lima"])[0], encoder.encode_passages(["Lima"])[0]
    assert query == pytest.approx(by_hand(model, "query: Lima").numpy(), abs=1e-5)
    assert np.abs(query - passage).max() > 0.01


def test_no_texts_have_no_vectors(model):
    assert E5Encoder(model).encode_queries([]).shape == (0, 32)


def test_long_texts_are_cut_at_max_tokens(model):
    long = "x" * 5000
    encoder = E5Encoder(model, max_tokens=20)
    cut = "query: " + "x" * (20 - len("query: "))  # one token per byte
    assert encoder.encode_queries([long])[0] == pytest.approx(by_hand(model, cut).numpy(), abs=1e-5)


def test_the_fingerprint_tells_models_apart_and_does_not_depend_on_the_folder(model, tmp_path):
    same = E5Encoder(save_encoder(tmp_path / "copy")).fingerprint
    assert E5Encoder(model).fingerprint == same
    others = {
        E5Encoder(save_encoder(tmp_path / "seed", seed=1)).fingerprint,
        E5Encoder(save_encoder(tmp_path / "act", hidden_act="relu")).fingerprint,
        E5Encoder(model, max_tokens=100).fingerprint,
    }
    assert len(others) == 3 and same not in others


# --- hits ---


def test_hits_are_those_of_brute_force(engine, expected):
    for top_k in (1, 5, len(PASSAGES)):
        found = engine.retrieve_batch(QUERIES, top_k)
        scores, order = expected.topk(top_k, dim=1)
        assert ids(found) == [[str(i) for i in row] for row in order.tolist()]
        for row, wanted in zip(found, scores.tolist(), strict=True):
            assert [hit.score for hit in row] == pytest.approx(wanted, abs=1e-5)


def test_more_than_the_corpus_holds_is_all_of_it(engine):
    (row,) = engine.retrieve_batch(["city"], 1000)
    assert sorted(int(hit.passage.id) for hit in row) == list(range(60))


async def test_search_has_the_shape_of_a_result(engine, expected):
    result = await engine.search(asking("city", top_k=2))
    best = [PASSAGES[i] for i in expected[0].topk(2).indices.tolist()]
    assert result.documents == tuple(Document(title=p.title, text=p.text) for p in best)
    assert (result.requested, result.noisy, result.cached) == (2, None, False)
    assert 0 < result.latency_s < GUARD_S


async def test_concurrent_searches_are_encoded_together(engine, monkeypatch):
    batches = []
    retrieve = engine.retrieve_batch

    def note(queries, top_k):
        batches.append(len(queries))
        return retrieve(queries, top_k)

    monkeypatch.setattr(engine, "retrieve_batch", note)
    requests = [asking(QUERIES[i % 5], top_k=1 + i % 4) for i in range(40)]
    results = await asyncio.gather(*map(engine.search, requests))
    assert len(batches) < 20 and max(batches) == 8
    for request, result in zip(requests, results, strict=True):
        (alone,) = retrieve([request.query], request.top_k)
        assert result.documents == tuple(hit.document for hit in alone)


def test_one_engine_serves_several_event_loops(engine):
    first = [asyncio.run(engine.search(asking("city"))).documents for _ in range(3)]
    assert first[0] == first[1] == first[2]


async def test_a_search_out_of_time_is_a_failed_search(engine, monkeypatch):
    retrieve, may_answer = engine.retrieve_batch, threading.Event()

    def slow(queries, top_k):
        may_answer.wait(GUARD_S)
        return retrieve(queries, top_k)

    monkeypatch.setattr(engine, "retrieve_batch", slow)
    with pytest.raises(SearchError, match=r"dense: no answer within 0\.05 s"):
        await engine.search(asking("city", timeout_s=0.05))
    may_answer.set()
    assert (await engine.search(asking("city"))).documents


async def test_top_k_below_one_is_refused(engine):
    with pytest.raises(ValueError, match="top_k: 0 "):
        await engine.search(asking("city", top_k=0))
    with pytest.raises(ValueError, match="top_k: 0 "):
        engine.retrieve_batch(["city"], 0)


# --- kinds of index, and those on disk ---


def test_cells_find_the_same_where_all_of_them_are_looked_at(model, engine):
    cells = DenseSearch(PASSAGES, model, factory="IVF4,Flat", nprobe=4)
    assert ids(cells.retrieve_batch(QUERIES, 5)) == ids(engine.retrieve_batch(QUERIES, 5))
    one = DenseSearch(PASSAGES, model, factory="IVF4,Flat", nprobe=1)
    assert ids(one.retrieve_batch(QUERIES, 60)) != ids(engine.retrieve_batch(QUERIES, 60))


def test_long_corpora_are_added_in_order_chunk_by_chunk(model, engine, monkeypatch):
    monkeypatch.setattr(dense, "_CHUNK", 7)
    chunked = DenseSearch(PASSAGES, model)
    assert ids(chunked.retrieve_batch(QUERIES, 5)) == ids(engine.retrieve_batch(QUERIES, 5))


def forbid_building(monkeypatch):
    def refuse(*_):
        raise AssertionError("the index was built although a saved one fits")

    monkeypatch.setattr(DenseSearch, "_build", refuse)


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
def test_a_saved_index_answers_like_the_one_that_was_built(model, tmp_path, monkeypatch, factory):
    path = tmp_path / "corpus.jsonl.gz"
    write_corpus(path, PASSAGES)
    options = {"index_dir": tmp_path / "deep" / "er", "factory": factory}
    built = DenseSearch(path, model, **options).retrieve_batch(QUERIES, 5)
    (folder,) = (tmp_path / "deep" / "er").iterdir()
    assert [file.name for file in folder.iterdir()] == ["index.faiss"]
    forbid_building(monkeypatch)
    loaded = DenseSearch(path, model, **options)
    assert loaded.retrieve_batch(QUERIES, 5) == built
    assert loaded.passage_count == 60


def test_an_index_of_another_corpus_model_or_kind_is_not_used(model, tmp_path):
    other_model = save_encoder(tmp_path / "other", seed=1)
    for passages, name, factory in (
        (PASSAGES, model, "Flat"),
        (PASSAGES[:-1], model, "Flat"),
        (PASSAGES, other_model, "Flat"),
        (PASSAGES, model, "SQfp16"),
    ):
        DenseSearch(passages, name, index_dir=tmp_path / "index", factory=factory).prepare()
    assert len(list((tmp_path / "index").iterdir())) == 4


def test_a_damaged_index_is_named(model, tmp_path):
    DenseSearch(PASSAGES, model, index_dir=tmp_path).prepare()
    (folder,) = tmp_path.iterdir()
    whole = (folder / "index.faiss").read_bytes()
    other = faiss.IndexFlatIP(32)
    for content in (b"", b"noise" * 100, whole[:1000], faiss.serialize_index(other).tobytes()):
        (folder / "index.faiss").write_bytes(content)
        with pytest.raises(ValueError, match=rf"index_dir: .*{folder.name} is damaged .*delete"):
            DenseSearch(PASSAGES, model, index_dir=tmp_path).prepare()


def test_a_failed_save_leaves_no_index(model, tmp_path, monkeypatch):
    def disk_full(index, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("write error: No space left on device")

    monkeypatch.setattr(faiss, "write_index", disk_full)
    with pytest.raises(RuntimeError, match="No space left"):
        DenseSearch(PASSAGES, model, index_dir=tmp_path).prepare()
    assert list(tmp_path.iterdir()) == []


# --- settings ---


@pytest.mark.parametrize("factory", ["Bogus,Flat", "IVF1000,Flat"])
def test_a_factory_that_does_not_fit_is_named(model, factory):
    with pytest.raises(ValueError, match=f"factory='{factory}' does not fit 60 passages") as e:
        DenseSearch(PASSAGES, model, factory=factory).prepare()
    assert ".cpp" not in str(e.value)


def test_bad_settings_are_refused_at_once():
    for name in ("nprobe", "batch_size", "max_tokens"):
        with pytest.raises(ValueError, match=f"{name}=0: give 1 or more"):
            DenseSearch(PASSAGES, "m", **{name: 0})  # type: ignore[arg-type]


async def test_check_finds_what_is_missing(model, tmp_path):
    with pytest.raises(ValueError, match=r"corpus file .* does not exist"):
        await DenseSearch(tmp_path / "gone.jsonl", model).check()
    with pytest.raises(ValueError, match=r"model=.*gone is not a folder on this machine"):
        await DenseSearch(PASSAGES, str(tmp_path / "gone")).check()


async def test_without_faiss_the_command_that_installs_it_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"pip install 'zerosearch\[retriever\]'"):
        await DenseSearch(PASSAGES, model).check()


def test_it_can_be_checked_cached_and_served(engine):
    for protocol in (Checkable, Cacheable, Retriever):
        assert isinstance(engine, protocol)


def test_the_cache_key_holds_what_the_result_depends_on(model, engine):
    key = engine.cache_key(asking("city"))
    assert {name: key[name] for name in ("engine", "query", "top_k")} == {
        "engine": "dense",
        "query": "city",
        "top_k": 3,
    }
    assert DenseSearch(list(PASSAGES), model).cache_key(asking("city", timeout_s=1)) == key
    others = [
        engine.cache_key(asking("City")),
        engine.cache_key(asking("city", top_k=4)),
        DenseSearch(PASSAGES[1:], model).cache_key(asking("city")),
        DenseSearch(PASSAGES, model, nprobe=5).cache_key(asking("city")),
        DenseSearch(PASSAGES, model, factory="SQfp16").cache_key(asking("city")),
    ]
    assert all(other != key for other in others)
