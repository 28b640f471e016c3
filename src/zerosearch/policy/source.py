"""Where a policy comes from: one description loads the model, its tokenizer, or only its shape.

Making a `PolicySource` costs nothing; `check` says in one sentence what is missing; `load_model`
and `load_tokenizer` do the work. Any Hugging Face causal LM, full or LoRA.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_gguf_available

from zerosearch.policy.logprobs import verify_logprobs
from zerosearch.policy.tokenizer import check_chat, prepare_tokenizer
from zerosearch.policy.weights import check_files, resolve_path

DTYPES = ("auto", "float32", "bfloat16", "float16")
# fields that decide the size of a model, compared when `architecture` and weights are both given
SIZE_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


@dataclass(kw_only=True, slots=True)
class PolicySource:
    """Description of a policy model. In YAML the node needs `_convert_: all`."""

    path: str  # folder, hub name, or folder inside `package`
    dtype: str = "float32"  # "auto" keeps the dtype of the files
    attn_implementation: str = "sdpa"
    chat: bool = False  # prompts go through the chat template
    lora: LoraConfig | None = None  # None: full training
    gradient_checkpointing: bool = False
    gguf_file: str | None = None  # de-quantised when loaded
    package: str | None = None  # installed package that ships the weights
    tokenizer_path: str | None = None  # where it is not beside the weights
    revision: str | None = None
    trust_remote_code: bool = False
    architecture: dict[str, Any] | None = None  # published config fields: size without network
    random_init: bool = False  # weights from `init_seed` instead of files: tests, benchmarks
    init_seed: int = 0  # of random weights and of LoRA matrices: the same on every rank

    def check(self) -> None:
        """Raise at once, in one sentence, what would make loading fail or train wrongly.

        Raises:
            ValueError: names the field, its value and the mend.
        """
        if self.dtype not in DTYPES:
            raise ValueError(f"model.dtype={self.dtype} is unknown: use one of {', '.join(DTYPES)}")
        if self.gguf_file is not None and not is_gguf_available():
            raise ValueError(
                f"model.gguf_file={self.gguf_file} needs the gguf package: `pip install gguf`"
            )
        if self.lora is not None:
            _check_lora(self.lora)
        self._check_place()
        if self.tokenizer_path is not None:
            check_files(self.tokenizer_path, "tokenizer", field="model.tokenizer_path")

    def load_model(self) -> PreTrainedModel | PeftModel:
        """Load the model on the CPU, in training mode, without dropout, adapted as asked.

        Returns:
            A causal LM, or with `lora` a PeftModel whose adapters alone are trainable.

        Raises:
            ValueError: see `check`; or the weights are not of `architecture`.
        """
        self.check()
        with _seeded(self.init_seed):
            if self.random_init:
                model = self._from_config(self.load_config())
            elif self.gguf_file is not None:
                model = self._dequantised()
            else:
                model = AutoModelForCausalLM.from_pretrained(
                    dtype=self.dtype,
                    attn_implementation=self.attn_implementation,
                    **self._arguments("weights"),
                )
        if self.architecture is not None:
            _check_architecture(self.architecture, model.config)
        switch_off_dropout(model)
        verify_logprobs(model)
        return self._adapt(model).train()

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer with pad token and BOS rule set (see `prepare_tokenizer`).

        Raises:
            ValueError: no tokenizer there, no EOS, no chat template although `chat`, or more
                token ids than the model has embeddings.
        """
        arguments = self._arguments("tokenizer")
        try:
            tokenizer = AutoTokenizer.from_pretrained(**arguments)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no tokenizer could be loaded from {arguments['pretrained_model_name_or_path']}: "
                f"set model.tokenizer_path to a folder or hub name that has one ({error})"
            ) from error
        if self.chat:
            check_chat(tokenizer)
        return prepare_tokenizer(tokenizer, self.load_config())

    def load_config(self) -> PretrainedConfig:
        """Configuration from `architecture` where given, else from the model's files."""
        if self.architecture is not None:
            if "model_type" not in self.architecture:
                raise ValueError(
                    "model.architecture has no model_type: copy it from the model's config.json"
                )
            return AutoConfig.for_model(**self.architecture)
        return AutoConfig.from_pretrained(**self._arguments("config"))

    def build_on_meta(self) -> nn.Module:
        """The model without memory: shapes, parameter counts and module names (meta device)."""
        with _seeded(self.init_seed), torch.device("meta"):
            return self._adapt(self._from_config(self.load_config()))

    def _from_config(self, config: PretrainedConfig) -> PreTrainedModel:
        dtype = None if self.dtype == "auto" else getattr(torch, self.dtype)
        return AutoModelForCausalLM.from_config(
            config,
            dtype=dtype or config.dtype or torch.float32,
            attn_implementation=self.attn_implementation,
            trust_remote_code=self.trust_remote_code,
        )

    def _dequantised(self) -> PreTrainedModel:
        """Load a GGUF file as ordinary weights.

        Transformers marks such a model as quantised and then refuses to save it, hence a second
        model from the same configuration without that mark.
        """
        loaded = AutoModelForCausalLM.from_pretrained(
            dtype=self.dtype, **self._arguments("weights")
        )
        config = copy.deepcopy(loaded.config)
        delattr(config, "quantization_config")
        model = self._from_config(config)
        model.load_state_dict(loaded.state_dict())
        model.generation_config = loaded.generation_config
        return model

    def _adapt(self, model: PreTrainedModel) -> PreTrainedModel | PeftModel:
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.lora is None:
            return model
        with _seeded(self.init_seed):
            adapted = get_peft_model(model, copy.deepcopy(self.lora))
        if model.config.get_text_config().tie_word_embeddings and any(
            isinstance(layer, BaseTunerLayer | ModulesToSaveWrapper)
            for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        ):
            raise ValueError(
                f"model.lora adapts the embeddings or the head, which are one tied matrix in "
                f"model.path={self.path} and could not be exported: leave them out of "
                "target_modules and modules_to_save"
            )
        return cast(PeftModel, adapted)

    def _check_place(self) -> None:
        """Raise when weights (or with random weights, the config) cannot be had."""
        resolved = resolve_path(self.path, self.package)
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
            ValueError: the files are missing or the hub cannot be reached.
        """
        arguments: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if part == "tokenizer" and self.tokenizer_path is not None:
            local = check_files(self.tokenizer_path, part, field="model.tokenizer_path")
            return arguments | {
                "pretrained_model_name_or_path": self.tokenizer_path,
                "local_files_only": local,
            }
        resolved = resolve_path(self.path, self.package)
        if self.gguf_file is not None:
            arguments["gguf_file"] = self.gguf_file
        return arguments | {
            "pretrained_model_name_or_path": resolved,
            "revision": self.revision,
            "local_files_only": check_files(
                resolved, part, gguf_file=self.gguf_file, revision=self.revision
            ),
        }


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout to zero: with it, the trained distribution is not the sampled one."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def _check_lora(lora: LoraConfig) -> None:
    """Refuse LoRA settings under which sampling, training and reference differ silently."""
    if lora.lora_dropout:
        raise ValueError(
            f"model.lora.lora_dropout={lora.lora_dropout} makes importance ratios noise: set it "
            "to 0"
        )
    if lora.bias != "none":
        raise ValueError(
            f"model.lora.bias={lora.bias} changes the reference policy, which is the model with "
            "adapters off: set it to none"
        )
    if lora.init_lora_weights not in (True, "gaussian", "orthogonal"):
        raise ValueError(
            f"model.lora.init_lora_weights={lora.init_lora_weights} does not start from the base "
            "model, so that adapters off would not be the initial policy: use true or gaussian"
        )


def _check_architecture(architecture: dict[str, Any], config: PretrainedConfig) -> None:
    for name in SIZE_FIELDS:
        loaded = getattr(config, name, None)
        if name in architecture and architecture[name] != loaded:
            raise ValueError(
                f"model.architecture.{name}={architecture[name]}, but the weights of model.path "
                f"have {loaded}: correct it, or set model.architecture=null"
            )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generator inside, and leave the caller's generator untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
