"""The frozen policy that the KL term pulls towards."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from zerosearch.core.errors import InputError
from zerosearch.policy.logprobs import TokenStats, token_logprobs
from zerosearch.policy.sharding import local_tensor, named_tensors, reshard
from zerosearch.policy.weight_digest import weight_digest


class ReferencePolicy(nn.Module):
    """The policy as it was at the start of training.

    Full training: a frozen copy. A resumed run makes it anew from the policy's files, so that its
    weights are in the `state_dict` of the module that owns it only once it has `moved`. LoRA: the
    policy itself with its adapters off, at no memory, with nothing in the `state_dict`.
    """

    def __init__(
        self, copied: nn.Module | None, shared: PeftModel | None, origin: str | None = None
    ) -> None:
        super().__init__()
        assert (copied is None) != (shared is None)
        self.model = copied
        # in a tuple, so that the policy is not registered (and saved) a second time
        self._shared = (shared,)
        self.origin = origin  # digest of the weights that were copied
        self.moved = False  # whether these may be others by now; whatever changes them says so
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_keep_own)
        self.eval()

    @classmethod
    def from_policy(cls, model: nn.Module, twin: nn.Module | None = None) -> ReferencePolicy:
        """Freeze `model` as it is now; call before it is trained. A collective where it is sharded.

        Args:
            model: causal LM (copied) or PeftModel (shared).
            twin: a frozen model without values, sharded as `model` is, that takes the copy; None
                makes one.
        """
        if isinstance(model, PeftModel):
            return cls(copied=None, shared=model)
        origin = weight_digest(model)
        if twin is None:
            return cls(copy.deepcopy(model).requires_grad_(False), None, origin)
        reference = cls(twin, None, origin)
        reference.reset(model)
        reference.moved = False
        return reference

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
        self.moved = True

    @property
    def left_out(self) -> str | None:
        """Digest of the weights that a checkpoint does not hold, to be stored in their place."""
        return None if self.moved else self.origin

    def check_origin(self, saved: str | None, name: str) -> None:
        """Refuse to go on with another reference than that of the checkpoint's run.

        Args:
            saved: `left_out` of that run; None: it had no reference, or the checkpoint holds it.
            name: of the policy's files, for people.

        Raises:
            InputError: the policy's files are others than they were.
        """
        if saved == self.left_out:
            return
        if saved is None:
            raise InputError(
                "resume: this run has a reference policy (algorithm.kl_coefficient is not 0), that "
                "of the checkpoint had none: resume with the algorithm settings of its run"
            )
        raise InputError(
            f"resume: the reference policy is the model that the run started from, whose weights "
            f"had the fingerprint {saved}, but model.path={name} now gives {self.origin}: set "
            "model.path, model.revision, model.gguf_file and model.init_seed to what they were, "
            "put the files back, or start a new run from the run's exported policy"
        )

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


def expect_reference(owner: nn.Module, saved: Collection[str]) -> None:
    """Let a reference policy be restored where a checkpoint holds it; before names are compared.

    Args:
        owner: the module that is restored.
        saved: names of the tensors in the checkpoint.
    """
    for name, module in owner.named_modules():
        if isinstance(module, ReferencePolicy):
            module.moved = any(each.startswith(f"{name}.") for each in saved)


def _leave_out(reference: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Hook of `state_dict`: weights that the policy's files give are in no checkpoint."""
    assert isinstance(reference, ReferencePolicy)
    if not reference.moved:
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]


def _keep_own(reference: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Hook of `load_state_dict`: what was left out stays, and is not missing."""
    assert isinstance(reference, ReferencePolicy)
    if reference.model is not None and not reference.moved:
        state.update(reference.model.state_dict(prefix=f"{prefix}model.", keep_vars=True))
