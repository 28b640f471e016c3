"""`QADataModule` under a real Trainer: exact resume, however the run was stopped, and settings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import hydra.errors
import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from omegaconf import OmegaConf

from zerosearch.data.datamodule import QADataModule
from zerosearch.data.loaders import EvalLoader, QuestionBatch, TrainLoader
from zerosearch.data.sources import QASource
from zerosearch.types import Question

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


class Facts:
    """A source that yields questions directly, as the embedded ones do."""

    def __init__(
        self, label: str, count: int, weight: float | None = 1.0, text: str = "Q?"
    ) -> None:
        self.label = label
        self.weight = weight
        self.count = count
        self.text = text

    def load(self) -> Sequence[Question]:
        return [
            Question(
                uid=f"{self.label}:{i}", text=self.text, golden_answers=("A",), source=self.label
            )
            for i in range(self.count)
        ]


class Recorder(pl.LightningModule):
    """Trains one weight and writes down which questions it saw, in the checkpoint too."""

    def __init__(self, fail_at: int | None = None, spare_rounds: int = 0, lag: int = 0) -> None:
        super().__init__()
        self.spare_rounds, self.lag = spare_rounds, lag
        self.batches: list[QuestionBatch] = []
        self.layer = torch.nn.Linear(1, 1)
        self.automatic_optimization = False
        self.fail_at = fail_at
        self.seen: list[list[str]] = []
        self.asked: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        if len(self.seen) == self.fail_at:
            raise RuntimeError("interrupted in the middle of a step")
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        for _ in range(2):  # two mini-batches: optimizer steps are not policy steps
            optimizer.zero_grad()
            loss = self.layer(torch.ones(1, 1, dtype=self.layer.weight.dtype)).sum()
            self.manual_backward(loss)
            optimizer.step()
        self.seen.append([question.uid for question in batch])
        self.batches.append(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.asked.extend(question.uid for question in batch)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(pl.Callback):
    """Saves after a given number of policy steps, and when something goes wrong."""

    def __init__(self, path: Path, step: int | None = None, stop: bool = False) -> None:
        self.path, self.step, self.stop = path, step, stop

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any
    ) -> None:
        self._save(trainer, module)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._save(trainer, module)

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Recorder)
        if len(module.seen) == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = self.stop

    def on_exception(
        self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException
    ) -> None:
        trainer.save_checkpoint(self.path)


def trainer(callback: pl.Callback | None = None, **kwargs: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback] if callback else [],
        **kwargs,
    )


def data(tmp_path: Path | None = None, **kwargs: Any) -> QADataModule:
    """Two sources, one of them streamed from a file where `tmp_path` is given."""
    sources: list[Any] = [Facts("a", 7), Facts("b", 11, weight=2.0)]
    if tmp_path is not None:
        path = tmp_path / "stream.jsonl"
        path.write_text(
            "".join(json.dumps({"question": f"Q{i}?", "answer": "A"}) + "\n" for i in range(9))
        )
        sources.append(QASource(path=str(path), streaming=True))
    settings = {"questions_per_step": 4, "train": sources, "shuffle_block": 4, **kwargs}
    settings.setdefault("validation", [Facts("v", 3)])
    return QADataModule(**settings)


def train_uids(module: QADataModule, steps: int) -> list[list[str]]:
    module.setup("fit")
    return [
        [question.uid for question in batch]
        for _, batch in zip(range(steps), module.train_dataloader(), strict=False)
    ]


# one run is 6 policy steps of 2 optimizer steps, by each way of telling Lightning so
ENDLESS: dict[str, Any] = {
    "max_steps": 12,
    "max_epochs": -1,
}  # no length: Lightning fetches a batch ahead
ONE_EPOCH: dict[str, Any] = {"limit_train_batches": 6, "max_epochs": 1}
SHORT_EPOCHS: dict[str, Any] = {"limit_train_batches": 2, "max_epochs": 3}
VALIDATED: dict[str, Any] = {**ENDLESS, "val_check_interval": 3, "check_val_every_n_epoch": None}
WAYS = [
    pytest.param(ENDLESS, id="endless"),
    pytest.param(VALIDATED, id="validated"),
    pytest.param(ONE_EPOCH, id="one-epoch"),
    pytest.param(SHORT_EPOCHS, id="short-epochs"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("save_at", [1, 3, 4])
def test_resume_continues_where_the_checkpoint_was_saved(
    tmp_path: Path, way: dict[str, Any], save_at: int
) -> None:
    whole, first, second = Recorder(), Recorder(), Recorder()
    checkpoint = tmp_path / "run.ckpt"
    trainer(**way).fit(whole, datamodule=data(tmp_path))
    assert whole.seen == train_uids(data(tmp_path), 6)
    trainer(SaveAt(checkpoint, save_at), **way).fit(first, datamodule=data(tmp_path))
    assert first.seen == whole.seen
    trainer(**way).fit(second, datamodule=data(tmp_path), ckpt_path=checkpoint)
    assert second.seen == whole.seen[save_at:]


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_step_is_repeated(tmp_path: Path, way: dict[str, Any]) -> None:
    expected = train_uids(data(tmp_path), 6)
    checkpoint = tmp_path / "run.ckpt"
    first, second = Recorder(fail_at=3), Recorder()
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer(SaveAt(checkpoint), **way).fit(first, datamodule=data(tmp_path))
    trainer(**way).fit(second, datamodule=data(tmp_path), ckpt_path=checkpoint)
    assert first.seen + second.seen == expected


def test_a_finished_run_can_be_continued(tmp_path: Path) -> None:
    expected = train_uids(data(tmp_path), 6)
    first, second = Recorder(), Recorder()
    runner = trainer(SaveAt(tmp_path / "stop.ckpt", 4, stop=True), max_epochs=-1)
    runner.fit(first, datamodule=data(tmp_path))
    runner.save_checkpoint(tmp_path / "end.ckpt")  # after the end of the epoch
    trainer(max_steps=12).fit(second, datamodule=data(tmp_path), ckpt_path=tmp_path / "end.ckpt")
    assert first.seen + second.seen == expected


def test_lightning_does_fetch_ahead(tmp_path: Path) -> None:
    """Otherwise the tests above would not show that the position survives it."""
    module = data()
    recorder = Recorder()
    trainer(**ENDLESS).fit(recorder, datamodule=module)
    loader = module.train_dataloader()
    assert len(recorder.seen) == loader.step == 6
    assert loader._handed_out == 7


def test_checkpoint_holds_plain_values_only(tmp_path: Path) -> None:
    trainer(SaveAt(tmp_path / "run.ckpt", 1), **ENDLESS).fit(Recorder(), datamodule=data(tmp_path))
    state = torch.load(tmp_path / "run.ckpt", weights_only=True)["QADataModule"]
    assert state["loader"]["step"] == 1
    assert state["data"]["sources"] == {"a": 7, "b": 11, "stream.jsonl": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"questions_per_step": 2}, "questions_per_step was 4, is 2"),
        ({"train": [Facts("a", 8), Facts("b", 11, 2.0)]}, "sources was .*'a': 7.*'a': 8"),
        ({"train": [Facts("a", 7), Facts("b", 11)]}, "weights was"),
        ({"train": [Facts("a", 7, text="Who?"), Facts("b", 11, 2.0)]}, "digests was .*is"),
    ],
)
def test_resume_with_other_data_is_an_error(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    checkpoint = tmp_path / "run.ckpt"
    trainer(SaveAt(checkpoint, 1), max_steps=2).fit(Recorder(), datamodule=data())
    with pytest.raises(ValueError, match=message) as error:
        trainer(max_steps=4).fit(Recorder(), datamodule=data(**changes), ckpt_path=checkpoint)
    assert "same data settings" in str(error.value)
    # but the same checkpoint may be evaluated whatever the training data
    module = data(**changes, test=[Facts("t", 3)])
    trainer().test(Recorder(), datamodule=module, ckpt_path=checkpoint, verbose=False)


def test_resume_with_other_spares_is_an_error(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.ckpt"
    trainer(SaveAt(checkpoint, 1), max_steps=2).fit(Recorder(), datamodule=data())
    with pytest.raises(ValueError, match="spare_rounds was 0, is 1"):
        trainer(max_steps=4).fit(Recorder(spare_rounds=1), datamodule=data(), ckpt_path=checkpoint)


@pytest.mark.parametrize("lag", [0, 1])
def test_the_module_says_how_far_to_look_ahead_and_how_many_spares(lag: int) -> None:
    recorder = Recorder(spare_rounds=2, lag=lag)
    trainer(**ONE_EPOCH).fit(recorder, datamodule=data())
    assert [len(batch.spares) for batch in recorder.batches] == [2 * 4] * 6
    followers = [batch.following for batch in recorder.batches]
    assert [each and [q.uid for q in each] for each in followers[:-1]] == (
        recorder.seen[1:] if lag else [None] * 5
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_batches_pass_every_precision_untouched(precision: Any) -> None:
    recorder = Recorder()
    module = data(validation=[Facts("v", 5)], validation_batch=2)  # odd: the last batch is partial
    trainer(precision=precision, max_steps=4).fit(recorder, datamodule=module)
    assert [len(step) for step in recorder.seen] == [4, 4]


def test_validation_and_test_ask_everything_once() -> None:
    module = data(
        validation=[Facts("v", 5), Facts("w", 2)], test={"t": Facts("t", 3)}, validation_batch=2
    )
    validated, tested = Recorder(), Recorder()
    trainer().validate(validated, datamodule=module, verbose=False)
    trainer().test(tested, datamodule=module, verbose=False)
    assert validated.asked == ["v:0", "v:1", "v:2", "v:3", "v:4", "w:0", "w:1"]
    assert tested.asked == ["t:0", "t:1", "t:2"]


def test_limit_applies_to_each_source_and_ignores_the_seed() -> None:
    picks = []
    for seed in (0, 1):
        module = data(
            validation=[Facts("v", 50), Facts("w", 3)], validation_limit=5, test_limit=1, seed=seed
        )
        module.setup("validate")
        loader = module.val_dataloader()
        assert isinstance(loader, EvalLoader)
        picks.append([question.uid for batch in loader for question in batch])
    assert picks[0] == picks[1]
    assert [uid[0] for uid in picks[0]] == ["v"] * 5 + ["w"] * 3
    with pytest.raises(ValueError, match="validation_limit=0"):
        data(validation_limit=0)


def test_nothing_to_validate_is_skipped() -> None:
    recorder = Recorder()
    way: dict[str, Any] = {**VALIDATED, "val_check_interval": 1, "max_steps": 2}
    trainer(**way).fit(recorder, datamodule=data(validation=()))
    assert len(recorder.seen) == 1 and recorder.asked == []


def test_ranks_share_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rank:
        world_size, lightning_module = 2, Recorder()
        fit_loop = pl.Trainer(accelerator="cpu", logger=False, barebones=True).fit_loop

        def __init__(self, rank: int) -> None:
            self.global_rank = rank

    shares = []
    for rank in (0, 1):
        module = data()
        module.trainer = Rank(rank)  # type: ignore[assignment]
        shares.append(train_uids(module, 5))
    joined = [first + second for first, second in zip(*shares, strict=True)]
    assert joined == train_uids(data(), 5)
    module = data(questions_per_step=3)
    module.trainer = Rank(0)  # type: ignore[assignment]
    module.setup("fit")
    with pytest.raises(
        ValueError, match="questions_per_step=3 is not a positive multiple of the 2"
    ):
        module.train_dataloader()


def test_order_of_sources_does_not_matter_but_the_seed_does() -> None:
    sources = [Facts("a", 7), Facts("b", 11)]
    assert train_uids(data(train=sources), 6) == train_uids(data(train=sources[::-1]), 6)
    named = {"x": sources[0], "y": sources[1]}
    assert train_uids(data(train=named), 6) == train_uids(data(train=sources), 6)
    assert train_uids(data(train=sources, seed=3), 6) != train_uids(data(train=sources), 6)


def test_sources_without_weights_mix_by_size() -> None:
    module = data(train=[Facts("a", 30, weight=None), Facts("b", 10, weight=None)])
    drawn = [uid for step in train_uids(module, 10) for uid in step]
    assert sorted(drawn) == sorted([f"a:{i}" for i in range(30)] + [f"b:{i}" for i in range(10)])


def write_lines(path: Path, count: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    items = [{"question": f"Q{i}?", "answer": "A"} for i in range(count)]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


def test_files_replace_the_training_sources_and_mix_by_size(tmp_path: Path) -> None:
    files = [write_lines(tmp_path / "a.jsonl", 6), write_lines(tmp_path / "b.jsonl", 2)]
    drawn = [uid for step in train_uids(data(files=files), 2) for uid in step]
    assert sorted(drawn) == sorted([f"a.jsonl:{i}" for i in range(6)] + ["b.jsonl:0", "b.jsonl:1"])
    twins = [write_lines(tmp_path / part / "a.jsonl", 1) for part in ("x", "y")]
    assert {uid for step in train_uids(data(files=twins), 1) for uid in step} == {
        f"{twins[0]}:0",
        f"{twins[1]}:0",
    }


def test_held_out_questions_of_another_source_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"question": f"q{n}", "golden_answers": ["a"]} for n in range(3)]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = [Facts("held", 2)]
    replaced = QADataModule(
        questions_per_step=1, files=[str(own)], train=[Facts("embedded", 3)], validation=held_out
    )
    replaced.setup("fit")
    assert "Training asks questions of own.jsonl, but validation and test ask those of held" in (
        caplog.text
    )
    caplog.clear()
    QADataModule(questions_per_step=1, files=[str(own)], validation=held_out).setup("fit")
    QADataModule(questions_per_step=1, train=[Facts("t", 3)], validation=held_out).setup("fit")
    assert "Training asks" not in caplog.text, "nothing was replaced"


def test_training_questions_are_shown_without_moving_on(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "golden_answers": ["a"]} for n in range(9)]
    path = tmp_path / "stream.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make() -> QADataModule:
        sources = [Facts("memory", 5), QASource(path=str(path), streaming=True)]
        data = QADataModule(questions_per_step=4, train=sources)
        data.setup("fit")
        return data

    def first_steps(data: QADataModule) -> list[list[str]]:
        batches = iter(data.train_dataloader())
        return [[question.uid for question in next(batches)] for _ in range(4)]

    shown, untouched = make(), make()
    questions = shown.training_questions(3)
    assert [question.uid for question in questions] == [
        *(f"memory:{n}" for n in range(5)),
        *(f"stream.jsonl:{n}" for n in range(3)),
    ]
    assert first_steps(shown) == first_steps(untouched)


def test_hydra_builds_it_from_yaml_and_overrides(tmp_path: Path) -> None:
    config = OmegaConf.create(f"""
        _target_: zerosearch.data.datamodule.QADataModule
        _convert_: all
        questions_per_step: 4
        files: null
        train:
          mine:
            _target_: zerosearch.data.sources.QASource
            path: {write_lines(tmp_path / "a.jsonl", 3)}
            weight: 2
            columns: {{_target_: zerosearch.data.rows.Columns, answer: answer}}
        validation:
          - {{_target_: zerosearch.data.sources.QASource, path: {tmp_path / "a.jsonl"}}}
        """)
    module = hydra.utils.instantiate(config)
    assert {uid for step in train_uids(module, 2) for uid in step} == {
        "a.jsonl:0",
        "a.jsonl:1",
        "a.jsonl:2",
    }
    config.files = [write_lines(tmp_path / "b.jsonl", 2)]
    module = hydra.utils.instantiate(config)
    assert {uid for step in train_uids(module, 2) for uid in step} == {"b.jsonl:0", "b.jsonl:1"}
    module.setup("validate")
    assert len(module.val_dataloader()) == 1
    unconverted = OmegaConf.masked_copy(config, ["_target_", "questions_per_step", "train"])  # type: ignore[arg-type]
    with pytest.raises(hydra.errors.InstantiationException, match="_convert_: all"):
        hydra.utils.instantiate(unconverted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"files": "a.parquet"}, r"data\.files='a\.parquet' must be a list"),
        ({"files": []}, r"data\.files=\[\] must be a list"),
        ({"files": ["a.jsonl", "a.jsonl"]}, r"data\.files names 'a\.jsonl' twice: name it once"),
        ({"files": ["a.jsonl", "b/../a.jsonl"]}, r"names 'b/\.\./a\.jsonl' twice"),
        ({"train": [Facts("a", 1), Facts("a", 1)]}, "data.train has two sources with label 'a'"),
        ({"train": [Facts("a", 1, weight=0.0)]}, "weight of 'a' is 0.0; it must be positive"),
        ({"train": [Facts("a", 1, weight=float("nan"))]}, "weight of 'a' is nan"),
        ({"validation": {"own": {"path": "x"}}}, r"data\.validation has settings .*data=files for"),
        ({"train": ["a.parquet"]}, "data.train holds 'a.parquet', which has no label"),
        ({"test": {"t": None}}, "data.test holds None"),
        ({"shuffle_block": 0}, "shuffle_block=0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(**settings)


def test_a_file_and_a_pattern_of_it_are_that_file_twice(tmp_path: Path) -> None:
    files = [write_lines(tmp_path / "b.jsonl", 2), str(tmp_path / "*.jsonl")]
    for given in (files, files[::-1]):
        with pytest.raises(ValueError, match=r"data\.files names .*\.jsonl' twice: name it once"):
            data(files=given)


def test_files_of_one_name_have_questions_of_their_own(tmp_path: Path) -> None:
    """Noise is drawn by a question's identity, and journals and transcripts know it by that."""
    train, held_out, test, more = (
        write_lines(tmp_path / folder / "qa.jsonl", 3) for folder in ("a", "b", "c", "d")
    )
    module = data(
        files=[train, more],
        validation=[QASource(path=held_out)],
        test=[QASource(path=test), QASource(path=held_out, label="again")],
    )
    module.setup("fit")
    module.setup("test")
    loaded = [
        module.training_questions(0),
        module.held_out_questions(),
        [question for batch in module.test_dataloader() for question in batch],
    ]
    uids = [question.uid for questions in loaded for question in questions]
    assert len(uids) == len(set(uids)) == 15
    assert uids[6:10] == ["qa.jsonl:0", "qa.jsonl:1", "qa.jsonl:2", f"{test}:0"]


