"""Who the features are about. Keys are strings, whatever the warehouse holds."""

from feast import Entity, ValueType

from recsys_llm import schema

user = Entity(
    name=schema.USER,
    join_keys=[schema.USER_ID],
    value_type=ValueType.STRING,
    description="Someone who watches, buys or reads",
)

item = Entity(
    name=schema.ITEM,
    join_keys=[schema.ITEM_ID],
    value_type=ValueType.STRING,
    description="A video, product or article",
)
