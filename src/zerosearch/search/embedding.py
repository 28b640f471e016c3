"""Sentence vectors of e5 models: mean over the tokens, scaled to length one (arXiv 2212.03533)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from zerosearch.core.devices import numbered_device, take_device
from zerosearch.core.errors import InputError
from zerosearch.core.hub import check_files, show_downloads_alone

# What e5 was trained with (section 4.3 of its paper): without them it finds noticeably less.
QUERY_PREFIX = "query: "
PASSAGE_PREFIX = "passage: "
PARTS: tuple[Literal["weights", "tokenizer"], ...] = ("weights", "tokenizer")


class E5Encoder:
    """Turns texts into vectors whose inner product says how well they match.

    Args:
        model: hub name or folder of an encoder in the form of transformers, with its tokenizer.
        batch_size: texts of one forward pass.
        max_tokens: longer texts are cut; 512 is what e5 can read.

    Raises:
        InputError: an argument is out of range, or the model cannot be loaded.
    """

    def __init__(self, model: str, *, batch_size: int = 64, max_tokens: int = 512) -> None:
        for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
            if value < 1:
                raise InputError(f"{name}={value}: give 1 or more")
        self._batch_size = batch_size
        self._max_tokens = max_tokens
        whole = [check_files(model, part, field="search.engine.model") for part in PARTS]
        show_downloads_alone()
        # What is on this machine is not asked of the hub; nor are people whether code may be run.
        where = {"local_files_only": all(whole), "trust_remote_code": False}
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(model, **where)
            encoder = transformers.AutoModel.from_pretrained(model, dtype=torch.float32, **where)
        except (OSError, ValueError) as error:
            raise InputError(
                f"model={model!r} cannot be loaded as an encoder ({str(error).strip()}); give a "
                "folder or hub name such as intfloat/e5-base-v2"
            ) from error
        self.fingerprint = self._fingerprint(encoder)
        self._device = numbered_device("auto")
        # Half precision on a GPU moves a score by about 1e-3 and encodes several times as fast.
        dtype = torch.float16 if self._device.type == "cuda" else torch.float32
        self._model = encoder.eval().to(device=self._device, dtype=dtype)

    @property
    def dimension(self) -> int:
        """Components of a vector."""
        return self._model.config.hidden_size

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """Vectors [N, D], float32, of length one."""
        return self._encode([QUERY_PREFIX + query for query in queries])

    def encode_passages(self, passages: Sequence[str]) -> np.ndarray:
        """Vectors [N, D], float32, of length one."""
        return self._encode([PASSAGE_PREFIX + passage for passage in passages])

    def _encode(self, texts: list[str]) -> np.ndarray:
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for places in self._batches(texts):
            vectors[places] = self._forward([texts[place] for place in places])
        return vectors

    def _batches(self, texts: list[str]) -> Iterator[list[int]]:
        """Places of texts of about the same length, so that little of a batch is padding."""
        by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(texts), self._batch_size):
            yield by_length[start : start + self._batch_size]

    @torch.inference_mode()
    def _forward(self, texts: list[str]) -> np.ndarray:
        take_device(self._device)
        inputs = self._tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self._max_tokens,
            split_special_tokens=True,  # a document's "[SEP]" is text
            return_tensors="pt",
        ).to(self._device)
        hidden = self._model(**inputs).last_hidden_state.float()  # (N, T, D)
        mask = inputs["attention_mask"].unsqueeze(-1)  # (N, T, 1)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()

    def _fingerprint(self, encoder: PreTrainedModel) -> str:
        """Hex digest [32] of all that a vector depends on, whatever the files are called."""
        digest = hashlib.blake2b(digest_size=16)
        config = encoder.config.to_dict()
        for name in ("_name_or_path", "transformers_version", "dtype"):
            config.pop(name, None)
        settings = [QUERY_PREFIX, PASSAGE_PREFIX, self._max_tokens, config]
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        digest.update(self._tokenizer.backend_tokenizer.to_str().encode())
        for name, weight in encoder.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.contiguous().numpy().tobytes())
        return digest.hexdigest()
