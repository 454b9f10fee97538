"""What every discriminator must hold to, and what each is."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_llm.seqgan import SeqGANConfig
from recsys_llm.seqgan.cnn_discriminator import CNNDiscriminator
from recsys_llm.seqgan.density_ratio import DensityRatioDiscriminator
from recsys_llm.seqgan.discriminator import RecentGroups
from recsys_llm.seqgan.discriminators import AnyDiscriminator, make_discriminator
from recsys_llm.seqgan.generator import Generator
from tests.seqgan.test_estimators import log_probs, opening

ITEMS = torch.tensor([[0, 1, 2], [3, 3, 0], [2, 0, 1]])
LENGTHS = torch.tensor([3, 1, 2])
GROUPS = RecentGroups(
    torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 3, 4]), torch.tensor([1, 2, 3]), (3, 2)
)  # the first history: item 0; the second: items 1 and 2 in one step, then item 3; the third: none


class ThreeHistories:
    """Three short histories, which policies read from the start."""

    def recent_groups(self) -> RecentGroups:
        return GROUPS

    def read_by(self, policy: Generator) -> tuple[Tensor, Tensor]:
        position = opening(policy, 3)
        return position.first, position.states


@pytest.fixture(params=["gru", "cnn", "density_ratio"])
def discriminator(request: pytest.FixtureRequest, toy: Generator) -> AnyDiscriminator:
    config = SeqGANConfig(
        embedding_dim=3,
        hidden_dim=4,
        discriminator=request.param,
        discriminator_dim=8,
        discriminator_dropout=0.5,
        horizon=3,
        density_ratio_dim=6,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        phi = Generator(toy.counts, None, embedding_dim=3, hidden_dim=6).double()
        return make_discriminator(config, toy, phi).double()


def logit(discriminator: AnyDiscriminator, items: Tensor = ITEMS, lengths: Tensor = LENGTHS) -> Tensor:
    with torch.no_grad():
        return discriminator.eval()(discriminator.read(ThreeHistories()), items, lengths)


def test_one_logit_for_each_continuation(discriminator: AnyDiscriminator) -> None:
    assert logit(discriminator).shape == (3,)


def test_items_past_a_length_do_not_count(discriminator: AnyDiscriminator) -> None:
    changed = ITEMS.clone()
    changed[1, 1:], changed[2, 2] = 1, 3
    assert not torch.equal(changed, ITEMS)
    torch.testing.assert_close(logit(discriminator, changed), logit(discriminator))
    torch.testing.assert_close(logit(discriminator, ITEMS[:, :2], LENGTHS.clamp_max(2))[1:], logit(discriminator)[1:])


def test_every_item_within_a_length_counts(discriminator: AnyDiscriminator) -> None:
    for row, length in enumerate(LENGTHS):
        for place in range(length):
            changed = ITEMS.clone()
            changed[row, place] = (changed[row, place] + 1) % 4
            different = logit(discriminator, changed) != logit(discriminator)
            assert different.tolist() == [other == row for other in range(3)], (row, place)


def test_gradient_steps_tell_real_from_generated(discriminator: AnyDiscriminator) -> None:
    real, fake = torch.tensor([[0, 1, 2]] * 3), torch.tensor([[2, 1, 0]] * 3)
    optimiser = torch.optim.Adam(discriminator.parameters(), lr=0.02)
    truth = torch.tensor([1.0] * 3 + [0.0] * 3, dtype=torch.float64)
    for _ in range(60):
        discriminator.train()
        history = discriminator.read(ThreeHistories()).repeat(2, 1)
        scores = discriminator(history, torch.cat([real, fake]), torch.full((6,), 3))
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(scores, truth).backward()
        optimiser.step()
    full = torch.full((3,), 3)
    assert bool((logit(discriminator, real, full) > 0).all()) and bool((logit(discriminator, fake, full) < 0).all())


def test_the_cnn_is_the_papers() -> None:
    cnn = CNNDiscriminator(4, None, dim=64, length=20, context=0, dropout=0.25)
    found = [(layer.kernel_size[0], layer.out_channels) for layer in cnn.convolutions]
    windows = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20]
    assert found == list(
        zip(windows, [100, 200, 200, 200, 200, 100, 100, 100, 100, 100, 160, 160], strict=True)
    )  # appendix C
    assert cnn.head.in_features == 1720


def test_cnn_windows_see_the_seam_of_history_and_continuation() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cnn = CNNDiscriminator(4, None, dim=16, length=3, context=2, dropout=0.0).eval()
    history = cnn.read(ThreeHistories())
    vectors = cnn.vectors()
    torch.testing.assert_close(history[0], torch.cat([torch.zeros(16), vectors[0]]))
    torch.testing.assert_close(history[1], torch.cat([(vectors[1] + vectors[2]) / 2, vectors[3]]))
    assert not history[2].any()
    other = CNNDiscriminator(4, None, dim=16, length=3, context=4, dropout=0.0)
    assert other.read(ThreeHistories()).shape == (3, 64)  # longer than the histories: zeros come first


def test_the_density_ratio_is_the_difference_of_two_log_likelihoods(toy: Generator) -> None:
    phi = copy.deepcopy(toy)
    phi.bias.data += torch.tensor([1.0, 0.0, -1.0, 0.5])
    ratio = DensityRatioDiscriminator(phi, toy)
    before = logit(ratio)
    steps = log_probs(phi, ITEMS) - log_probs(toy, ITEMS)
    expected = torch.stack([steps[row, :length].sum() for row, length in enumerate(LENGTHS)])
    torch.testing.assert_close(before, expected.detach())
    assert {id(value) for value in ratio.parameters()} == {id(value) for value in phi.parameters()}
    ratio(ratio.read(ThreeHistories()), ITEMS, LENGTHS).sum().backward()
    assert all(value.grad is None for value in toy.parameters())
    assert phi.bias.grad is not None
    toy.bias.data[0] += 1.0  # the generator has learnt: its density is read anew
    assert not torch.equal(logit(ratio), before)


def test_a_density_ratio_needs_its_language_model(toy: Generator) -> None:
    with pytest.raises(ValueError, match="found None"):
        make_discriminator(SeqGANConfig(discriminator="density_ratio"), toy)
