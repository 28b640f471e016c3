"""Tiny random policies and byte-level tokenizers, made in milliseconds without any download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CHAT_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
VOCABULARY = 256 + 3  # bytes, then EOS, BOS, PAD

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "bos_token_id": 257,
    "eos_token_id": 256,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}


def make_tokenizer(
    *, pad: bool = True, bos: bool = False, eos: bool = True, chat_template: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte (ids 0-255), EOS 256, BOS 257, PAD 258.

    Args:
        pad: False leaves the pad token unset.
        bos: True sets the BOS and puts it before plain text, as Llama tokenizers do.
        eos: False leaves the EOS token unset.
        chat_template: True gives it `CHAT_TEMPLATE`, which writes the BOS where there is one.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([EOS, BOS, PAD])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS if eos else None,
        bos_token=BOS if bos else None,
        pad_token=PAD if pad else None,
    )
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(seed: int = 0, *, scale: float = 1.0, **fields: Any) -> PreTrainedModel:
    """A random causal LM, by default a Llama of 2 layers and width 64, in training mode.

    Args:
        seed: of the weights; the caller's generator is untouched.
        scale: multiplies all matrices, for distributions further from uniform.
        fields: config fields over `LLAMA`, `model_type` among them.
    """
    config = AutoConfig.for_model(**(LLAMA | fields))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return model.train()


def save_policy_folder(folder: Path, *, seed: int = 0, **tokenizer: bool) -> Path:
    """Write a tiny policy (weights and tokenizer) as `from_pretrained` expects it.

    Args:
        folder: made where it is missing.
        seed: of the weights.
        tokenizer: arguments of `make_tokenizer`.
    """
    make_model(seed).save_pretrained(folder)
    make_tokenizer(**tokenizer).save_pretrained(folder)
    return folder


def write_gguf(model: nn.Module, file: Path) -> None:
    """Write a tiny Llama in the GGUF format, with the row order of its q and k matrices."""
    import gguf  # pyright: ignore[reportMissingImports]

    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(259)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{index}" for index in range(259)])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in model.state_dict().items():
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads is not None:
            tensor = tensor.view(heads, 2, 8, 64).transpose(1, 2).reshape(heads * 16, 64)
        base = names.get_name(name.removesuffix(".weight"))
        writer.add_tensor(f"{base}.weight", tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
