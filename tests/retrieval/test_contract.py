"""``FeatureClient.check``: a model against what a service has now, without reading a row."""

from __future__ import annotations

import pytest

from recsys_llm import schema
from recsys_llm.errors import ServiceError
from recsys_llm.retrieval import FeatureClient
from recsys_llm.retrieval.contract import feature_types, type_differences
from tests.retrieval.feast_repository import EVERYTHING, MOOD, PLAIN, examples, hours
from tests.retrieval.history_rows import fill

pytestmark = pytest.mark.usefixtures("nothing_stored")


class Model:
    """Remembers the batch that it is asked about."""

    def __init__(self, service, features):
        self.service, self.features, self.seen = service, features, None

    def check(self, batch):
        self.seen = batch
        differences = type_differences(self.features, feature_types(batch))
        if differences:
            raise ServiceError("; ".join(differences))


def test_the_types_of_training_are_those_of_the_check(repository, client):
    fill(repository)
    training = client.training_set(examples(("u0", "i1", hours(5))), service=EVERYTHING)
    types = feature_types(training)
    assert list(types) == list(training.columns)
    assert types["item_text_embedding_v1__embedding"] == "vector of 4"
    assert types["user_next_items_v1__item_ids"] == "list of string"
    assert types["user_next_items_v1__log_probs"] == "list of float"
    assert types["item_notes__counts"] == "list of int64"
    assert types["item_stats__category"] == "text"
    assert types["user_mood__level"] == "number"
    with FeatureClient(store=repository.store) as another:
        model = Model(EVERYTHING, types)
        another.check(model)
        assert len(model.seen) == 0
        assert model.seen.fingerprints == training.fingerprints
        assert feature_types(model.seen) == types
        with pytest.raises(ServiceError) as refused:
            another.check(Model(EVERYTHING, types), service=PLAIN)
    missing = set(types) - {name for name in types if name.split("__")[0] in (schema.ITEM_STATS, MOOD)}
    assert all(f"{name}: expected {types[name]}, found none" in str(refused.value) for name in missing)
    assert str(refused.value).count("expected") == len(missing)


def test_online_batches_have_the_same_types(repository, client):
    fill(repository)
    types = feature_types(client.training_set(examples(("u0", "i1", hours(5))), service=EVERYTHING))
    assert feature_types(client.lookup("nobody", ["i0"], service=EVERYTHING)) == types


def test_differences():
    trained = {"a__x": "number", "a__v": "vector of 4", "b__l": "list of string"}
    assert type_differences(trained, trained) == []
    assert type_differences(trained, {**trained, "a__v": "vector"}) == []  # of no known length yet
    assert type_differences(trained, {**trained, "a__v": "vector of 5", "c": "text"}) == [
        "a__v: expected vector of 4, found vector of 5"
    ]
    assert type_differences(trained, {"a__x": "text"}) == [
        "a__x: expected number, found text",
        "a__v: expected vector of 4, found none; did you mean 'a__x'? Known: a__x",
        "b__l: expected list of string, found none; known: a__x",
    ]
