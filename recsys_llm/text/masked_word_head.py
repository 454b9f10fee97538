"""From a hidden state at a hidden place to a score for each word of the vocabulary.

Devlin et al. 2019, BERT, section 3.1. All of the BERT family compute the same: a dense layer, an activation, a layer
norm, and a product with the word embeddings, which are the encoder's own (tied), plus a bias. Only the names differ.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from recsys_llm.errors import ModelError
from recsys_llm.text.model_files import ModelFiles

_NAMES = (
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
    ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),
)
"""Dense layer, layer norm and bias in the checkpoints of BERT, DistilBERT, RoBERTa and MPNet, ELECTRA's generator."""


class MaskedWordHead(nn.Module):
    """Scores of all words at some places.

    Parameters
    ----------
    hidden
        Width of the encoder's hidden states.
    words
        The encoder's word embeddings. They stay the encoder's: the head has no parameter of that size.
    activation
        As the encoder's config.json names it.
    eps
        Of the layer norm.
    """

    def __init__(self, hidden: int, words: nn.Embedding, *, activation: str = "gelu", eps: float = 1e-12) -> None:
        from transformers.activations import ACT2FN

        super().__init__()
        self.dense = nn.Linear(hidden, words.embedding_dim)
        self.norm = nn.LayerNorm(words.embedding_dim, eps)
        self.bias = nn.Parameter(torch.zeros(words.num_embeddings))
        self._activation = ACT2FN[activation]
        nn.init.eye_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """Return the logits (M, V) of hidden states (M, H), given the word embeddings (V, E)."""
        transformed = self.norm(self._activation(self.dense(hidden)))
        return functional.linear(transformed, words, self.bias)


def word_embeddings(backbone: nn.Module) -> nn.Embedding:
    """Return a transformers encoder's word embeddings.

    Raises
    ------
    ModelError
        It has none of the usual kind.
    """
    found = cast(Any, backbone).get_input_embeddings()
    if not isinstance(found, nn.Embedding):
        raise ModelError(f"{type(backbone).__name__}: expected an embedding per word, found {type(found).__name__}")
    return found


def load_head(files: ModelFiles, backbone: nn.Module) -> tuple[MaskedWordHead, bool]:
    """Return the head of a checkpoint, and True; where it has none (sentence encoders), a fresh one, and False.

    A fresh head passes hidden states on almost as they are: its dense layer starts as the identity.
    """
    config: Any = backbone.config
    words = word_embeddings(backbone)
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation", "gelu")
    head = MaskedWordHead(
        int(getattr(config, "hidden_size", words.embedding_dim)),
        words,
        activation=str(activation),
        eps=float(getattr(config, "layer_norm_eps", 1e-12)),
    )
    stored = _stored_head(files) if getattr(config, "tie_word_embeddings", True) else None
    fits = stored is not None and all(stored[name].shape == value.shape for name, value in head.state_dict().items())
    if stored is not None and fits:
        head.load_state_dict(stored)
    return head.to(words.weight.device), fits


def _stored_head(files: ModelFiles) -> dict[str, Tensor] | None:
    for dense, norm, bias in _NAMES:
        found = {
            "dense.weight": _tensor(files, f"{dense}.weight"),
            "dense.bias": _tensor(files, f"{dense}.bias"),
            "norm.weight": _tensor(files, f"{norm}.weight", f"{norm}.gamma"),
            "norm.bias": _tensor(files, f"{norm}.bias", f"{norm}.beta"),
            "bias": _tensor(files, bias),
        }
        whole = {name: tensor.float() for name, tensor in found.items() if tensor is not None}
        if len(whole) == len(found):
            return whole
    return None


def _tensor(files: ModelFiles, *names: str) -> Tensor | None:
    for path in files.weights:
        with safe_open(path, framework="pt") as stored:
            for name in names:
                if name in stored.keys():  # noqa: SIM118  (no mapping)
                    found: Tensor = stored.get_tensor(name)
                    return found
    return None
