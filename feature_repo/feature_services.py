"""What a ranking model reads, under one name."""

from feast import FeatureService
from feature_views import item_stats, item_text_embedding, user_next_items, user_stats, user_text_embedding

from recsys_llm import schema

# Statistics only: what a ranker has without learned features.
ranker_baseline_v1 = FeatureService(name=schema.RANKER_BASELINE, features=[item_stats, user_stats])

# Statistics, text embeddings and predicted next items.
ranker_v1 = FeatureService(
    name=schema.RANKER,
    features=[item_stats, user_stats, item_text_embedding, user_text_embedding, user_next_items],
)
