"""Public data from a stand-in of the hub: whole and checked, or a sentence; repeated, nothing."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from hydra.utils import instantiate

from tests.helpers.configs import compose_config
from tests.helpers.hub import COMMIT, Hub, lines, parquet, run_with_hub, serving
from zerosearch.commands.data import fetch, main
from zerosearch.data.corpus import read_corpus
from zerosearch.data.download import whole
from zerosearch.data.sources import QASource

NQ = "Alibaba-NLP/ZeroSearch_dataset"
FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"
WIKI = "PeterJinGo/wiki-18-corpus"
HOTPOTQA = "hotpotqa/hotpot_qa"
TRAIN = "distractor/train-00000-of-00002.parquet"
VALIDATION = "distractor/validation-00000-of-00001.parquet"
SMALL = [
    "sets.hotpotqa_small.files.train.min_rows=40",
    "sets.hotpotqa_small.files.test.min_rows=20",
]
SMALL += [f"sets.hotpotqa_small.{key}" for key in ("train_questions=12", "test_questions=5")]


def published(count: int) -> list[dict[str, Any]]:
    """Rows as ZeroSearch publishes them."""
    return [
        {
            "data_source": "nq",
            "prompt": [{"role": "user", "content": f"question {n}?"}],
            "reward_model": {"style": "rule", "ground_truth": {"target": [f"answer {n}"]}},
            "extra_info": {"index": n, "split": "train"},
        }
        for n in range(count)
    ]


def flashrag(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"test_{n}", "question": f"question {n}?", "golden_answers": [f"answer {n}"]}
        for n in range(count)
    ]


def hotpotqa(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows as the hub has them: ten paragraphs, two of them supporting; neighbours share some."""
    return [
        {
            "id": f"id{n}",
            "question": f"Who met place {n}?",
            "answer": f"person {n}",
            "type": "bridge",
            "level": "hard",
            "supporting_facts": {"title": [f"Place {n}", f"Person {n}"], "sent_id": [0, 1]},
            "context": {
                "title": [f"Place {n}", f"Person {n}", *(f"Other {n + k}" for k in range(8))],
                "sentences": [
                    [f"Place {n} is known.", f" Person {n} came."],
                    [f"Person {n} lived.", " And met."],
                    *([f"Other {n + k} is other.", " Indeed."] for k in range(8)),
                ],
            },
        }
        for n in range(first, first + count)
    ]


def make_hub() -> Hub:
    wiki = lines({"id": str(n), "contents": f'"Title {n}"\npassage {n} of many'} for n in range(30))
    return Hub(
        files={
            NQ: {
                "train.parquet": parquet(published(40)),
                "test.parquet": parquet(published(9)),
            },
            FLASHRAG: {
                f"{name}.jsonl": lines(flashrag(7))
                for name in (
                    *("nq/test", "triviaqa/test", "popqa/test", "bamboogle/test"),
                    *("hotpotqa/dev", "2wikimultihopqa/dev", "musique/dev"),
                )
            },
            WIKI: {"wiki-18.jsonl.gz": gzip.compress(wiki)},
            HOTPOTQA: {
                TRAIN: parquet(hotpotqa(50)),
                VALIDATION: parquet(hotpotqa(20, first=1000)),
            },
        }
    )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in that the hub's library of this process asks."""
    made = make_hub()
    with serving(made) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield made


def run(folder: Path, *overrides: str) -> None:
    cfg = compose_config(folder, f"folder={folder / 'data'}", *overrides, name="data")
    main.check(cfg)
    fetch(cfg)


def run_small(folder: Path, *more: str) -> None:
    run(folder, "name=hotpotqa_small", *SMALL, *more)


def test_from_the_command_line_with_a_token_and_again_without_a_network(tmp_path: Path) -> None:
    made = make_hub()
    folder, token = tmp_path / "data", "hf_" + "s3cret" * 5
    command = ["zerosearch", "data", "name=hotpotqa_small", f"folder={folder}", *SMALL]
    with serving(made) as url:
        done = run_with_hub(url, tmp_path, *command, HF_TOKEN=token)
        made.refused[HOTPOTQA] = 403
        refused = run_with_hub(url, tmp_path, *command, "folder=other", HF_TOKEN=token)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"GiB in {folder / 'hotpotqa_small'}" in done.stdout
    use = f"use it with: ZEROSEARCH_DATA={folder} zerosearch train experiment=smollm2_135m"
    assert use in done.stdout
    again = run_with_hub(None, tmp_path, *command)
    assert again.returncode == 0 and "hotpotqa_small: is there" in again.stdout
    assert refused.returncode == 1 and "it is gated" in refused.stdout
    shown = [each.stdout + each.stderr for each in (done, again, refused)]
    assert all(token not in text and "Traceback" not in text for text in shown)
    assert token in made.tokens, "it was sent"
    alone = run_with_hub(None, tmp_path, "zerosearch", "data", "name=wiki18", "folder=other")
    assert alone.returncode == 1 and "the hub cannot be reached" in alone.stdout.splitlines()[-1]


