"""What a ranking model reads, under one name.

`recsys-llm migrate cutover` switches a view's version for all services at once, in versions.yaml beside this file.
"""

import feature_views
from feast import FeatureService
from feature_views import (
    item_next_vectors,
    item_stats,
    item_text_embedding,
    user_next_items,
    user_stats,
    user_text_embedding,
)

from recsys_llm import schema

# Statistics only: what a ranker has without learned features.
ranker_baseline_v1 = FeatureService(
    name=schema.RANKER_BASELINE,
    features=schema.current_views([item_stats, user_stats], among=vars(feature_views), beside=__file__),
)

# Statistics, text embeddings and predicted next items.
ranker_v1 = FeatureService(
    name=schema.RANKER,
    features=schema.current_views(
        [item_stats, user_stats, item_text_embedding, user_text_embedding, user_next_items, item_next_vectors],
        among=vars(feature_views),
        beside=__file__,
    ),
)