def test_splits_of_one_hub_data_set_are_told_apart() -> None:
    sets = {split: QASource(path="org/set", split=split) for split in ("train", "dev", "test")}
    module = data(train=[sets["train"]], validation=[sets["dev"]], test=[sets["test"]])
    every = [*module._train, *module._validation, *module._test]
    assert [source.label for source in every] == ["org/set", "org/set/dev", "org/set/test"]
    same = data(train=[sets["train"]], validation=[sets["train"]])
    assert same._validation[0].label == "org/set", "the same questions"


def test_bad_sources_are_found_at_setup(tmp_path: Path) -> None:
    class Twins(Facts):
        def load(self) -> Sequence[Question]:
            return [*super().load(), *super().load()]

    path = write_lines(tmp_path / "a.jsonl", 2)
    for train, message in (
        ([], "data.train names no source"),
        ([Twins("a", 2)], "uid 'a:0'"),
        ([Facts("a", 2), Facts("b", 2, weight=None)], "weight of 'b' is null"),
        (
            [Facts("a", 2, weight=None), QASource(path=path, streaming=True, weight=None)],
            "size of a stream is not known",
        ),
        ([QASource(path=str(tmp_path / "missing.jsonl"))], "missing.jsonl' does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            module = data(train=train)
            module.setup("fit")
            module.train_dataloader()


@pytest.mark.skipif(
    not (SHARED / "qa_test.parquet").exists(), reason=f"real questions are not at {SHARED}"
)
def test_real_files() -> None:
    files = [str(SHARED / "qa_train.jsonl"), str(SHARED / "qa_test.parquet")]
    module = data(files=files, test=[QASource(path=files[1])], questions_per_step=64)
    module.setup("fit")
    loader = module.train_dataloader()
    assert isinstance(loader, TrainLoader)
    drawn = [q for _, batch in zip(range(169), loader, strict=False) for q in batch]
    assert len(drawn) == 169 * 64  # 10,816 of 10,857 questions: not one of them twice
    share = sum(question.uid.startswith("qa_test") for question in drawn) / len(drawn)
    assert share == pytest.approx(2560 / 10857, abs=1e-3)
    module.setup("test")
    tests = module.test_dataloader()
    assert isinstance(tests, EvalLoader)
    assert len({q.uid for batch in tests for q in batch}) == 2560
