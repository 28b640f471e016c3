"""Where a policy comes from: one description loads the model, its tokenizer, or only its shape.

Making a `PolicySource` costs nothing; `check` says in one sentence what is missing; `load_model`
and `load_tokenizer` do the work. Any Hugging Face causal LM, full or LoRA.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_gguf_available

from zerosearch.core.errors import InputError, as_input_errors
from zerosearch.core.hub import check_files, show_downloads_alone
from zerosearch.core.model_path import PACKAGE, resolve_path
from zerosearch.core.ranges import Seed
from zerosearch.core.run_date import run_date
from zerosearch.policy.adaptation import (
    add_lora,
    check_lora,
    decoder_layers,
    seeded,
    start_adapters,
    switch_off_dropout,
)
from zerosearch.policy.architecture import check_architecture
from zerosearch.policy.attention import check_attention, plain_attention
from zerosearch.policy.logprobs import verify_logprobs
from zerosearch.policy.sharding import DTYPES
from zerosearch.policy.tokenizer import check_chat, fix_date, prepare_tokenizer
from zerosearch.policy.weights import safetensors_files, weight_files


@dataclass(kw_only=True, slots=True)
class PolicySource:
    """Description of a policy model. In YAML the node needs `_convert_: all`."""

    path: str  # folder, hub name, or pkg://package/folder of an installed package
    dtype: str = "float32"  # of frozen weights, see `load_model`; "auto": that of the files
    attn_implementation: str = "auto"  # in training, see `use_training_attention`; sdpa elsewhere
    chat: bool = False  # prompts go through the chat template
    lora: LoraConfig | None = None  # None: full training
    gradient_checkpointing: bool = False
    compile: bool = False  # each decoder layer by torch.compile, for training alone
    gguf_file: str | None = None  # de-quantised when loaded
    tokenizer_path: str | None = None  # where it is not beside the weights
    revision: str | None = None
    trust_remote_code: bool = False
    architecture: dict[str, Any] | None = None  # published config fields: size without network
    random_init: bool = False  # weights from `init_seed` instead of files: tests, benchmarks
    init_seed: Seed = 0  # of random weights and of LoRA matrices: the same on every rank

    @as_input_errors("model.path cannot be used")
    def check(self) -> None:
        """Raise at once, in one sentence, what would make loading fail or train wrongly.

        Raises:
            InputError: names the field, its value and the remedy.
        """
        if self.dtype not in DTYPES:
            raise InputError(f"model.dtype={self.dtype} is unknown: use one of {', '.join(DTYPES)}")
        check_attention(self.attn_implementation)
        if self.gguf_file is not None and not is_gguf_available():
            raise InputError(
                f"model.gguf_file={self.gguf_file} needs the gguf package: `pip install gguf`"
            )
        if self.lora is not None:
            check_lora(self.lora)
        self._check_place()
        if self.tokenizer_path is not None:
            check_files(self.tokenizer_path, "tokenizer", field="model.tokenizer_path")

    @as_input_errors("model.path cannot be loaded")
    def load_model(self, *, trained: bool = True) -> PreTrainedModel | PeftModel:
        """Load the model on the CPU, in training mode, without dropout, adapted as asked.

        Args:
            trained: keep in float32 what is trainable, whatever `dtype` is: in bfloat16 an update
                below 1/512 of a weight is rounded away. False is for a model that is only used.

        Returns:
            A causal LM, or with `lora` a PeftModel whose adapters alone are trainable.

        Raises:
            InputError: see `check`; or the weights are not of `architecture`.
        """
        self.check()
        show_downloads_alone()
        dtype = self._base_dtype(trained)
        with seeded(self.init_seed):
            if self.random_init:
                model = self._from_config(self.load_config(), dtype)
            elif self.gguf_file is not None:
                model = self._dequantised(dtype)
            else:
                model = AutoModelForCausalLM.from_pretrained(
                    dtype=dtype,
                    attn_implementation=plain_attention(self.attn_implementation),
                    **self._arguments("weights"),
                )
        check_architecture(self.architecture, model.config)
        verify_logprobs(switch_off_dropout(model))
        adapted = self.adapt(model)
        if self.lora is not None:
            start_adapters(adapted, self.lora, self.init_seed)
        return adapted.train()

    def load_tokenizer(self, date: datetime | None = None) -> PreTrainedTokenizerBase:
        """Load the tokenizer with pad token and BOS rule set (see `prepare_tokenizer`).

        Args:
            date: that a chat template prints which would print today's; None: `run_date`.

        Raises:
            InputError: no tokenizer there, no EOS, no chat template although `chat`, or
                token ids of text beyond the model's embeddings.
        """
        arguments = self._arguments("tokenizer")
        place = arguments["pretrained_model_name_or_path"]
        with as_input_errors(
            f"no tokenizer could be loaded from {place}: set model.tokenizer_path to a folder or "
            "hub name that has one"
        ):
            tokenizer = AutoTokenizer.from_pretrained(**arguments)
        if self.chat:
            check_chat(tokenizer)
            fix_date(tokenizer, date or run_date())
        return prepare_tokenizer(tokenizer, self.load_config())

    @as_input_errors("model.path cannot be loaded")
    def load_config(self) -> PretrainedConfig:
        """Configuration from `architecture` where given, else from the model's files."""
        if self.architecture is not None:
            if "model_type" not in self.architecture:
                raise InputError(
                    "model.architecture has no model_type: copy it from the model's config.json"
                )
            return AutoConfig.for_model(**self.architecture)
        return AutoConfig.from_pretrained(**self._arguments("config"))

    @as_input_errors("model.path cannot be loaded")
    def safetensors_files(self) -> dict[str, Path] | None:
        """The file of every tensor by name; None where the weights are no safetensors files."""
        if self.random_init or self.gguf_file is not None:
            return None
        arguments = self._arguments("weights")
        return safetensors_files(
            arguments["pretrained_model_name_or_path"],
            revision=self.revision,
            local_files_only=arguments["local_files_only"],
        )

    def weight_files(self) -> list[Path]:
        """All files of the weights; none where they are random."""
        if self.random_init:
            return []
        arguments = self._arguments("weights")
        return weight_files(
            arguments["pretrained_model_name_or_path"],
            gguf_file=self.gguf_file,
            revision=self.revision,
            local_files_only=arguments["local_files_only"],
        )

    @property
    def name(self) -> str:
        """For people: the path, and the file in it where that is named."""
        parts = (self.path.removeprefix(PACKAGE), self.gguf_file)
        return "/".join(part for part in parts if part)

    def fingerprint(self) -> str:
        """Name and a digest of the weights: a model trained anew under the same path is another."""
        digest = hashlib.blake2b(digest_size=8)
        if self.random_init:
            digest.update(repr((self.architecture, self.init_seed)).encode())
        for path in self.weight_files():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        return f"{self.name}@{digest.hexdigest()}"

    @as_input_errors("model.path cannot be loaded")
    def load_file_configs(self) -> tuple[PretrainedConfig, GenerationConfig | None]:
        """Configuration and, where there is one, generation settings that lie with the weights."""
        arguments = self._arguments("weights")
        config = AutoConfig.from_pretrained(**arguments)
        del arguments["trust_remote_code"]
        try:
            return config, GenerationConfig.from_pretrained(
                arguments.pop("pretrained_model_name_or_path"), **arguments
            )
        except OSError:
            return config, None  # transformers then derives them from the configuration

    def build_on_meta(self, config: PretrainedConfig | None = None) -> PreTrainedModel | PeftModel:
        """The model as it is trained, without memory: shapes, dtypes and names (meta device).

        Args:
            config: of the model; None is `load_config`.
        """
        with seeded(self.init_seed), torch.device("meta"):
            model = self._from_config(config or self.load_config(), self._base_dtype(trained=True))
            return self.adapt(model)

    def adapt(self, model: PreTrainedModel) -> PreTrainedModel | PeftModel:
        """Add to a plain model what this description asks for."""
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        adapted = model if self.lora is None else add_lora(model, self.lora, self.init_seed)
        if self.compile:
            for layer in decoder_layers(adapted):
                layer.compile()
        return adapted

    def _base_dtype(self, trained: bool) -> str:
        """Of the model's own weights, which with adapters are frozen."""
        return "float32" if trained and self.lora is None else self.dtype

    def _from_config(self, config: PretrainedConfig, dtype: str) -> PreTrainedModel:
        return AutoModelForCausalLM.from_config(
            config,
            dtype=(config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype),
            attn_implementation=plain_attention(self.attn_implementation),
            trust_remote_code=self.trust_remote_code,
        )

    def _dequantised(self, dtype: str) -> PreTrainedModel:
        """Load a GGUF file as ordinary weights.

        Transformers marks such a model as quantised and then refuses to save it, hence a second
        model from the same configuration without that mark.
        """
        loaded = AutoModelForCausalLM.from_pretrained(dtype=dtype, **self._arguments("weights"))
        config = copy.deepcopy(loaded.config)
        delattr(config, "quantization_config")
        model = self._from_config(config, dtype)
        model.load_state_dict(loaded.state_dict())
        model.generation_config = loaded.generation_config
        return model

    def _check_place(self) -> None:
        """Raise when weights (or with random weights, the config) cannot be had."""
        resolved = resolve_path(self.path)
        if self.random_init and self.architecture is not None:
            return
        check_files(
            resolved,
            "config" if self.random_init else "weights",
            gguf_file=self.gguf_file,
            revision=self.revision,
        )

    def _arguments(self, part: Literal["weights", "config", "tokenizer"]) -> dict[str, Any]:
        """Arguments of `from_pretrained`; what is on this machine is not asked of the hub again.

        Raises:
            InputError: the files are missing or the hub cannot be reached.
        """
        arguments: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if part == "tokenizer" and self.tokenizer_path is not None:
            local = check_files(self.tokenizer_path, part, field="model.tokenizer_path")
            return arguments | {
                "pretrained_model_name_or_path": self.tokenizer_path,
                "local_files_only": local,
            }
        resolved = resolve_path(self.path)
        if self.gguf_file is not None:
            arguments["gguf_file"] = self.gguf_file
        return arguments | {
            "pretrained_model_name_or_path": resolved,
            "revision": self.revision,
            "local_files_only": check_files(
                resolved, part, gguf_file=self.gguf_file, revision=self.revision
            ),
        }
