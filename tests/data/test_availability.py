"""What a configuration names and is not there: one sentence before anything heavy is imported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tests.helpers.configs import CONFIGS, compose_config
from tests.helpers.hub import Hub, lines, run_with_hub, serving
from zerosearch.data.availability import PUBLIC, check_data, settable

PROGRAM = """
import sys
from zerosearch.cli import main
try:
    main()
except SystemExit as end:
    heavy = sorted({"torch", "transformers", "lightning", "datasets"} & set(sys.modules))
    print(f"ended with {end.code}, heavy: {heavy}")
"""
CUSTOM = ["data=files", "data.files=[train.jsonl]"]


def said(folder: Path, *overrides: str, name: str = "train") -> str:
    """Why the places of a configuration are refused."""
    cfg = compose_config(folder, f"paths.data_dir={folder / 'public'}", *overrides, name=name)
    with pytest.raises(ValueError) as caught:
        check_data(cfg)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_public_sets_are_those_that_can_be_fetched() -> None:
    assert tuple(OmegaConf.load(CONFIGS / "data.yaml").sets) == PUBLIC  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("program", "overrides", "key", "public"),
    [
        ("train", ["experiment=smollm2_135m"], "data.train.hotpotqa.path", "hotpotqa_small"),
        ("train", ["experiment=zerosearch_7b"], "data.train.zerosearch.path", "nq_hotpotqa"),
        ("train", ["search=bm25", "corpus=wiki18"], "search.engine.corpus", "wiki18"),
        ("evaluate", ["benchmark=nq"], "benchmark.nq.source.path", "benchmarks"),
        ("evaluate", ["benchmark=all"], "benchmark.nq.source.path", "benchmarks"),
        (
            "evaluate",
            ["engines=geography", "corpus=wiki18"],
            "engines.bm25.search.engine.corpus",
            "wiki18",
        ),
        ("retrieve", ["corpus=hotpotqa_small"], "search.engine.corpus", "hotpotqa_small"),
        ("ask", ["corpus=hotpotqa_small"], "search.engine.corpus", "hotpotqa_small"),
    ],
)
def test_a_public_file_that_is_not_there_names_the_command_that_gets_it(
    program: str, overrides: list[str], key: str, public: str, tmp_path: Path
) -> None:
    sentence = said(tmp_path, *overrides, name=program)
    assert sentence.startswith(f"{key}={tmp_path / 'public' / public}/")
    assert (
        f"does not exist: fetch it with `zerosearch data name={public}`, set ZEROSEARCH_DATA"
        in sentence
    )
    assert f"{key}=FILE" in sentence


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.files=[no.jsonl]"], "data.files[0]=no.jsonl does not exist (looked in "),
        (["data.files=[no/*.parquet]"], "data.files[0]=no/*.parquet does not exist"),
        (["search=bm25", "search.engine.corpus=no.txt"], "search.engine.corpus=no.txt does not"),
        (["search=dense", "search.engine.corpus=no.jsonl"], "search.engine.corpus=no.jsonl does"),
        (["data=files"], "data.validation.own.path is not set: give a file of your own, data."),
        (["experiment=simulator_sft_tiny"], "data.files.train"),
    ],
)
def test_a_file_of_the_user_that_is_not_there(
    overrides: list[str], sentence: str, tmp_path: Path
) -> None:
    assert said(tmp_path, *overrides).startswith(sentence)


def test_benchmarks_of_the_user(tmp_path: Path) -> None:
    unset = said(tmp_path, "benchmark=file", name="evaluate")
    assert unset.startswith("benchmark.file.path is not set: give a file of your own")
    one = said(tmp_path, "benchmark=one_file", name="evaluate")
    assert one.startswith("benchmark_file is not set"), "what the user sets, not what it is read by"
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(lines([{"question": "who?", "answer": "me"}]))
    own = ["benchmark=file", f"benchmark.file.path={mine}", "benchmark.file.label=Mine"]
    check_data(compose_config(tmp_path, *own, name="evaluate"))


def test_what_is_there_or_not_used_is_not_refused(tmp_path: Path) -> None:
    for name in ("train.jsonl", "held_out.parquet", "corpus.jsonl"):
        (tmp_path / name).touch()
    own = [f"data.files=[{tmp_path}/train.jsonl]", f"search.engine.corpus={tmp_path}/corpus.jsonl"]
    pattern = f"data.validation.own.path={tmp_path}/held_*.parquet"
    check_data(compose_config(tmp_path, "data=files", *own, pattern, "search=bm25"))
    check_data(compose_config(tmp_path))
    check_data(compose_config(tmp_path, name="evaluate"))
    # the training files of the configuration are replaced, its held-out questions are not
    nq = ["data=nq_hotpotqa", own[0], f"paths.data_dir={tmp_path}"]
    assert said(tmp_path, *nq).startswith("data.validation.zerosearch.path=")


def test_every_advised_override_can_be_given() -> None:
    for key in ("data.train.nq.path", "benchmark.2wikimultihopqa.source.path", "data.files"):
        advised = settable(key).strip("'")
        OverridesParser.create().parse_override(advised)
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            if key.startswith("benchmark"):
                cfg = compose("evaluate", ["benchmark=2wikimultihopqa", advised])
                assert OmegaConf.select(cfg, key, throw_on_missing=True) == "FILE"


def test_hub_names_are_asked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    name = "benchmark.nq.source.path=owner/set"
    offline = said(tmp_path, "benchmark=nq", name, name="evaluate")
    assert offline.startswith(f"{name} is neither a file nor in the local cache of data sets")
    assert "HF_HUB_OFFLINE is set" in offline and "`zerosearch data`" in offline
    (tmp_path / "hf" / "datasets" / "owner___set").mkdir(parents=True)  # read before
    check_data(compose_config(tmp_path, "benchmark=nq", name, name="evaluate"))
    dense = said(tmp_path, "search=dense", name="evaluate")
    assert dense.startswith("search.engine.model=intfloat/e5-base-v2 is neither a folder nor in")
    assert "search.engine.model to a local folder" in dense


@pytest.mark.parametrize(
    ("program", "overrides", "key"),
    [
        ("evaluate", ["benchmark=nq"], "benchmark.nq.source.path="),
        ("evaluate", ["benchmark=nq", "benchmark.nq.source.path=owner/set"], "cannot be reached"),
        ("evaluate", ["search=dense", "search.engine.model=owner/e5"], "search.engine.model="),
        ("train", ["experiment=smollm2_135m"], "zerosearch data name=hotpotqa_small"),
    ],
)
def test_programs_end_before_anything_heavy_is_imported(
    program: str, overrides: list[str], key: str, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = ["program", program, *overrides, f"hydra.run.dir={tmp_path / 'run'}"]
    done = run_with_hub(None, tmp_path, *command, ZEROSEARCH_DATA=str(tmp_path / "public"))
    assert done.stdout.strip().splitlines()[-1] == "ended with 1, heavy: []", done.stdout
    assert key in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert key in json.loads((tmp_path / "run" / "summary.json").read_text())["error"]


def test_a_data_set_of_the_hub_that_is_there_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "checking.py").write_text(
        "import sys\nfrom tests.data.test_availability import check_data, compose_config, Path\n"
        "check_data(compose_config(Path(sys.argv[1]), *sys.argv[2:], name='evaluate'))\n"
    )
    name = ["benchmark=nq", "benchmark.nq.source.path=owner/set"]
    with serving(Hub(files={"owner/set": {"data.jsonl": b""}})) as url:  # without a card
        assert run_with_hub(url, tmp_path, "checking", str(tmp_path), *name).returncode == 0
        gone = run_with_hub(url, tmp_path, "checking", str(tmp_path), name[0], f"{name[1]}s")
    assert gone.returncode == 1 and "the hub has no such data set" in gone.stderr
