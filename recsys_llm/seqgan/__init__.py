"""SeqGAN for next items (Yu et al. 2017): train on interaction sequences, predict, evaluate."""

from recsys_llm.seqgan.checkpoint import Checkpoint
from recsys_llm.seqgan.evaluation import evaluate_next_items
from recsys_llm.seqgan.histories import Histories
from recsys_llm.seqgan.prediction import NextItems, next_items, scoring_vectors
from recsys_llm.seqgan.settings import SeqGANConfig, TrainingProgress
from recsys_llm.seqgan.training import train
from recsys_llm.seqgan.vocabulary import ItemVectors, Vocabulary

__all__ = [
    "Checkpoint",
    "Histories",
    "ItemVectors",
    "NextItems",
    "SeqGANConfig",
    "TrainingProgress",
    "Vocabulary",
    "evaluate_next_items",
    "next_items",
    "scoring_vectors",
    "train",
]
