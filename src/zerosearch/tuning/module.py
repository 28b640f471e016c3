"""Tuning of a simulation LLM (arXiv 2505.04588, section 3.2): its replies are learned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Count, CountOrZero, NotNegative, Positive, Seed, check_least
from zerosearch.core.runs import PROMPT_FILE
from zerosearch.generation.generator import Generator
from zerosearch.policy.source import PolicySource
from zerosearch.tuning.chat_template import servable
from zerosearch.tuning.encoded_examples import EncodedExample, check_lengths, encode
from zerosearch.tuning.tuning_module import TuningModule
from zerosearch.tuning.tuning_set import TuningExample, TuningSet
from zerosearch.tuning.writing import Written, fidelity_metrics, write_replies


class SimulatorTuningModule(TuningModule[TuningExample, TuningSet]):
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

    loss_name = "loss/reply"
    kind = "simulator"

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
            generator=generator,
            optimizer=optimizer,
            schedule=schedule,
            steps=steps,
            seed=seed,
            tokens_per_micro_batch=tokens_per_micro_batch,
            logprob_chunk_tokens=logprob_chunk_tokens,
            gradient_clip=gradient_clip,
            max_skipped_updates=max_skipped_updates,
        )
        check_least("module", "fidelity_examples", fidelity_examples, 0)
        check_least("module", "max_reply_tokens", max_reply_tokens, 1)
        self.fidelity_examples = fidelity_examples
        self.max_tokens = max_tokens
        self.max_reply_tokens = max_reply_tokens
        self.temperature = temperature
        self.template = ""  # of the prompts, goes into the export; comes with the data
        self.written: list[Written] = []  # documents of the last validation, of this rank
        self._is_bound = False

    def take(self, examples: TuningSet) -> None:
        """Take the template that the prompts come from; too long an example is an error."""
        self.template = examples.template
        check_lengths(self.encode(examples.train + examples.validation), self.max_tokens)

    def encode(self, examples: Sequence[TuningExample]) -> list[EncodedExample]:
        """Prompts and replies, of which the replies are learned."""
        if self.tokenizer is None:
            self.tokenizer = self.policy_source.load_tokenizer()
        return [encode(self.tokenizer, each, chat=self.policy_source.chat) for each in examples]

    # -- validation --------------------------------------------------------------------------

    def part_of(self, example: TuningExample) -> str | None:
        """The quality of its documents, where it is known."""
        return None if example.noisy is None else "noisy" if example.noisy else "useful"

    def measure(self, examples: Sequence[TuningExample]) -> dict[str, float]:
        """What the model writes to some of their prompts; a collective."""
        if not self.fidelity_examples:
            return {}
        share = -(-self.fidelity_examples // self.trainer.world_size)
        self.written = asyncio.run(self._write(examples[:share]))
        return fidelity_metrics(self.written)

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
        super().on_save_checkpoint(checkpoint)
        checkpoint["zerosearch"]["template"] = self.template

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if checkpoint["zerosearch"]["template"] != self.template:
            raise InputError(
                "resume: the prompts come from another template than those of the checkpoint's "
                "run; set data.files back, or start a new run"
            )

    def export_parts(self) -> dict[str, Any]:
        """The tokenizer, and the prompt template, which goes into the folder of a simulator."""
        assert self.tokenizer is not None
        return {
            "tokenizer": servable(self.tokenizer, chat=self.policy_source.chat),
            "extra": {"simulator": {"max_reply_tokens": self.max_reply_tokens}},
            "texts": {PROMPT_FILE: self.template},
        }