def test_hotpotqa_small_is_made_of_the_published_files(hub: Hub, tmp_path: Path) -> None:
    run_small(tmp_path)
    folder = tmp_path / "data" / "hotpotqa_small"
    assert not list((tmp_path / "data").glob(".*")), "nothing half done is left"
    passages = read_corpus(folder / "corpus.jsonl.gz")
    by_title = {passage.title: passage.text for passage in passages}
    assert len(by_title) == len(passages), "each paragraph once"
    train = QASource(path=str(folder / "qa_train.jsonl")).load()
    test = QASource(path=str(folder / "qa_test.jsonl")).load()
    assert isinstance(train, list) and isinstance(test, list)
    assert (len(train), len(test)) == (12, 5)
    for question in (*train, *test):
        number = question.metadata["id"].removeprefix("id")
        assert by_title[f"Place {number}"] == f"Place {number} is known. Person {number} came."
        assert question.golden_answers == (f"person {number}",)
        assert (int(number) >= 1000) == (question in test)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["commit"] == COMMIT and manifest["repo"] == HOTPOTQA
    assert manifest["files"]["corpus.jsonl.gz"]["rows"] == len(passages)


def test_a_small_corpus_keeps_what_questions_need(hub: Hub, tmp_path: Path) -> None:
    run_small(tmp_path, "sets.hotpotqa_small.passages=40")
    titles = [
        passage.title.split()
        for passage in read_corpus(tmp_path / "data" / "hotpotqa_small" / "corpus.jsonl.gz")
    ]
    others = [int(number) for kind, number in titles if kind == "Other"]
    assert len(titles) == 40 and len(others) == 40 - 2 * (12 + 5)
    assert min(others) >= 1000, "those of the test questions come first"


