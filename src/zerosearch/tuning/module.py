"""Supervised tuning of a simulation LLM as a LightningModule (arXiv 2505.04588, section 3.2).

Loss is on the replies alone, a mean over the tokens of all ranks and micro-batches, so that the
gradient does not depend on how examples are split. Models, sharding, packing and chunked log-probs
are those of the policy's training.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zerosearch.core.errors import InputError, NonFiniteError
from zerosearch.core.ranges import Count, CountOrZero, NotNegative, Positive, Seed, check_least
from zerosearch.core.runs import PROMPT_FILE
from zerosearch.generation.generator import Generator
from zerosearch.policy.source import PolicySource
from zerosearch.training.base_module import TrainedModule
from zerosearch.training.metrics import Means, peak_memory_gib, reset_peak_memory
from zerosearch.training.sharded_strategy import sharding_of
from zerosearch.training.trainee import Trainee
from zerosearch.tuning.chat_template import servable
from zerosearch.tuning.datamodule import ExampleBatch
from zerosearch.tuning.encoded_examples import EncodedExample, collate, encode
from zerosearch.tuning.tuning_set import TuningExample
from zerosearch.tuning.update import ReplyUpdater
from zerosearch.tuning.writing import Written, fidelity_metrics, write_replies


class SimulatorTuningModule(TrainedModule):
    """Teaches a model to write useful and noisy documents.

    Args:
        policy: the model that is tuned.
        generator: writes documents in validations.
        optimizer: from parameters, e.g. a partial of AdamW.
        schedule: from optimizer and number of updates, e.g. a partial of `warmup_schedule`.
        steps: optimizer updates of the whole run.
        fidelity_examples: validation examples whose documents are generated and measured over all
            GPUs; 0: none.
        max_tokens: longest example, prompt and reply together.
        max_reply_tokens: of generated documents.
        temperature: of generated documents; the default is the authors' scripts'.
        tokens_per_micro_batch: padded tokens of one pass; None: of the checkpoint, or 16,384.
        logprob_chunk_tokens: rows of logits held at a time.
        gradient_clip: largest gradient norm.
        max_skipped_updates: in a row, as a loss or gradient is not finite; as many end the run.
        seed: of generated documents.

    Raises:
        InputError: a number is out of range.
    """

    def __init__(
        self,
        *,
        policy: PolicySource,
        generator: Generator,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[[Optimizer, int], LRScheduler],
        steps: Count,
        fidelity_examples: CountOrZero = 64,
        max_tokens: Count = 2048,
        max_reply_tokens: Count = 600,
        temperature: NotNegative = 0.8,
        tokens_per_micro_batch: Count | None = None,
        logprob_chunk_tokens: Count = 4_096,
        gradient_clip: Positive = 1.0,
        max_skipped_updates: Count = 3,
        seed: Seed = 0,
    ) -> None:
        super().__init__(
            policy=policy,
            policy_steps=steps,  # of one optimizer update each
            tokens_per_micro_batch=tokens_per_micro_batch,
            logprob_chunk_tokens=logprob_chunk_tokens,
            gradient_clip=gradient_clip,
            max_skipped_updates=max_skipped_updates,
        )
        for name, value, least in (
            ("steps", steps, 1),
            ("fidelity_examples", fidelity_examples, 0),
            ("max_reply_tokens", max_reply_tokens, 1),
        ):
            check_least("module", name, value, least)
        self.generator = generator
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.fidelity_examples = fidelity_examples
        self.max_tokens = max_tokens
        self.max_reply_tokens = max_reply_tokens
        self.temperature = temperature
        self.seed = seed
        self.template = ""  # of the prompts, goes into the export; set with the data
        self.validation_metrics: dict[str, float] = {}  # of the last validation
        self.written: list[Written] = []  # documents of the last validation, of this rank
        self._is_bound = False

    # -- set-up ------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load model and tokenizer."""
        if self.model is None:
            self.load_trained(sharding_of(self))

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule of what is trained."""
        trained = [p for p in self.loaded_model().parameters() if p.requires_grad]
        made = self.optimizer_factory(trained)
        schedule = self.schedule_factory(made, self.policy_steps)
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule}}

    def encode(self, examples: Sequence[TuningExample]) -> list[EncodedExample]:
        """Token ids of examples."""
        if self.tokenizer is None:
            self.tokenizer = self.policy_source.load_tokenizer()
        return [encode(self.tokenizer, each, chat=self.policy_source.chat) for each in examples]

    # -- training ----------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Choose the attention of training, on the device that the model now lies on."""
        self.choose_attention()

    def training_step(self, batch: ExampleBatch, batch_index: int) -> None:
        """One optimizer update on this rank's examples."""
        started = time.perf_counter()
        reset_peak_memory(self.device)
        encoded = self.encode(batch.examples)
        trainee = Trainee(
            model=self.loaded_model().train(),
            updater=self._updater(),
            optimizer=self.optimizers(),
            schedule=self.lr_schedulers(),  # type: ignore[arg-type]
            gradient_clip=self.gradient_clip,
            skipped=self.skipped["policy"],
            remedy="optimizer.lr or module.gradient_clip",
        )
        try:
            found = trainee.update(collate(encoded, pad_id=self._pad_id), self.manual_backward)
        except NonFiniteError:
            skipped = {"optimizer/skipped": float(self.skipped["policy"].total)}
            self.latest = self.record(skipped, phase="train")
            raise
        seconds = time.perf_counter() - started
        tokens = Means()
        tokens.add("tokens", sum(map(len, encoded)) * self.trainer.world_size)
        metrics = {
            "optimizer/skipped": float(self.skipped["policy"].total),
            "time/train_s": seconds,
            "throughput/tokens_per_s": tokens.reduced()["tokens"] / seconds,
            "memory/peak_gib": peak_memory_gib(self.device),
        }
        if found is not None:
            metrics["loss/reply"] = found["loss"]
            metrics["optimizer/gradient_norm"] = found["gradient_norm"]
            metrics["optimizer/learning_rate"] = found["learning_rate"]
        self.train_metrics = metrics
        self.latest = self.record(metrics, phase="train")
        self.policy_step += 1

    def _updater(self) -> ReplyUpdater:
        return ReplyUpdater(
            micro_batches=self.micro_batches(), chunk_tokens=self.logprob_chunk_tokens
        )

    @property
    def _pad_id(self) -> int:
        assert self.tokenizer is not None and isinstance(self.tokenizer.pad_token_id, int)
        return self.tokenizer.pad_token_id

    # -- validation --------------------------------------------------------------------------

    def validation_step(self, batch: ExampleBatch, batch_index: int) -> None:
        """Loss on the held-out replies, and what the model writes to some of their prompts."""
        metrics = self._losses(batch.examples)
        share = -(-self.fidelity_examples // self.trainer.world_size)
        if self.fidelity_examples:
            self.written = asyncio.run(self._write(batch.examples[:share]))
            metrics |= fidelity_metrics(self.written)
        named = {f"{self.phase}/{name}": value for name, value in metrics.items()}
        self.validation_metrics = named
        if self.phase == "start":
            self.start_metrics = named
        self.evaluation_records = [self.record(named, phase=self.phase)]
        loss = metrics["loss"]
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=1, sync_dist=True)

    def test_step(self, batch: ExampleBatch, batch_index: int) -> None:
        """As `validation_step`."""
        self.validation_step(batch, batch_index)

    def _losses(self, examples: Sequence[TuningExample]) -> dict[str, float]:
        """Nats per token over all ranks: of all replies, and of each quality."""
        batch = collate(self.encode(examples), pad_id=self._pad_id)
        logprobs = self._updater().logprobs(self.loaded_model().eval(), batch)
        means = Means()
        for row, example in enumerate(examples):
            loss, tokens = -logprobs[row].sum().item(), int(batch.sampled_mask[row].sum())
            means.add("loss", loss, tokens)
            if example.noisy is not None:
                means.add(f"loss_{'noisy' if example.noisy else 'useful'}", loss, tokens)
        found = means.reduced()
        return {**found, "perplexity": math.exp(min(found["loss"], 700.0))}

    async def _write(self, examples: Sequence[TuningExample]) -> list[Written]:
        assert self.model is not None and self.tokenizer is not None
        if not self._is_bound:
            self.generator.bind(self.model, self.tokenizer)
            self._is_bound = True
        await self.generator.sync_weights(self.model)
        written = await write_replies(
            self.generator,
            [(each, self.encode([each])[0].prompt_ids) for each in examples],
            max_tokens=self.max_reply_tokens,
            temperature=self.temperature,
            seed=self.seed,
        )
        await self.generator.release()
        return written

    # -- checkpoints and export --------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["zerosearch"] = {
            **self.progress(),
            "template": self.template,
            "validation_metrics": self.validation_metrics,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("zerosearch", {})
        if "template" not in saved:
            raise InputError("resume: the checkpoint was not written by the tuning of a simulator")
        if saved["template"] != self.template:
            raise InputError(
                "resume: the prompts come from another template than those of the checkpoint's "
                "run; set data.files back, or start a new run"
            )
        self.restore_progress(checkpoint, saved)
        self.validation_metrics = saved.get("validation_metrics", {})

    def export_parts(self) -> dict[str, Any]:
        """The tokenizer, and the prompt template, which goes into the folder of a simulator."""
        assert self.tokenizer is not None
        return {
            "tokenizer": servable(self.tokenizer, chat=self.policy_source.chat),
            "extra": {"simulator": {"max_reply_tokens": self.max_reply_tokens}},
            "texts": {PROMPT_FILE: self.template},
        }
