"""Files of others that try to run code, tell secrets, fill memory or end in a traceback.

Each is read as its command reads it, and is refused in one sentence that names it; a file that runs
would leave a marker behind.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter

from scripts.attack.tally import Tally, leave
from tests.helpers.hostile_files import EPISODE, Touch, node, played, policy, run_folder, template
from tests.helpers.hostile_rows import GOOD, read_both_ways
from tests.helpers.models import make_model, write_gguf
from tests.helpers.words import save_word_policy
from zerosearch.callbacks.checkpoint_io import AtomicCheckpointIO
from zerosearch.core.errors import InputError
from zerosearch.data.corpus import read_corpus
from zerosearch.policy.checkpoints import read_checkpoint
from zerosearch.policy.conversion import convert
from zerosearch.policy.source import PolicySource
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.simulator.prompt import SimulatorPrompt
from zerosearch.types import SearchRequest

SECRET = "sk-of-the-user"
REQUEST = SearchRequest(query="q", question="q", golden_answers=("a",))
Attack = tuple[Callable[[], Any], str]  # reads the file, and what the sentence about it names


def attack(folder: Path) -> Tally:
    """Read each file once."""
    os.environ["OPENAI_API_KEY"] = SECRET
    tally, marker = Tally(what="hostile files"), folder / "marker"
    kinds = (_rows, _weights, _checkpoints, _policies)
    for kind in kinds:
        for name, (read, named) in kind(leave(folder / kind.__name__), marker).items():
            with tally.attempt(name):
                _refused(read, named)
            if marker.exists():
                tally.ran += 1
                marker.unlink()
    return tally


def _refused(read: Callable[[], Any], named: str) -> None:
    try:
        read()
    except InputError as error:
        said = str(error)
        assert re.search(named, said), f"{named} is not in: {said}"
        assert len(said) < 3000 and "\n" not in said.strip(), "not one sentence"
        assert SECRET not in said, "it tells a secret"
        return
    raise AssertionError("it was read")


def _rows(folder: Path, _: Path) -> dict[str, Attack]:
    found: dict[str, Attack] = {}

    def add(file: str, content: bytes, named: str, read: Any = read_both_ways) -> None:
        path = leave(folder / str(len(found))) / file
        path.write_bytes(content)
        found[f"{file}: {named}"] = (lambda: read(path), re.escape(file) + ".*" + named)

    deep, digits = b"[" * 100_000, b"9" * 5000
    add("deep.jsonl", GOOD.encode() + b"\n" + deep, "line 2")
    add("deep.json", b"[" + GOOD.encode() + b",\n" + deep, "line 2")
    add("digits.jsonl", GOOD.encode() + b'\n{"question": ' + digits + b"}", "line 2")
    add("half.jsonl", b'{"question": "Q\\ud83d", "answer": "A"}', "line 1")
    add("bytes.jsonl", b"\xff\xfe{\x00", "line 1")
    add("wide.csv", b"question,answer\nQ,A\nQ," + b"x" * 10**6 + b"\n", "line 3")
    add("fields.csv", b"question,answer\nQ,A\nQ" + b",A" * 10**6, "row 1")
    add("cut.parquet", b"PAR1 and no more", "cannot be read")
    line = GOOD.encode() + b"\n" + bytes(80 * 2**20)
    add("bomb.jsonl.gz", gzip.compress(line, 1), "line 2")
    add("corpus.jsonl", b'{"id": 1, "contents": "x"}\n' + deep, "line 2", read_corpus)
    path = folder / "lying.parquet"
    pq.write_table(pa.table({"question": ["Q"] * 9, "answer": ["A"] * 9}), path)
    whole = path.read_bytes()
    add("lying.parquet", whole[:-12] + b"\xff\xff\xff\x7f" + whole[-8:], "cannot be read")
    return found


def _weights(folder: Path, _: Path) -> dict[str, Attack]:
    place = save_word_policy(folder / "policy")
    file = place / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(b"\xff" * 7 + b"\x7f" + whole[8:])
    found: dict[str, Attack] = {
        "safetensors with a header of 2^63": (
            PolicySource(path=str(place)).load_model,
            "model.path",
        )
    }
    write_gguf(make_model(7, max_position_embeddings=64), folder / "cut.gguf")
    whole = (folder / "cut.gguf").read_bytes()
    (folder / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    source = PolicySource(path=str(folder), gguf_file="cut.gguf")
    found["half of a GGUF"] = (source.load_model, "model.path")
    return found


def _checkpoints(folder: Path, marker: Path) -> dict[str, Attack]:
    file, shards = folder / "pickle.ckpt", folder / "shards.ckpt"
    torch.save({"state_dict": {}, "zerosearch": Touch(marker)}, file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"a": torch.ones(2)}, storage_writer=FileSystemWriter(shards), no_dist=True)
    torch.save({"zerosearch": {}}, shards / "meta.pt")
    (shards / ".metadata").write_bytes(pickle.dumps(Touch(marker)))
    start = save_word_policy(folder / "start")
    found: dict[str, Attack] = {
        "pickle in a checkpoint": (lambda: AtomicCheckpointIO().load_checkpoint(file), "pickle"),
        "pickle in the metadata of shards": (lambda: read_checkpoint(shards), "shards"),
    }
    nodes = {
        "a node beside a checkpoint": f"{{path: {start}, lora: {json.dumps(node(marker))}}}",
        "python in YAML": f"!!python/object/apply:os.system ['touch {marker}']",
        "a variable beside a checkpoint": "{path: '${oc.env:OPENAI_API_KEY}'}",
    }
    for number, (name, model) in enumerate(nodes.items()):
        run = run_folder(leave(folder / f"run_{number}"), model)
        last = run / "checkpoints" / "last.ckpt"
        found[name] = (lambda last=last: convert(last, folder / "out"), "config.yaml")
    return found


def _policies(folder: Path, marker: Path) -> dict[str, Attack]:
    saved = {**EPISODE, "invalid_hint": node(marker)}
    hinted = policy(folder / "hinted", episode=saved)
    deep = policy(folder / "deep")
    (deep / "zerosearch.json").write_text("[" * 100_000)
    named = {**EPISODE, "prompt_text": None, "prompt_template": str(folder / "evil.j2")}
    (folder / "evil.j2").write_text(template(marker).replace("{{ query }} {{ noisy }}", ""))
    naming = policy(folder / "naming", episode=named)
    simulator = leave(folder / "simulator")
    (simulator / "prompt.j2").write_text(template(marker))
    simulating = SimulatorPrompt(str(simulator), 30)
    evil = str(folder / "evil.j2")
    return {
        "a node in zerosearch.json": (lambda: played(hinted, folder / "a"), "zerosearch.json"),
        "deep zerosearch.json": (lambda: played(deep, folder / "b"), "zerosearch.json"),
        "a template that a policy names": (lambda: played(naming, folder / "c"), "prompt_template"),
        "a template of a simulator": (lambda: simulating.render(REQUEST, noisy=True), "template"),
        "a template of episodes": (lambda: EpisodeSettings(prompt_template=evil), "template"),
    }
