"""Readers of files that others write, given valid files in which some bytes are others.

Each file is read as its command reads it, and is read or refused in one of the project's own
sentences. What hypothesis finds is printed in its smallest form; it belongs into tests/security.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemWriter
from transformers.utils import is_gguf_available

from scripts.attack.tally import Tally, leave
from tests.helpers.hostile_files import policy, run_folder
from tests.helpers.hostile_rows import ROWS, damaged, read_both_ways, write_good
from tests.helpers.models import make_model, write_gguf
from tests.helpers.words import save_word_policy
from zerosearch.callbacks.checkpoint_io import AtomicCheckpointIO
from zerosearch.command_line.arguments import expand_resume
from zerosearch.core.errors import ZeroSearchError
from zerosearch.core.journal import Journal
from zerosearch.data.corpus import Passage, count_passages, read_corpus, write_corpus
from zerosearch.data.public_sets import count_questions
from zerosearch.policy.checkpoints import read_checkpoint, read_notes, read_weights
from zerosearch.policy.conversion import convert
from zerosearch.policy.source import PolicySource
from zerosearch.rollout.saved_episode import node_of
from zerosearch.search.store import TextStore
from zerosearch.simulator.prompt import SimulatorPrompt
from zerosearch.simulator.replies import parse_reply
from zerosearch.tuning.records import read_episodes
from zerosearch.tuning.row_reader import read_rows
from zerosearch.tuning.tuning_set import TuningFiles
from zerosearch.types import SearchRequest

REQUEST = SearchRequest(query="q", question="q", golden_answers=("a",))
TELLING = [b"[", b"]", b"{", b"}", b'"', b"\\u", b"\\ud83d", b"\xff", b"\x00", b"-", b"1e999"]
TELLING += [b"null", b"NaN", b"9" * 4400, b"[" * 2000, b"\n", b",", b"{{", b"\x80\x04", b"\x7f" * 8]
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 40) | st.just(10**9),
        st.binary(max_size=12) | st.sampled_from(TELLING),
    ),
    min_size=1,
    max_size=4,
)
SEARCHED = {
    "query": "q",
    "question": "Who?",
    "golden_answers": ["Ada"],
    "turn": 1,
    "documents": [{"title": "t", "text": "x"}],
    "correct": True,
    "answer": "Ada",
}
CHAT = {
    "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Doc 1: a"}]
}
HYDRA = "hydra:\n  job:\n    config_name: train\n"

Reader = Callable[[Path], Any]
Target = tuple[Path, list[Reader]]  # a valid file, and what reads it


def targets(folder: Path) -> dict[str, Target]:
    """Valid files by name, each in a folder of its own."""
    found: dict[str, Target] = {}
    for kind in ("jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet"):
        good = write_good(leave(folder / f"rows_{kind}") / f"a.{kind}")
        found[f"questions.{kind}"] = (good, [read_both_ways, count_questions])
    for kind in ("jsonl", "jsonl.gz"):
        good = leave(folder / f"corpus_{kind}") / f"corpus.{kind}"
        write_corpus(good, [Passage(id=str(n), title="t", text="x") for n in range(3)])
        found[f"corpus.{kind}"] = (good, [read_corpus, count_passages])
    found["recorded searches"] = (
        _lines(folder / "log", SEARCHED),
        [lambda p: read_episodes(str(p))],
    )
    chat = [
        lambda path: read_rows(str(path), prompt_key=None, joiner="\n"),
        lambda path: TuningFiles(train=str(path), prompt_template="tuned").load(),
    ]
    found["tuning rows"] = (_lines(folder / "chat", CHAT), chat)
    found["journal"] = (_lines(folder / "journal", {"id": "a"}, {"id": "b"}), [_journal])
    return found | _checkpoints(folder) | _policies(folder) | _others(folder)


def _lines(folder: Path, *rows: Any) -> Path:
    file = leave(folder) / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    if len(rows) == 2:  # of a journal, each stands once
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _journal(path: Path) -> None:
    with Journal(path, key="id", settings={"seed": 1}) as journal:
        journal.rows.clear()


def _checkpoints(folder: Path) -> dict[str, Target]:
    save_word_policy(folder / "start")
    run = run_folder(leave(folder / "run"), f"{{path: {folder / 'start'}}}")
    file = run / "checkpoints" / "last.ckpt"
    shards = leave(folder / "shards") / "last.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = {"state_dict": {"model.a": torch.ones(2)}, "optimizer_0": {"param_groups": []}}
        dcp.save(saved, storage_writer=FileSystemWriter(shards), no_dist=True)
    torch.save({"zerosearch": {}}, shards / "meta.pt")
    readers: list[Reader] = [read_checkpoint, read_notes, lambda p: read_weights(p, "model.")]
    readers.append(AtomicCheckpointIO().load_checkpoint)
    for name, text in (("overrides", "- seed=3\n- a=[1, 2]\n"), ("hydra", HYDRA)):
        (run / ".hydra" / f"{name}.yaml").write_text(text)
    resumed: list[Reader] = [lambda _: expand_resume([f"resume={run}"])]
    of_shards: list[Reader] = [lambda path, read=read: read(path.parent) for read in readers]
    converting: list[Reader] = [lambda _: convert(file, folder / "converted")]
    return {
        "checkpoint": (file, [*readers, *converting]),
        "config.yaml": (run / ".hydra" / "config.yaml", [*converting, *resumed]),
        "overrides.yaml": (run / ".hydra" / "overrides.yaml", resumed),
        "hydra.yaml": (run / ".hydra" / "hydra.yaml", resumed),
        "metadata of shards": (shards / ".metadata", of_shards),
        "notes of shards": (shards / "meta.pt", of_shards),
        "shard": (shards / "__0_0.distcp", of_shards),
    }


def _policies(folder: Path) -> dict[str, Target]:
    found: dict[str, Target] = {}
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        place = save_word_policy(folder / f"policy_{name}")
        source = PolicySource(path=str(place))
        reader: Callable[[], Any] = source.load_model if name[0] == "m" else source.load_tokenizer
        found[name] = (place / name, [lambda _, read=reader: read()])
    place = save_word_policy(folder / "policy_index")
    index = {"weight_map": dict.fromkeys(load_file(place / "model.safetensors"), "a.safetensors")}
    (place / "model.safetensors").rename(place / "a.safetensors")
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}} | index))
    of_index = PolicySource(path=str(place))
    readers = [lambda _: of_index.load_model(), lambda _: of_index.safetensors_files()]
    found["index.json"] = (place / "model.safetensors.index.json", readers)
    settings_of = policy(folder / "settings") / "zerosearch.json"
    found["zerosearch.json"] = (settings_of, [lambda p: node_of(p.parent, {})])
    if is_gguf_available():
        gguf = leave(folder / "gguf") / "tiny.gguf"
        write_gguf(make_model(7, max_position_embeddings=64), gguf)
        source = PolicySource(path=str(gguf.parent), gguf_file=gguf.name)
        found["gguf"] = (gguf, [lambda _: source.load_model()])
    return found


def _others(folder: Path) -> dict[str, Target]:
    prompt = leave(folder / "prompt") / "prompt.j2"
    prompt.write_text("{% if noisy %}{{ query }}{% endif %} {{ question }} {{ query | upper }}")
    store = leave(folder / "store") / "cache.db"
    TextStore(store.parent, size_gib=1, changes=True).add("key", "text")
    reply = leave(folder / "reply") / "reply.txt"
    reply.write_text("Doc 1: (Title) text\n---\n\nDoc 2: more\n```\nDoc 3. x")
    return {
        "template": (prompt, [lambda p: SimulatorPrompt(str(p), 30).render(REQUEST, noisy=True)]),
        "cache": (store, [_stored]),
        "reply": (reply, [lambda p: parse_reply(p.read_bytes().decode(errors="replace"), 3)]),
    }


def _stored(path: Path) -> None:
    for name in ("cache.db-wal", "cache.db-shm"):
        (path.parent / name).unlink(missing_ok=True)
    store = TextStore(path.parent, size_gib=1, changes=True)
    store.get("key")
    store.add("other", "text")


def attack(folder: Path, *, examples: int = 20, minutes: float = 0.0) -> Tally:
    """Damage each file a number of times, then all of them in turn for some minutes."""
    tally, end = Tally(what="damaged files (fuzzing)"), time.monotonic() + 60 * minutes
    made, found = targets(leave(folder / "valid")), set[str]()
    while True:
        for name, (file, readers) in made.items():
            if name not in found and not _damage(tally, name, file, readers, examples):
                found.add(name)
        if "rows of any shape" not in found and not _rows(tally, leave(folder / "any"), examples):
            found.add("rows of any shape")
        if time.monotonic() >= end or len(found) > len(made):
            return tally


def _damage(tally: Tally, name: str, file: Path, readers: list[Reader], examples: int) -> bool:
    whole = file.read_bytes()

    @_settings(examples)
    @given(EDITS)
    def check(edits: list[tuple[float, int, bytes]]) -> None:
        tally.tried += 1
        data = whole
        for edit in edits:
            data = damaged(data, *edit)
        file.write_bytes(data)
        _read_or_refused(file, readers)

    try:
        return _holds(tally, name, check)
    finally:
        file.write_bytes(whole)


def _rows(tally: Tally, folder: Path, examples: int) -> bool:
    @_settings(examples)
    @given(ROWS, st.sampled_from(["a.jsonl", "a.json"]))
    def check(row: dict[str, Any], name: str) -> None:
        tally.tried += 1
        file = folder / name
        file.write_text(f"[{json.dumps(row)}]" if name == "a.json" else json.dumps(row))
        _read_or_refused(file, [read_both_ways, count_questions])

    return _holds(tally, "rows of any shape", check)


def _settings(examples: int) -> settings:
    kept = (Phase.generate, Phase.shrink)
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=False,
        phases=kept,
        suppress_health_check=checks,
        print_blob=False,
    )


def _read_or_refused(file: Path, readers: list[Reader]) -> None:
    for read in readers:
        try:
            read(file)
        except ZeroSearchError as error:
            str(error).encode()  # it can be printed


def _holds(tally: Tally, name: str, check: Callable[[], None]) -> bool:
    try:
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check()
    except Exception as error:
        for each in error.exceptions if isinstance(error, ExceptionGroup) else (error,):
            notes = " ".join(getattr(each, "__notes__", []))
            tally.lost.append(f"{name}: {type(each).__name__}: {each}: {notes}"[:3000])
            print(f"LOST {tally.what}: {tally.lost[-1]}", flush=True)
        return False
    return True
