"""Hub data sets through the library `datasets`, from a stand-in of the hub and without one."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.hub import Hub, lines, run_with_hub, serving

ROWS = [{"question": f"question {n}?", "golden_answers": [f"answer {n}"]} for n in range(5)]
SPLITS = b"  data_files: [{split: test, path: nq/test.jsonl}]"
CARD = b"---\nconfigs:\n- config_name: nq\n" + SPLITS + b"\n---\n"
READ = """
import json, sys, time
from zerosearch.data.sources import QASource
began = time.time()
try:
    source = QASource(path=sys.argv[1], name="nq", split=sys.argv[2])
    print(json.dumps([question.text for question in source.load()]))
except ValueError as error:
    print(json.dumps(str(error)))
print(json.dumps(time.time() - began))
"""


def read(url: str | None, home: Path, path: str, split: str = "test", **environment: str):
    """What loading says, and its seconds, in a process of its own."""
    (home / "reading.py").write_text(READ)
    done = run_with_hub(url, home, "reading", path, split, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    said, seconds = map(json.loads, done.stdout.strip().splitlines()[-2:])
    return said, seconds


def test_read_once_it_is_there_without_a_network(tmp_path: Path) -> None:
    texts = [row["question"] for row in ROWS]
    with serving(Hub(files={"org/set": {"README.md": CARD, "nq/test.jsonl": lines(ROWS)}})) as url:
        assert read(url, tmp_path, "org/set")[0] == texts
    said, seconds = read(None, tmp_path, "org/set")
    assert said == texts and seconds < 20, "the library alone tries for half a minute"
    assert read(None, tmp_path, "org/set", HF_HUB_OFFLINE="1")[0] == texts
    said, seconds = read(None, tmp_path, "org/other")
    assert "'org/other' (config 'nq', split 'test')" in said and "cannot be reached" in said
    assert "`zerosearch data`" in said and seconds < 20


def test_what_the_hub_refuses_is_said(tmp_path: Path) -> None:
    hub = Hub(files={"org/set": {"README.md": CARD, "nq/test.jsonl": lines(ROWS)}})
    hub.refused["org/gated"] = 403
    with serving(hub) as url:
        assert "it is gated: accept its terms" in read(url, tmp_path, "org/gated")[0]
        assert "the hub has no such data set" in read(url, tmp_path, "no/such")[0]
        assert "split 'dev'" in read(url, tmp_path, "org/set", "dev")[0]