def test_repeating_it_downloads_nothing_and_gives_the_same_bytes(hub: Hub, tmp_path: Path) -> None:
    run_small(tmp_path)
    folder = tmp_path / "data" / "hotpotqa_small"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run_small(tmp_path)
    assert hub.downloads == [TRAIN, VALIDATION]
    (folder / "qa_train.jsonl").write_text("{}\n")  # damaged since: made anew
    run_small(tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert hub.downloads == [TRAIN, VALIDATION] * 2


@pytest.mark.parametrize("damaged", ["[", "[" * 5_000, '{"files": ["a"]}', '{"files": {"a": 1}}'])
def test_a_set_with_a_damaged_manifest_is_not_whole(damaged: str, tmp_path: Path) -> None:
    for name in ("a", "manifest.json"):
        (tmp_path / name).write_text(damaged)
    assert whole(tmp_path) is None


def test_an_interrupted_download_is_not_there_and_goes_on(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the library's, between its attempts
    hub.broken[VALIDATION] = 100
    with pytest.raises(ValueError, match=rf"download of {VALIDATION} broke off.*command goes on"):
        run_small(tmp_path)
    assert not (tmp_path / "data" / "hotpotqa_small").exists()
    hub.broken.clear()
    hub.downloads.clear()
    run_small(tmp_path)
    assert hub.downloads == [VALIDATION], "what was whole is used again"


def test_a_set_that_another_process_makes_is_left_to_it(hub: Hub, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from zerosearch.core.run_lock import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    stage = tmp_path / "data" / ".hotpotqa_small.partial"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(stage)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {other.pid} .* is writing to this folder"):
            run_small(tmp_path)
    assert hub.downloads == []
    run_small(tmp_path)
    assert not stage.exists()


def test_a_damaged_download_is_found_by_its_hash(hub: Hub, tmp_path: Path) -> None:
    hub.damaged.add("train.parquet")
    rows = ["sets.nq_hotpotqa.files.train.min_rows=40", "sets.nq_hotpotqa.files.test.min_rows=9"]
    with pytest.raises(ValueError, match=rf"train.parquet of {NQ} was damaged on its way"):
        run(tmp_path, "name=nq_hotpotqa", *rows)
    assert not (tmp_path / "data" / "nq_hotpotqa").exists()
    hub.damaged.clear()
    run(tmp_path, "name=nq_hotpotqa", *rows)
    loaded = QASource(path=str(tmp_path / "data" / "nq_hotpotqa" / "train.parquet")).load()
    assert isinstance(loaded, list) and len(loaded) == 40


def test_a_set_that_lacks_rows_or_answers_is_refused(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train.parquet holds 40 rows, and 100,000 were"):
        run(tmp_path, "name=nq_hotpotqa")
    hub.files[FLASHRAG]["nq/test.jsonl"] = lines([{"id": "test_0", "question": "who?"}] * 3610)
    with pytest.raises(ValueError, match=rf"{FLASHRAG}.*line 1: .*no known form.*it anew"):
        run(tmp_path, "name=benchmarks")
    assert not list((tmp_path / "data").iterdir())


def test_the_benchmarks_lie_where_their_configurations_look(hub: Hub, tmp_path: Path) -> None:
    names = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
    few = [f"sets.benchmarks.files.{name.lstrip('2')}.min_rows=7" for name in names]
    run(tmp_path, "name=benchmarks", *few)
    folder = tmp_path / "data" / "benchmarks"
    assert (folder / "musique.jsonl").read_bytes() == hub.files[FLASHRAG]["musique/dev.jsonl"]
    places = [f"paths.data_dir={tmp_path / 'data'}", "limit=3"]
    cfg = compose_config(tmp_path, "benchmark=all", *places, name="evaluate")
    assert list(cfg.benchmark) == list(names)
    for node in cfg.benchmark.values():
        assert len(instantiate(node.source).load()) == 3


@pytest.mark.parametrize("form", ["lines", "archive"])
def test_the_corpus_is_unpacked_whatever_its_name_says(form: str, hub: Hub, tmp_path: Path) -> None:
    if form == "archive":
        content = gzip.decompress(hub.files[WIKI]["wiki-18.jsonl.gz"])
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            member = tarfile.TarInfo("data00/indexes/wiki_dump.jsonl")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        hub.files[WIKI]["wiki-18.jsonl.gz"] = packed.getvalue()
    run(
        tmp_path,
        "name=wiki18",
        "sets.wiki18.files.corpus.min_rows=30",
        "sets.wiki18.unpacked_gib=0.1",
    )
    cfg = compose_config(
        tmp_path, "corpus=wiki18", f"paths.data_dir={tmp_path / 'data'}", name="retrieve"
    )
    passages = read_corpus(cfg.search.engine.corpus)
    assert [passage.title for passage in passages] == [f"Title {n}" for n in range(30)]


def test_a_disk_that_is_too_small_is_found_before_the_download(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"GiB are free in .*folder=FOLDER"):
        run(tmp_path, "name=wiki18", "sets.wiki18.unpacked_gib=9e6")
    assert hub.downloads == [] and not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_set_asks_for_a_token(status: int, hub: Hub, tmp_path: Path) -> None:
    hub.refused[HOTPOTQA] = status
    with pytest.raises(ValueError, match=rf"{HOTPOTQA} .*it is gated: accept its terms.*HF_TOKEN"):
        run_small(tmp_path)


def test_missing_files_and_sets_are_named(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del hub.files[HOTPOTQA][VALIDATION]
    with pytest.raises(ValueError, match=rf"it has no file {VALIDATION} on the hub"):
        run_small(tmp_path)
    del hub.files[HOTPOTQA]
    with pytest.raises(ValueError, match=r"the hub has no such data set: check the name"):
        run_small(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE is set; where there is a network"):
        run_small(tmp_path)
    names = "nq_hotpotqa, benchmarks, wiki18, hotpotqa_small"
    with pytest.raises(ValueError, match=f"name=wiki81: choose one of {names}"):
        run(tmp_path, "name=wiki81")


def test_a_folder_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # below it nobody can make a folder, not even root
    with pytest.raises(ValueError, match=r"cannot be written .*folder=FOLDER"):
        run_small(tmp_path, f"folder={tmp_path / 'file' / 'data'}")
