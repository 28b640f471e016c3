"""What the LightningModules of both trainings share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn
from transformers import PreTrainedTokenizerBase

from zerosearch import __version__
from zerosearch.core.distributed import gather_objects
from zerosearch.core.errors import InputError
from zerosearch.core.memory import give_back_heap
from zerosearch.core.ranges import Dtype
from zerosearch.core.run_date import run_date, set_run_date
from zerosearch.core.runs import of_old_version
from zerosearch.generation.policy_tokens import PolicyTokens
from zerosearch.policy.activation_memory import MOST_TOKENS
from zerosearch.policy.attention import use_training_attention
from zerosearch.policy.checkpoints import check_same_model, shapes_of
from zerosearch.policy.export import save_policy
from zerosearch.policy.hidden_states import shares_prefixes
from zerosearch.policy.loading import load_policy
from zerosearch.policy.logprobs import packs_sequences
from zerosearch.policy.reference import expect_reference
from zerosearch.policy.sharding import (
    Sharding,
    base_model,
    compute_dtype_name,
    record_autocast,
)
from zerosearch.policy.source import PolicySource
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.training.micro_batches import MicroBatches
from zerosearch.training.optimization import restore_settings, settings_of
from zerosearch.training.step_record import StepRecord
from zerosearch.training.trainee import SkippedUpdates
from zerosearch.training.trainer_settings import prepare_trainer


class TrainedModule(LightningModule, ABC):
    """Trains one model in steps that are recorded for callbacks and go on from a checkpoint.

    Args:
        policy: the model.
        policy_steps: of the whole run.
        tokens_per_micro_batch: padded tokens of one forward and backward pass; None: as in the
            checkpoint that is gone on from, or `MOST_TOKENS`.
        logprob_chunk_tokens: rows of logits held at a time.
        gradient_clip: largest gradient norm.
        max_skipped_updates: in a row, as a loss or gradient is not finite; as many end the run.
    """

    def __init__(
        self,
        *,
        policy: PolicySource,
        policy_steps: int,
        tokens_per_micro_batch: int | None,
        logprob_chunk_tokens: int,
        gradient_clip: float,
        max_skipped_updates: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy_source = policy
        self.policy_steps = policy_steps
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.logprob_chunk_tokens = logprob_chunk_tokens
        self.gradient_clip = gradient_clip
        self.skipped = {
            "policy": SkippedUpdates(most=max_skipped_updates),
            "critic": SkippedUpdates(most=max_skipped_updates),
        }
        self.model: nn.Module | None = None
        self._configured: list[list[dict[str, Any]]] = []  # settings of the optimizers
        self.tokenizer: PreTrainedTokenizerBase | None = None
        # what callbacks read, see `PolicyModule`
        self.policy_step = 0  # completed policy steps
        self.lag = 0  # steps by which sampling is ahead
        self.healthy = True  # set by the health monitor
        self.watched = 0  # trajectories of each step whose entropies callbacks want
        self.phase = "val"  # or "start", "test": under which name evaluations are logged
        self.latest: StepRecord | None = None  # the last policy step
        self.evaluation_records: list[StepRecord] = []  # of the last evaluation
        self.train_metrics: dict[str, float] = {}  # of the last policy step
        self.start_metrics: dict[str, float] = {}  # from before training, kept for resume

    def setup(self, stage: str) -> None:
        """Before the model is loaded."""
        prepare_trainer(self.trainer, self.policy_source)

    def load_trained(self, sharding: Sharding | None) -> nn.Module:
        """Load tokenizer and model.

        Args:
            sharding: see `load_policy`.
        """
        set_run_date(gather_objects(run_date().isoformat())[0])  # one for all ranks
        self.tokenizer = self.policy_source.load_tokenizer()
        self.model = load_policy(self.policy_source, sharding)
        record_autocast(self.model, self.trainer.precision)
        return self.model

    def loaded_model(self) -> nn.Module:
        """The model, once it is there."""
        assert self.model is not None, "configure_model loads it"
        return self.model

    def text_of(self) -> Callable[[list[int]], str]:
        """What makes text of sampled token ids, as turns have it."""
        assert self.tokenizer is not None, "configure_model loads it"
        return PolicyTokens(self.loaded_model(), self.tokenizer).text

    def choose_attention(self, *others: nn.Module | None) -> None:
        """Set the attention of training, once models lie where they are trained.

        Args:
            others: models of the same kind that compute on the same batches.
        """
        name = self.policy_source.attn_implementation
        use_training_attention(name, (self.model, *others), self.device)

    def keep_configured(self, made: Sequence[Mapping[str, Any]]) -> None:
        """Note what optimizers are told before a checkpoint can tell them something else.

        Args:
            made: as Lightning wants it from `configure_optimizers`.
        """
        self._configured = [settings_of(each["optimizer"]) for each in made]

    def use_configured(self) -> None:
        """Let that win, after a checkpoint was loaded, if there is one."""
        schedules = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        restore_settings(self.trainer.optimizers, schedules, self._configured)

    def micro_batches(self) -> MicroBatches:
        """How batches are cut for this model on this device."""
        return MicroBatches(
            tokens=self.tokens_per_micro_batch or MOST_TOKENS,
            device=self.device,
            packed=packs_sequences(self.loaded_model()),
            shares=shares_prefixes(base_model(self.loaded_model())),
        )

    def record(self, metrics: dict[str, float], *, phase: str, **episodes: Any) -> StepRecord:
        """Send metrics of a step or evaluation that has ended to every logger, and give its heap
        back; returns what callbacks look at.

        Args:
            metrics: under their TensorBoard paths.
            phase: see `StepRecord`.
            episodes: its further fields.
        """
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.policy_step)
        give_back_heap()
        return StepRecord(step=self.policy_step, phase=phase, metrics=metrics, **episodes)

    def progress(self) -> dict[str, Any]:
        """What `restore_progress` takes out of a checkpoint."""
        return {
            "version": __version__,
            "date": run_date().isoformat(),  # that prompts show
            "chat": self.policy_source.chat,
            "policy_step": self.policy_step,
            "tokens_per_micro_batch": self.tokens_per_micro_batch or MOST_TOKENS,
            "start_metrics": self.start_metrics,
            "train_metrics": self.train_metrics,
            "skipped": {name: each.state_dict() for name, each in self.skipped.items()},
        }

    def restore_progress(self, checkpoint: dict[str, Any], saved: dict[str, Any]) -> None:
        """Go on where a checkpoint was written.

        Args:
            checkpoint: as Lightning has read it; where it still holds weights they are compared.
            saved: what this project has put into it.

        Raises:
            InputError: it is of 0.1, its prompts are others, or the weights are those of another
                model.
        """
        if "version" not in saved:
            raise of_old_version("resume: the checkpoint")
        if saved.get("chat", self.policy_source.chat) != self.policy_source.chat:
            raise InputError(
                f"resume: model.chat is {self.policy_source.chat} and the run began with "
                f"{saved['chat']}, so that its prompts were others: set it back, or start a new run"
            )
        if "state_dict" in checkpoint:  # else the strategy has checked and restored it
            expect_reference(self, checkpoint["state_dict"])
            check_same_model(shapes_of(checkpoint["state_dict"]), shapes_of(self.state_dict()))
        self._restore_date(saved.get("date"))
        self.policy_step = saved["policy_step"]
        if self.tokens_per_micro_batch is None:  # sums are split by it: the last digits are
            self.tokens_per_micro_batch = saved.get("tokens_per_micro_batch")
        self.start_metrics = saved["start_metrics"]
        self.train_metrics = saved.get("train_metrics", {})  # of a run that has no step left, too
        for name, count in self.skipped.items():
            count.load_state_dict(saved.get("skipped", {}).get(name, {}))
        if "loops" in checkpoint:
            # Lightning would take the end of a finished run for the end, however many steps follow
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            progress["is_last_batch"] = self.policy_step >= self.policy_steps

    def _restore_date(self, saved: str | None) -> None:
        """Go on with the prompts of the day on which the run began."""
        if saved is None or saved == run_date().isoformat():
            return
        set_run_date(saved)
        if self.tokenizer is not None:  # in place: who samples has it, too
            self.tokenizer.chat_template = self.policy_source.load_tokenizer().chat_template

    def export_policy(self, folder: Path, dtype: Dtype | None = None) -> None:
        """Write the model as a HF folder, with what goes with it; collective.

        Args:
            folder: of the export.
            dtype: of its weights; None: what the model computes in.
        """
        model = self.loaded_model()
        save_policy(
            model,
            folder=folder,
            dtype=dtype or compute_dtype_name(model),
            write=self.global_rank == 0,
            **self.export_parts(),
        )

    def policy_settings(self, episode: EpisodeSettings) -> dict[str, Any]:
        """What a policy was trained for, which is kept beside its weights."""
        dtype, chat = compute_dtype_name(self.loaded_model()), self.policy_source.chat
        return {"episode": episode.as_dict(), "chat": chat, "dtype": dtype}

    @abstractmethod
    def export_parts(self) -> dict[str, Any]:
        """What `save_policy` writes beside the weights: `tokenizer`, `extra` and `texts`."""
