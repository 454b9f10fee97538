"""Small random models of several architectures, and the plain transformers way to encode with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from recsys_llm.text.loading import quiet_transformers

CORPUS = [
    "A cowboy doll is threatened by a new spaceman figure in a boy's room.",
    "Two siblings find a magical board game in a new house.",
    "White hanging heart t-light holder. Set of 7 babushka nesting boxes.",
    "The quick brown fox jumps over the lazy dog, again and again and again.",
    "déjà vu, naïve, 日本語, שלום, русский 😀",
]

Reference = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a small random model and returns its directory."""

    def make(kind: str = "bert", *, seed: int = 0, positions: int = 64, **settings: object) -> Path:
        directory = tmp_path_factory.mktemp(kind)
        byte_level = kind in ("roberta", "xlm-roberta", "mpnet")
        tokenizer = _byte_level_tokenizer() if byte_level else _wordpiece_tokenizer()
        torch.manual_seed(seed)
        with quiet_transformers():
            _model(kind, len(tokenizer), positions, settings).save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def tiny_bert(make_model: Callable[..., Path]) -> Path:
    """Directory of a small random BertModel; read it, don't write into it."""
    return make_model("bert")


@pytest.fixture(scope="session")
def reference() -> Reference:
    """Return the plain way to encode: transformers, one text at a time, eager attention."""

    def encode(
        directory: Path, texts: Sequence[str], *, pooling: str = "mean", normalize: bool = True, max_tokens: int = 256
    ) -> np.ndarray:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(directory))
            model = AutoModel.from_pretrained(str(directory), attn_implementation="eager").float().eval()
            vectors = []
            for text in texts:
                inputs = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
                with torch.inference_mode():
                    hidden = model(**inputs).last_hidden_state[0]
                vector = hidden[0] if pooling == "cls" else hidden.mean(dim=0)
                vectors.append((vector / vector.norm() if normalize else vector).numpy())
        return np.stack(vectors)

    return encode


def _model(kind: str, vocabulary: int, positions: int, settings: dict[str, object]) -> torch.nn.Module:
    sizes = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": positions, "initializer_range": 0.3, **settings}
    byte_level = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    if kind == "distilbert":
        names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
        names |= {"intermediate_size": "hidden_dim"}
        return DistilBertModel(DistilBertConfig(**{names.get(name, name): value for name, value in sizes.items()}))
    if kind == "bert":
        return BertModel(BertConfig(**sizes))
    if kind == "electra":
        return ElectraModel(ElectraConfig(**sizes, embedding_size=32))
    if kind == "roberta":
        return RobertaModel(RobertaConfig(**sizes, **byte_level))
    if kind == "xlm-roberta":
        return XLMRobertaModel(XLMRobertaConfig(**sizes, **byte_level))
    return MPNetModel(MPNetConfig(**sizes, **byte_level))


def _wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    # WordPieceTrainer breaks ties in hash order: every process would have another tokenizer, and other weights in use.
    words = sorted({word for text in CORPUS for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))})
    letters = sorted(set("".join(words)))
    parts = {("##" if at else "") + word[at : at + 2] for word in words for at in range(len(word) - 1)}
    tokens = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *sorted(parts), *words])
    tokenizer = Tokenizer(models.WordPiece({token: place for place, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _byte_level_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        mask_token="<mask>",
    )
