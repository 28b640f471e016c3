"""The frozen policy that the KL term pulls towards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn

from zerosearch.policy.logprobs import TokenStats, token_logprobs
from zerosearch.policy.sharding import local_tensor, named_tensors, reshard


class ReferencePolicy(nn.Module):
    """The policy as it was at the start of training.

    Full training: a frozen copy. Its weights are in the `state_dict` of the module that owns it, so
    that a resumed run has the same reference even where the policy's files have changed. LoRA: the
    policy itself with its adapters off, at no memory, with nothing in the `state_dict`.
    """

    def __init__(self, copied: nn.Module | None, shared: PeftModel | None) -> None:
        super().__init__()
        assert (copied is None) != (shared is None)
        self.model = copied
        # in a tuple, so that the policy is not registered (and saved) a second time
        self._shared = (shared,)
        self.eval()

    @classmethod
    def from_policy(cls, model: nn.Module) -> ReferencePolicy:
        """Freeze `model` as it is now; call before it is sharded or trained.

        Args:
            model: causal LM (copied) or PeftModel (shared).
        """
        if isinstance(model, PeftModel):
            return cls(copied=None, shared=model)
        return cls(copied=copy.deepcopy(model).requires_grad_(False), shared=None)

    @torch.no_grad()
    def reset(self, model: nn.Module) -> None:
        """Take over the present weights of the policy that this is a copy of.

        Args:
            model: sharded as at first; not a PeftModel, whose reference has no weights of its own.
        """
        assert self.model is not None
        reshard(model)
        for (name, target), (own, value) in zip(
            named_tensors(self.model), named_tensors(model), strict=True
        ):
            assert name == own
            local_tensor(target).copy_(local_tensor(value))

    def train(self, mode: bool = True) -> ReferencePolicy:
        """Stay in evaluation mode whatever the owner's mode is."""
        return super().train(False)

    @torch.no_grad()
    def token_logprobs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        select_mask: Tensor,
        *,
        temperature: float = 1.0,
        chunk_tokens: int = 1024,
        packed: bool = False,
    ) -> TokenStats:
        """Log-probs under the reference, without gradient; entropy is left at 0.

        Args and errors as in `zerosearch.policy.logprobs.token_logprobs`. With LoRA no other use
        of the policy may run at the same time, because its adapters are off meanwhile.
        """
        with self._frozen() as model:
            return token_logprobs(
                model,
                input_ids,
                attention_mask,
                select_mask,
                temperature=temperature,
                chunk_tokens=chunk_tokens,
                with_entropy=False,
                packed=packed,
            )

    @contextmanager
    def _frozen(self) -> Iterator[nn.Module]:
        shared = self._shared[0]
        if shared is None:
            assert self.model is not None
            yield self.model
            return
        # PEFT switches `requires_grad` off and on again: of shards both times, not of shards here
        # and of gathered weights there, or adapters would no longer count as trained
        reshard(shared)
        with shared.disable_adapter():
            yield shared
            reshard(shared)
