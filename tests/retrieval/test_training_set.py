"""Training sets: order, bad input, stored rows that contradict each other, and what a set offers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from recsys_llm import schema
from recsys_llm.errors import RetrievalError, RowError, SchemaError, ServiceError, StoreError
from recsys_llm.retrieval import FeatureClient, Status, parts
from tests.retrieval.feast_repository import (
    DIMENSION,
    EVERYTHING,
    MOOD,
    NOTES,
    PLAIN,
    VIEWS,
    Repository,
    cell,
    examples,
    hours,
    online_config,
)
from tests.retrieval.history_rows import ITEMS, USERS, fill

pytestmark = pytest.mark.usefixtures("nothing_stored")

ASKED = [("u0", "i1", hours(5)), ("u1", "i0", hours(2)), ("u0", "i2", hours(0)), ("u0", "i1", hours(5))]


def test_rows_keep_order_index_and_other_columns(repository, client):
    fill(repository)
    asked = examples(*ASKED, index=["d", "b", "b", "a"], label=[1.0, 0, 0, 1], note=["x", None, "y", "z"])
    copy = asked.copy(deep=True)
    training = client.training_set(asked, service=EVERYTHING)
    frame = training.to_pandas()
    pd.testing.assert_frame_equal(frame[asked.columns], copy)
    pd.testing.assert_frame_equal(asked, copy)  # nothing is written into the caller's frame
    assert frame["user_next_items_v1__entropy"].fillna(-1).tolist() == [2.0, -1, -1, 2.0]
    assert training.user.ids == ("u0", "u1", "u0")  # the distinct (user, time) pairs
    assert training.status(schema.USER_NEXT_ITEMS).tolist() == [
        Status.PRESENT, Status.MISSING, Status.MISSING, Status.PRESENT,
    ]  # fmt: skip
    pd.testing.assert_frame_equal(training.take(np.array([3, 0])).to_pandas(), _reset(frame.iloc[[3, 0]], asked))


def _reset(frame, asked):
    others = [name for name in asked.columns if name not in (schema.USER_ID, schema.ITEM_ID)]
    return frame.drop(columns=others).reset_index(drop=True)


def exchanged_after_listing(repository, monkeypatch, times):
    """Give the parts other names whenever they were listed, so many times: what `recsys-llm compact` does meanwhile."""
    listed, left = parts.files, [times]

    def files(view):
        found = listed(view)
        if view.name == schema.ITEM_TEXT_EMBEDDING and left[0]:
            left[0] -= 1
            for number, file in enumerate(found):
                file.rename(file.with_name(f"exchanged-{left[0]}-{number}.parquet"))
        return found

    monkeypatch.setattr(parts, "files", files)


def test_parts_that_are_exchanged_while_they_are_read(repository, client, monkeypatch):
    fill(repository)
    asked = examples(*ASKED)
    expected = client.training_set(asked, service=EVERYTHING).to_pandas()
    for times in (1, 20):
        with monkeypatch.context() as patch:
            exchanged_after_listing(repository, patch, times)
            if times == 1:
                pd.testing.assert_frame_equal(client.training_set(asked, service=EVERYTHING).to_pandas(), expected)
            else:
                with pytest.raises(RetrievalError, match="exchanged while they were read, twice .*; ask again"):
                    client.training_set(asked, service=EVERYTHING)


def test_a_join_in_pieces_is_the_same_join(repository, client, monkeypatch):
    fill(repository)
    asked = examples(*[(user, item, hours(at)) for at in (5, 0, 2) for user in USERS for item in ITEMS])
    whole = client.training_set(asked, service=EVERYTHING).to_pandas()
    monkeypatch.setattr("recsys_llm.retrieval.history.JOIN_ROWS", 2)
    pd.testing.assert_frame_equal(client.training_set(asked, service=EVERYTHING).to_pandas(), whole)


def test_vectors_that_rows_share_are_kept_once(repository, client):
    fill(repository)
    asked = examples(*[("u0", "i0", hours(5 + n)) for n in range(50)])
    training = client.training_set(asked, service=EVERYTHING)
    stored = training.item.stored("item_text_embedding_v1__embedding")
    assert stored.values.shape == (2, DIMENSION)  # one row, and the one that stands for missing
    assert training.vector("item_text_embedding_v1__embedding").shape == (50, DIMENSION)


def test_the_same_as_feasts_own_history(repository, client):
    fill(repository)
    asked = examples(*ASKED[:3])
    ours = client.training_set(asked, service=EVERYTHING).to_pandas()
    feasts = repository.store.get_historical_features(
        entity_df=asked.copy(),
        features=repository.store.get_feature_service(EVERYTHING),
        full_feature_names=True,
    ).to_df()
    merged = ours.merge(feasts, on=["user_id", "item_id", "event_timestamp"], suffixes=("", "_feast"))
    assert len(merged) == 3
    for column in (name for name in ours.columns if name.split("__")[0] in VIEWS):
        for one, other in zip(merged[column], merged[f"{column}_feast"], strict=True):
            other = other.tolist() if isinstance(other, np.ndarray) else other
            if other is None or (not isinstance(other, list | str) and pd.isna(other)):
                assert cell(one) is None
            else:
                assert cell(one) == (np.float32(other).tolist() if isinstance(other, float) else other)


def test_the_file_store_drops_rows_and_we_do_not(tmp_path):
    pytest.importorskip("dask")
    repository = Repository(tmp_path, online=online_config("sqlite", tmp_path), offline="file")
    fill(repository)
    with FeatureClient(store=repository.store) as client:
        frame = client.training_set(examples(*ASKED), service=PLAIN).to_pandas()
    assert frame[schema.feature_column(MOOD, "level")].fillna(-1).tolist() == [0.5, -1, -1, 0.5]


def test_without_examples(repository, client):
    fill(repository)
    training = client.training_set(examples(), service=EVERYTHING)
    assert len(training) == len(training.to_pandas()) == training.to_arrow().num_rows == 0
    assert training.pairwise.shape == (0, 5)
    assert training.vector("item_text_embedding_v1__embedding").shape == (0, DIMENSION)
    assert training.manifest["time_range"] is None
    assert list(training.loader(4)) == []


def test_arrow_and_manifest(repository, client):
    fill(repository)
    training = client.training_set(examples(*ASKED, label=[1, 0, 0, 1]), service=EVERYTHING)
    table = training.to_arrow()
    assert table.schema.field("item_stats__n_events").type == pa.float32()
    assert table["user_next_items_v1__centroid"].to_pylist() == [[1, 0, 0, 0], None, None, [1, 0, 0, 0]]
    assert table["user_mood__level"].to_pylist() == [0.5, None, None, 0.5]
    assert table["pairwise__next_reciprocal_rank"].to_pylist() == [1, None, None, 1]
    manifest = training.manifest
    assert manifest["service"] == EVERYTHING
    assert manifest["rows"] == 4
    assert manifest["fingerprints"]["user_next_items_v1"] == "seqgan"
    assert manifest["nulls"]["user_mood__level"] == 2
    assert manifest["nulls"]["user_text_embedding_v1__embedding"] == 4
    assert manifest["time_range"] == [hours(0).isoformat(), hours(5).isoformat()]
    assert "item_stats:n_events" in manifest["features"]


def test_loader_gathers_the_same_values(repository, client):
    fill(repository)
    training = client.training_set(examples(*ASKED, label=[1.0, 0, 0, 1], group=[0, 1, 1, 0]), service=EVERYTHING)
    batches = list(training.loader(3, shuffle=True, seed=1))
    rows = np.concatenate([batch["rows"].numpy() for batch in batches])
    assert sorted(rows) == [0, 1, 2, 3]
    for batch in batches:
        at = batch["rows"].numpy()
        np.testing.assert_array_equal(batch["pairwise"].numpy(), training.pairwise[at])
        vectors = training.vector("item_text_embedding_v1__embedding")
        np.testing.assert_array_equal(batch["item_text_embedding_v1__embedding"].numpy(), vectors[at])
        np.testing.assert_array_equal(batch["label"].numpy(), np.float32([1, 0, 0, 1])[at])
        assert batch["group"].numpy().dtype == np.int64
        assert "user_next_items_v1__item_ids" not in batch
    orders = [[batch["rows"].tolist() for batch in training.loader(2, shuffle=True, seed=s)] for s in (1, 1, 2, 3, 4)]
    assert orders[0] == orders[1]
    assert any(order != orders[0] for order in orders)
    assert training.dataset(["item_stats__n_events"])[1]["item_stats__n_events"].item() == 3
    with pytest.raises(ServiceError, match="no feature 'nothing'"):
        training.dataset(["nothing"])


def test_entity_history_keeps_order_and_repeats(repository, client):
    fill(repository)
    times = pd.DatetimeIndex([hours(2), hours(0), hours(2), hours(-1)]).as_unit("us")
    block = client.entity_history("item", ["i1", "i0", "i1", "i0"], times, service=EVERYTHING)
    assert block.ids == ("i1", "i0", "i1", "i0")
    vectors = block.columns["item_text_embedding_v1__embedding"]
    np.testing.assert_array_equal(vectors[:3, :2], [[2, 3], [1, 1], [2, 3]])
    assert np.isnan(vectors[3]).all()
    assert block.status[schema.ITEM_TEXT_EMBEDDING].tolist() == [2, 2, 2, 0]
    with pytest.raises(SchemaError, match="expected user or item, found 'shop'"):
        client.entity_history("shop", ["i1"], times[:1], service=EVERYTHING)
    with pytest.raises(SchemaError, match="as many times as ids, found 4 and 1"):
        client.entity_history("item", ["i1"], times, service=EVERYTHING)


def bad(change):
    frame = examples(*ASKED, index=[9, 8, 7, 6])
    return change(frame)


NAIVE = hours(1).replace(tzinfo=None)


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        ("SELECT 1", SchemaError, "expected a pandas DataFrame, found str; a string would be run as SQL"),
        (bad(lambda f: f.rename(columns={"user_id": "uid"})), SchemaError, "'user_id' is missing; did you mean 'uid'"),
        (bad(lambda f: f.rename(columns={"item_id": "itemid"})), SchemaError, "is missing; did you mean 'itemid'"),
        (bad(lambda f: f.assign(user_id=[1, 2, 3, 4])), SchemaError, "'user_id': expected str, found int64; use"),
        (bad(lambda f: f.assign(item_id=["a", "b", 3, "c"])), SchemaError, r"'item_id', row 2 \(index 7\): .* int 3"),
        (bad(lambda f: f.assign(item_id=["a", None, "b", "c"])), RowError, r"row 1 \(index 8\), column 'item_id': nu"),
        (bad(lambda f: f.assign(user_id=["a", "b", "\udc00", "c"])), RowError, "lone surrogate"),
        (bad(lambda f: f.assign(event_timestamp=NAIVE)), SchemaError, r"found datetime64.*tz_localize\(\"UTC\"\)"),
        (bad(lambda f: f.assign(event_timestamp="2024-01-01")), SchemaError, "found object.*pd.to_datetime"),
        (bad(lambda f: f.assign(event_timestamp=f.event_timestamp.shift())), RowError, r"row 0 \(index 9\) is null"),
        (
            bad(lambda f: f.assign(event_timestamp=pd.Timestamp("2024-01-01T00:00:00.000000001", tz="UTC"))),
            RowError,
            r"row 0 \(index 9\) is .*finer than a microsecond",
        ),
        (bad(lambda f: f.assign(user_mood__level=1)), SchemaError, "'user_mood__level' has the name of a feature"),
        (bad(lambda f: pd.concat([f, f[["user_id"]]], axis=1)), SchemaError, "found 'user_id' twice"),
    ],
)  # fmt: skip
def test_examples_that_cannot_be_used(client, frame, error, message):
    with pytest.raises(error, match=message):
        client.training_set(frame, service=EVERYTHING)


def test_other_zones_and_exact_nanoseconds_are_fine(repository, client):
    fill(repository)
    asked = examples(*ASKED)
    expected = client.training_set(asked, service=PLAIN).to_pandas()["user_mood__level"]
    for change in (lambda s: s.dt.tz_convert("Asia/Tokyo"), lambda s: s.dt.as_unit("ns")):
        frame = asked.assign(event_timestamp=change(asked["event_timestamp"]))
        pd.testing.assert_series_equal(
            client.training_set(frame, service=PLAIN).to_pandas()["user_mood__level"], expected
        )


def embedding_row(item, at, row_id, value=1.0, length=DIMENSION):
    return {"item_id": item, "at": hours(at), "embedding": [value] * length, "row_id": row_id}


def test_a_row_stored_twice_is_one_row(repository, client):
    row = embedding_row("i0", 0, 7)
    repository.write(schema.ITEM_TEXT_EMBEDDING, [row])
    repository.write(schema.ITEM_TEXT_EMBEDDING, [row | {"created": hours(9)}], part="part-1")
    training = client.training_set(examples(*ASKED[:2]), service=EVERYTHING)
    assert training.vector("item_text_embedding_v1__embedding")[1].tolist() == [1.0] * DIMENSION


def test_two_rows_under_one_id_are_refused(repository, client):
    repository.write(schema.ITEM_TEXT_EMBEDDING, [embedding_row("i0", 0, 7)])
    repository.write(schema.ITEM_TEXT_EMBEDDING, [embedding_row("i1", 0, 7, 2.0)], part="part-1")
    with pytest.raises(RetrievalError, match="view item_text_embedding_v1: two different rows share row_id=7"):
        client.training_set(examples(*ASKED[:2]), service=EVERYTHING)


def test_a_row_that_is_not_in_the_parts_is_refused(repository, client):
    from recsys_llm.retrieval.parts import gather

    repository.write(schema.ITEM_TEXT_EMBEDDING, [embedding_row("i0", 0, 7)])
    view = next(v for v in client.resolve(EVERYTHING).views if v.name == schema.ITEM_TEXT_EMBEDDING)
    with pytest.raises(RetrievalError, match=r"row row_id=8 was joined but is not in the parts.*\(2 such rows\)"):
        gather(view, np.array([7, 8, 9]))


def test_vectors_of_two_lengths_are_refused(repository, client):
    rows = [embedding_row("i0", 0, 7), embedding_row("i1", 0, 8, length=DIMENSION + 1)]
    repository.write(schema.ITEM_TEXT_EMBEDDING, rows)
    with pytest.raises(StoreError, match="item_text_embedding_v1__embedding: expected vectors of length 4, found .* 5"):
        client.training_set(examples(("u0", "i0", hours(1)), ("u0", "i1", hours(1))), service=EVERYTHING)


def test_lists_of_views_without_row_ids_pass_through_feast(repository, client):
    repository.write(NOTES, [{"item_id": "i0", "at": hours(0), "words": ["a", "b"], "counts": [2**40]}])
    training = client.training_set(examples(*ASKED[:2]), service=EVERYTHING)
    assert training.column("item_notes__words").to_pylist() == [None, ["a", "b"]]
    assert training.column("item_notes__counts").to_pylist() == [None, [2**40]]
    assert training.status(NOTES).tolist() == [Status.MISSING, Status.PRESENT]
    with pytest.raises(ServiceError, match="expected item_notes__words to be a number, found list"):
        training.scalar("item_notes__words")


def test_vectors_that_are_null_in_every_row(repository, client):
    # A sequence model that starts from item ids alone has no centroids.
    row = {"user_id": "u0", "at": hours(1), "item_ids": ["i1"], "log_probs": [-0.5], "entropy": 2.0, "row_id": 1}
    repository.write(schema.USER_NEXT_ITEMS, [{**row, "centroid": None}])
    training = client.training_set(examples(("u0", "i1", hours(2))), service=EVERYTHING)
    assert np.isnan(training.vector("user_next_items_v1__centroid")).all()
    assert training.column("user_next_items_v1__item_ids").to_pylist() == [["i1"]]


def test_a_view_that_was_never_materialised_is_named(repository, client):
    for part in repository.directory(schema.ITEM_TEXT_EMBEDDING).glob("*.parquet"):
        part.unlink()
    examples = pd.DataFrame({"user_id": ["u1"], "item_id": ["i1"], "event_timestamp": [pd.Timestamp(hours(5))]})
    examples["event_timestamp"] = examples["event_timestamp"].dt.as_unit("us")
    with pytest.raises(RetrievalError, match="item_text_embedding_v1: there are no parts .* -v item_text_embedding_v1"):
        client.training_set(examples, service=EVERYTHING)
    repository.write(schema.ITEM_TEXT_EMBEDDING, [])
