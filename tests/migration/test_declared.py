"""What the Python files of a repository declare, against what its registry holds."""

from __future__ import annotations

import pytest

from recsys_llm import schema
from recsys_llm.commands.migration import migrate
from recsys_llm.commands.migration.declared import declared_services
from recsys_llm.commands.migration.migrate import cutover
from recsys_llm.errors import MigrationError
from tests.migration.conftest import ITEMS_2, PAIRS, state


def test_the_process_that_a_command_asks_answers_under_the_versions_that_it_is_given(backfilled):
    """Other tests read the files in their own process."""
    asked = declared_services(backfilled, PAIRS)
    assert asked == migrate.declared_services(backfilled, PAIRS) != migrate.declared_services(backfilled, {})
    assert not (backfilled / schema.VERSIONS_FILE).exists()


def test_a_service_that_names_its_views_itself_is_refused_with_the_edit(backfilled, monkeypatch):
    file = backfilled / "feature_services.py"
    text = file.read_text()
    fixed = text.replace(
        """schema.current_views(
        [item_text_embedding[["embedding"]]], among=vars(feature_views), beside=__file__
    )""",
        '[item_text_embedding[["embedding"]]]',
    )
    assert fixed != text
    file.write_text(fixed)
    before = state(backfilled)
    with pytest.raises(MigrationError, match=r"(?s)services similar_items name .*schema\.current_views"):
        cutover(backfilled, PAIRS)
    assert state(backfilled) == before and not (backfilled / schema.VERSIONS_FILE).exists()
    monkeypatch.setattr(migrate, "declared_services", declared_services)
    file.write_text(text + "\nimport nothing_like_it\n")
    with pytest.raises(MigrationError, match="(?s)can't be read as `feast apply` would read them.*nothing_like_it"):
        cutover(backfilled, PAIRS)
    assert state(backfilled) == before


def test_a_service_that_was_edited_and_not_applied_is_refused(backfilled, monkeypatch):
    edited = {**state(backfilled), "ranker_v1": [(ITEMS_2, []), (schema.USER_STATS, [])]}
    monkeypatch.setattr(migrate, "declared_services", lambda *_: edited)
    with pytest.raises(MigrationError, match="the repository's Python files make it .*run `feast apply` first"):
        cutover(backfilled, PAIRS)
    del edited["ranker_v1"]
    with pytest.raises(MigrationError, match="ranker_v1 is in the registry but not in the repository"):
        cutover(backfilled, PAIRS)
