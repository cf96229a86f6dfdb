"""What a model is trained for: classes of texts, labels of words, or the next token.

Whoever trains or evaluates calls `losses` and `correct`, and needs to know no more of a task. The
encoder is frozen, dropout is off and attention is eager, heads start at zero: local training is
deterministic, and `torch.func.vmap` can run over it.

Symbols: n texts, L tokens, d width of the encoder, K classes or tokens of the vocabulary.
"""

import math
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_integration.attention import MaskForm, looks_ahead, mask_form, shaped
from fl_integration.encoding import IGNORED


class TextModel(nn.Module):
    """A frozen encoder, maybe a head of its own, and the losses of a task.

    **Guarantees**: the encoder is frozen and in evaluation mode without dropout; padding does not
    change the outputs at real tokens; a head is fp32 and starts at zero.

    Args:
        encoder: a model of transformers. head: what follows it, None where it has its own.
        pad_id: the id that fills up shorter rows.
    """

    head: nn.Linear | None

    def __init__(self, encoder: nn.Module, *, head: nn.Linear | None, pad_id: int = 0) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.encoder = encoder.requires_grad_(False)
        for module in encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.head = head
        self.eval()
        self.mask_form: MaskForm = mask_form(encoder)

    def losses(self, input_ids: Tensor, attention_mask: Tensor, targets: Tensor) -> Tensor:
        """Return each text's mean loss (n,) over its targets, see `text_losses`."""
        return text_losses(self(input_ids, attention_mask), targets)

    def correct(
        self, input_ids: Tensor, attention_mask: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return how many targets of each text were hit (n,), and how many there are (n,)."""
        return text_hits(self(input_ids, attention_mask), targets)

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return next(self.encoder.parameters()).device

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the head; the encoder stays in evaluation mode, without dropout."""
        super().train(mode)
        self.encoder.eval()
        return self

    def outputs(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return what the encoder says of every token, (n, L, ·), never in less than fp32."""
        mask = shaped(attention_mask, cast(Any, self.encoder).dtype, self.mask_form)
        output: Tensor = self.encoder(input_ids, attention_mask=mask)[0]
        return output.to(torch.promote_types(output.dtype, torch.float32))

    def states(self, input_ids: Tensor, attention_mask: Tensor, *, last: int) -> list[Tensor]:
        """Return the states (n, L, d) after each of the last layers, never in less than fp32."""
        if last == 1:
            return [self.outputs(input_ids, attention_mask)]
        mask = shaped(attention_mask, cast(Any, self.encoder).dtype, self.mask_form)
        output = self.encoder(input_ids, attention_mask=mask, output_hidden_states=True)
        layers: tuple[Tensor, ...] = output.hidden_states[-last:]
        return [states.to(torch.promote_types(states.dtype, torch.float32)) for states in layers]


class Classifier(TextModel):
    """Classify texts: encoder, masked mean of the states, L2 normalisation, linear head.

    **Guarantees**: those of `TextModel`; logits (n, K) start at zero.

    Args:
        encoder: a model of transformers whose output has `last_hidden_state` (n, L, d).
        labels: K >= 2. pad_id: the id that fills up shorter rows. pooled: how many of the last
            layers the head sees, side by side: what a sentence encoder was trained for is in the
            last, other properties of a text often in those before.
    Raises:
        ValueError: fewer than 2 labels, or no layers.
    """

    head: nn.Linear  # pyright: ignore[reportIncompatibleVariableOverride]  # always there

    def __init__(
        self, encoder: nn.Module, *, labels: int, pad_id: int = 0, pooled: int = 1
    ) -> None:
        depth = int(cast(Any, encoder).config.num_hidden_layers)
        if not 1 <= pooled <= depth:
            raise ValueError(f"Expected pooled={pooled} in 1..{depth}, the encoder's layers.")
        super().__init__(encoder, head=_zero_head(encoder, labels, times=pooled), pad_id=pad_id)
        self.pooled = pooled

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits (n, K) of token ids (n, L), where the mask (n, L) is 1."""
        return self.head(self.pool(input_ids, attention_mask).to(self.head.weight.dtype))

    def pool(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the L2-normalised mean states (n, pooled·d) of the tokens that the mask keeps."""
        layers = self.states(input_ids, attention_mask, last=self.pooled)
        kept = attention_mask.unsqueeze(-1).to(layers[0].dtype)
        # the mean and the sum have one direction
        means = [functional.normalize((states * kept).sum(-2), dim=-1) for states in layers]
        return torch.cat(means, dim=-1) / math.sqrt(self.pooled)


class TokenClassifier(TextModel):
    """Label every token: encoder, L2 normalisation of each state, linear head.

    **Guarantees**: those of `TextModel`; logits (n, L, K) start at zero.

    Args:
        encoder: a model of transformers whose output has `last_hidden_state` (n, L, d).
        labels: K >= 2. pad_id: the id that fills up shorter rows.
    Raises:
        ValueError: fewer than 2 labels.
    """

    head: nn.Linear  # pyright: ignore[reportIncompatibleVariableOverride]  # always there

    def __init__(self, encoder: nn.Module, *, labels: int, pad_id: int = 0) -> None:
        super().__init__(encoder, head=_zero_head(encoder, labels), pad_id=pad_id)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits (n, L, K) of token ids (n, L), where the mask (n, L) is 1."""
        states = functional.normalize(self.outputs(input_ids, attention_mask), dim=-1)
        return self.head(states.to(self.head.weight.dtype))


class LanguageModel(TextModel):
    """Predict the next token with the frozen output layer of a causal language model.

    **Guarantees**: those of `TextModel`; no prediction sees what it predicts.

    Args:
        encoder: a causal language model of transformers, whose output has `logits` (n, L, K).
        pad_id: the id that fills up shorter rows.
    Raises:
        ValueError: the model looks ahead.
    """

    def __init__(self, encoder: nn.Module, *, pad_id: int = 0) -> None:
        cast(Any, encoder).config.use_cache = False  # nothing is generated
        super().__init__(encoder, head=None, pad_id=pad_id)
        if looks_ahead(encoder):
            raise ValueError(
                f"Expected a causal language model, got {type(encoder).__name__}, which sees the "
                "tokens that it should predict."
            )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits (n, L, K) of the token after each one, for token ids (n, L)."""
        return self.outputs(input_ids, attention_mask)


def text_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy (n,) of each text over its targets; 0 where it has none.

    Args:
        logits: (n, K) of whole texts, or (n, L, K) of tokens.
        targets: int64 (n,) or (n, at least L); `IGNORED` is no target.
    """
    logits, targets = _by_token(logits, targets)
    each = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    counts = targets.ne(IGNORED).sum(-1)
    return each.reshape(targets.shape).sum(-1) / counts.clamp(min=1)


def text_hits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return hits and targets (n,) of each text; logits that are not finite hit nothing.

    Args:
        logits, targets: as of `text_losses`.
    """
    logits, targets = _by_token(logits, targets)
    hits = logits.isfinite().all(-1) & (logits.argmax(-1) == targets)  # IGNORED is no class
    return hits.sum(-1), targets.ne(IGNORED).sum(-1)


def _by_token(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """View a whole text as one token; cut targets to the length of the batch."""
    if logits.ndim == 2:
        return logits.unsqueeze(1), targets.unsqueeze(1)
    return logits, targets[:, : logits.shape[1]]


def _zero_head(encoder: nn.Module, labels: int, *, times: int = 1) -> nn.Linear:
    """A linear layer that starts at zero, from some times the width of an encoder."""
    if labels < 2:
        raise ValueError(f"Expected labels={labels} >= 2.")
    width = times * int(cast(Any, encoder).config.hidden_size)
    # not drawn: a linear layer's own start would advance the global generator
    head = cast(nn.Linear, nn.utils.skip_init(nn.Linear, width, labels))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
