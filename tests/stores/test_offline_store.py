"""Our name for Feast's DuckDB store: what `feast apply` says of sources."""

from __future__ import annotations

import logging

import pytest
from feast import FileSource, RepoConfig

from recsys_llm import schema
from recsys_llm.stores import DuckDBOfflineStore


@pytest.mark.parametrize(
    ("path", "created", "warned"),
    [
        ("features/view", schema.CREATED_TIMESTAMP, False),
        ("featuers/view", schema.CREATED_TIMESTAMP, True),
        ("features/view", "", True),
    ],
    ids=["yet to be materialised", "in no folder", "not ours"],
)
def test_a_source_that_does_not_exist_is_a_warning_unless_the_engine_will_make_it(
    tmp_path, caplog, path, created, warned
):
    (tmp_path / "features").mkdir()
    source = FileSource(
        name="s", path=str(tmp_path / path), timestamp_field="event_timestamp", created_timestamp_column=created
    )
    config = RepoConfig(project="p", provider="local", registry=f"{tmp_path}/r.db", entity_key_serialization_version=3)
    with caplog.at_level(logging.WARNING):
        DuckDBOfflineStore().validate_data_source(config, source)
    assert [record.levelname for record in caplog.records if "does not exist" in record.message] == ["WARNING"] * warned
