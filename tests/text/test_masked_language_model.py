"""The head computes what transformers' own masked language models do, and only where words are hidden."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from recsys_llm.errors import ModelError
from recsys_llm.text.loading import load_backbone, load_tokenizer, quiet_transformers
from recsys_llm.text.masked_language_model import MaskedLanguageModel, held_out_loss, make_batch, vocabulary_of
from recsys_llm.text.masked_word_head import MaskedWordHead, load_head, word_embeddings
from recsys_llm.text.model_files import resolve_model
from recsys_llm.text.training_texts import TokenTexts
from tests.models import CORPUS

CPU = torch.device("cpu")
KINDS = ["bert", "distilbert", "roberta", "xlm-roberta", "mpnet", "electra"]


def opened(directory):
    """Return model, texts and a function from rows to a batch with the same masks every time."""
    files = resolve_model(directory)
    backbone, tokenizer = load_backbone(files, device=CPU), load_tokenizer(files)
    head, is_stored = load_head(files, backbone)
    texts, _ = TokenTexts.read(tokenizer.backend_tokenizer, CORPUS, max_tokens=32)
    vocabulary = vocabulary_of(tokenizer, name="model")

    def batch(*rows: int):
        rng = np.random.default_rng(0)
        return make_batch(texts, np.array(rows), vocabulary, rng, pad=tokenizer.pad_token_id, device=CPU)

    return MaskedLanguageModel(backbone, head).eval(), is_stored, batch


def with_stored_head(directory, target, kind):
    """Save the model of ``directory`` as transformers' masked language model, with a random head."""
    torch.manual_seed(1)
    with quiet_transformers():
        whole = AutoModelForMaskedLM.from_pretrained(directory)
        for name, parameter in whole.named_parameters():
            if "embeddings" not in name:
                torch.nn.init.normal_(parameter, std=0.3)
        whole.save_pretrained(target)
        load_tokenizer(resolve_model(directory)).save_pretrained(target)
    return whole.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_head_gives_transformers_logits(make_model, tmp_path, kind):
    whole = with_stored_head(make_model(kind), tmp_path, kind)
    model, is_stored, batch = opened(tmp_path)
    found = batch(0, 1, 2)
    assert is_stored
    assert found.attention is not None
    with torch.inference_mode():
        expected = whole(input_ids=found.ids, attention_mask=found.attention).logits.flatten(0, 1)[found.places]
        torch.testing.assert_close(model(found), expected, atol=2e-4, rtol=1e-4)


def test_scores_at_hidden_places_are_those_of_the_full_computation(tiny_bert):
    model, is_stored, batch = opened(tiny_bert)
    found = batch(0, 2)
    assert not is_stored
    asked = []
    model.head.register_forward_hook(lambda module, inputs, output: asked.append(output.shape))
    with torch.inference_mode():
        scores = model(found)
        hidden = model.backbone(input_ids=found.ids, attention_mask=found.attention)[0]
        full = model.head(hidden, word_embeddings(model.backbone).weight).flatten(0, 1)
    assert asked[0] == (len(found.targets), len(model.head.bias))
    assert len(found.targets) < found.ids.numel() / 4
    torch.testing.assert_close(scores, full[found.places])


def test_a_batch_is_the_masked_texts_padded_on_the_right(tiny_bert):
    model, _, batch = opened(tiny_bert)
    found = batch(0, 1)
    pad = found.ids == 0
    assert torch.equal(found.attention == 0, pad)
    assert (pad.int().diff(dim=1) >= 0).all()
    assert found.tokens == int(found.attention.sum())
    assert not torch.isin(found.targets, torch.tensor([0, 2, 3, 4])).any()
    assert not pad.flatten()[found.places].any()
    assert batch(1).attention is None


def test_padding_changes_no_loss(tiny_bert):
    model, _, batch = opened(tiny_bert)
    short = batch(1)
    width = short.ids.shape[1]
    ids = torch.nn.functional.pad(short.ids, (0, 5))
    attention = torch.nn.functional.pad(torch.ones_like(short.ids), (0, 5))
    wide = type(short)(ids, attention, short.places, short.targets, short.tokens)
    assert width < ids.shape[1]
    assert held_out_loss(model, [wide]) == pytest.approx(held_out_loss(model, [short]), rel=1e-5)


def test_a_head_of_another_size_is_not_taken(make_model, tmp_path):
    with_stored_head(make_model("bert"), tmp_path, "bert")
    files = resolve_model(tmp_path)
    backbone = load_backbone(files, device=CPU)
    backbone.set_input_embeddings(torch.nn.Embedding(300, 32))
    head, is_stored = load_head(files, backbone)
    assert not is_stored
    assert len(head.bias) == 300


def test_a_fresh_head_passes_states_on():
    words = torch.nn.Embedding(7, 4)
    head = MaskedWordHead(4, words)
    states = torch.eye(4) * 9.0
    expected = torch.nn.functional.layer_norm(torch.nn.functional.gelu(states), (4,)) @ words.weight.T
    torch.testing.assert_close(head(states, words.weight), expected)


def test_a_tokenizer_without_a_mask_token_is_refused(tiny_bert):
    tokenizer = load_tokenizer(resolve_model(tiny_bert))
    tokenizer.mask_token = None
    with pytest.raises(ModelError, match="has no mask token"):
        vocabulary_of(tokenizer, name="model")


def test_texts_of_one_word_are_left_out_and_rows_are_taken_in_order(tiny_bert):
    backend = load_tokenizer(resolve_model(tiny_bert)).backend_tokenizer
    texts, kept = TokenTexts.read(backend, ["A fox jumps", "fox", "", "fox!", "the " * 40], max_tokens=12)
    assert kept.tolist() == [0, 3, 4]
    assert texts.lengths.tolist()[-1] == 12
    ids, words, lengths = texts.take(np.array([2, 0]))
    assert lengths.tolist() == [12, int(texts.lengths[0])]
    np.testing.assert_array_equal(ids[12:], texts.subset(np.array([0])).ids)
    assert words[:3].tolist() == [-1, 0, 1]
