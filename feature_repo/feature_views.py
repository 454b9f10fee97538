"""Features that `feast materialize` computes. The tag of a view names its producer, its source and its model.

A view's name carries the version of its model: vectors of two models never share a view.
"""

from datetime import timedelta

from data_sources import (
    item_next_vectors_parts,
    item_stats_parts,
    item_text_embedding_parts,
    user_next_items_parts,
    user_states_parts,
    user_stats_parts,
    user_text_embedding_parts,
)
from entities import item, user
from feast import FeatureView, Field
from feast.types import Array, Bool, Float32, Int64, String

from recsys_llm import schema

# What is known of an item or a user holds until something newer is known. Give a view a ttl where old values mislead:
# training sets and lookups of FeatureClient both turn an expired row into missing values.
NEVER_EXPIRES = timedelta(0)

# 384 floats from an item's title and text.
item_text_embedding = FeatureView(
    name=schema.ITEM_TEXT_EMBEDDING,
    entities=[item],
    ttl=NEVER_EXPIRES,
    schema=[
        Field(name=schema.ITEM_ID, dtype=String),
        Field(name=schema.EMBEDDING, dtype=Array(Float32)),
        Field(name=schema.ROW_ID, dtype=Int64),
    ],
    source=item_text_embedding_parts,
    tags=schema.producer_tag(schema.TEXT_EMBEDDING, source="items", model="minilm_v1"),
)

# 384 floats from a user's profile, what they liked last and what they wrote. Provenance is history or profile; cold
# users are given the row of their segment or of everyone, and provenance says so.
user_text_embedding = FeatureView(
    name=schema.USER_TEXT_EMBEDDING,
    entities=[user],
    ttl=NEVER_EXPIRES,
    schema=[
        Field(name=schema.USER_ID, dtype=String),
        Field(name=schema.EMBEDDING, dtype=Array(Float32)),
        Field(name=schema.PROVENANCE, dtype=String),
        Field(name=schema.ROW_ID, dtype=Int64),
    ],
    source=user_text_embedding_parts,
    tags=schema.producer_tag(schema.TEXT_EMBEDDING, source="interactions", model="minilm_v1"),
)

# What a user will want next, most likely first; how sure the model is; the mean text vector of the list. Users without
# a history are given what their segment or everyone liked lately: is_fallback, and provenance says which.
user_next_items = FeatureView(
    name=schema.USER_NEXT_ITEMS,
    entities=[user],
    ttl=NEVER_EXPIRES,
    schema=[
        Field(name=schema.USER_ID, dtype=String),
        Field(name=schema.ITEM_IDS, dtype=Array(String)),
        Field(name=schema.LOG_PROBS, dtype=Array(Float32)),
        Field(name=schema.ENTROPY, dtype=Float32),
        Field(name=schema.CENTROID, dtype=Array(Float32)),
        Field(name=schema.NEXT_QUERY, dtype=Array(Float32)),
        Field(name=schema.MODEL_TRAINED_UNTIL, dtype=String),
        Field(name=schema.PROVENANCE, dtype=String),
        Field(name=schema.IS_FALLBACK, dtype=Bool),
        Field(name=schema.ROW_ID, dtype=Int64),
    ],
    source=user_next_items_parts,
    tags=schema.producer_tag(schema.NEXT_ITEMS, source="interactions", model="seqgan_v1"),
)

# Where the model is after a user's history: recsys_llm.streaming goes on from there with each new event.
user_states = FeatureView(
    name=schema.USER_STATES,
    entities=[user],
    ttl=NEVER_EXPIRES,
    schema=[
        Field(name=schema.USER_ID, dtype=String),
        Field(name=schema.STATE, dtype=Array(Float32)),
        Field(name=schema.HAD_ITEMS, dtype=Array(Int64)),
        Field(name=schema.HAD_GROUPS, dtype=Array(Int64)),
        Field(name=schema.NEWEST_EVENT, dtype=Int64),
        Field(name=schema.STATE_FINGERPRINT, dtype=String),
    ],
    source=user_states_parts,
    tags=schema.producer_tag(schema.SEQUENCE_STATES, source="interactions", model="seqgan_v1"),
)

# With a user's next_query: the log-probability that an item comes next, of any candidate.
item_next_vectors = FeatureView(
    name=schema.ITEM_NEXT_VECTORS,
    entities=[item],
    ttl=NEVER_EXPIRES,
    schema=[
        Field(name=schema.ITEM_ID, dtype=String),
        Field(name=schema.NEXT_VECTOR, dtype=Array(Float32)),
        Field(name=schema.ROW_ID, dtype=Int64),
    ],
    source=item_next_vectors_parts,
    tags=schema.producer_tag(schema.NEXT_VECTORS, source="interactions", model="seqgan_v1"),
)

# How popular an item is and was in the last 30 days, what it costs and what it belongs to.
item_stats = FeatureView(
    name=schema.ITEM_STATS,
    entities=[item],
    ttl=NEVER_EXPIRES,
    schema=[
        Field(name=schema.ITEM_ID, dtype=String),
        Field(name=schema.N_EVENTS, dtype=Int64),
        Field(name=schema.N_EVENTS_30D, dtype=Int64),
        Field(name=schema.MEAN_RATING, dtype=Float32),
        Field(name=schema.PRICE, dtype=Float32),
        Field(name=schema.CATEGORY, dtype=String),
    ],
    source=item_stats_parts,
    tags=schema.producer_tag(schema.ITEM_STATISTICS, source="interactions"),
)

# How active a user is, what they had last and which categories they favour.
user_stats = FeatureView(
    name=schema.USER_STATS,
    entities=[user],
    ttl=NEVER_EXPIRES,
    schema=[
        Field(name=schema.USER_ID, dtype=String),
        Field(name=schema.N_EVENTS, dtype=Int64),
        Field(name=schema.MEAN_RATING, dtype=Float32),
        Field(name=schema.MEAN_PRICE, dtype=Float32),
        Field(name=schema.RECENT_ITEMS, dtype=Array(String)),
        Field(name=schema.LAST_GROUP_SIZE, dtype=Int64),
        Field(name=schema.CATEGORIES, dtype=Array(String)),
        Field(name=schema.CATEGORY_SHARES, dtype=Array(Float32)),
        Field(name=schema.ROW_ID, dtype=Int64),
    ],
    source=user_stats_parts,
    tags=schema.producer_tag(schema.USER_STATISTICS, source="interactions"),
)
