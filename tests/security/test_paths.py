"""A registry row or a ledger row that names a place outside the repository: nothing is written or removed there."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from feast.protos.feast.core.FeatureView_pb2 import FeatureView as FeatureViewProto
from typer.testing import CliRunner

from recsys_llm import schema
from recsys_llm.cli import app
from recsys_llm.commands.operations.doctor import examine
from recsys_llm.errors import ConfigError, LedgerError
from recsys_llm.producers import Parts
from tests.security.hostile_rows import replace, stored
from tests.workspace import make_repository, materialize

pytestmark = pytest.mark.security

VIEW = schema.USER_STATS
COMMANDS = (
    ("repair", VIEW),
    ("compact", VIEW),
    ("forget", "--user", "u00001"),
    ("explain", VIEW, "u00001"),
)


@pytest.fixture(scope="module")
def applied(tmp_path_factory, simulated_data) -> Path:
    made = make_repository(tmp_path_factory.mktemp("paths") / "feature_repo", simulated_data)
    materialize(made, VIEW, end=datetime(2026, 1, 1, tzinfo=UTC))
    return made


@pytest.fixture
def repository(applied, tmp_path):
    """A repository whose registry may be spoilt; it is restored afterwards."""
    shutil.copy(applied / "data" / "registry.db", tmp_path / "registry.db")
    yield applied
    shutil.copy(tmp_path / "registry.db", applied / "data" / "registry.db")


def move_parts(repository: Path, uri: Path | str) -> None:
    raw = stored(repository, "feature_views", "feature_view_proto", "feature_view_name", VIEW)
    view = FeatureViewProto.FromString(raw)
    view.spec.batch_source.file_options.uri = str(uri)
    replace(repository, "feature_views", "feature_view_proto", "feature_view_name", VIEW, view.SerializeToString())


def places(repository: Path, outside: Path) -> dict[str, Path]:
    link = repository / "data" / "features" / "linked"
    link.unlink(missing_ok=True)
    link.symlink_to(outside)
    return {
        "outside": outside,
        "dots": repository / ".." / outside.name,
        "link": link,
        "below a link": link / "more",
        "the repository itself": repository,
        "beside it": repository.with_name(f"{repository.name}_2"),
    }


@pytest.mark.parametrize("place", ["outside", "dots", "link", "below a link", "the repository itself", "beside it"])
def test_parts_outside_the_repository_are_not_touched(repository, place):
    outside = repository.parent / "elsewhere"
    shutil.rmtree(outside, ignore_errors=True)
    shutil.copytree(repository / "data" / "features" / VIEW, outside)
    before = {file.name: file.read_bytes() for file in outside.iterdir()}
    assert any(name.startswith("part-") for name in before)
    move_parts(repository, places(repository, outside)[place])
    with pytest.raises(ConfigError, match=f"view {VIEW}: expected its parts in a directory of this repository"):
        materialize(repository, VIEW, end=datetime(2026, 1, 2, tzinfo=UTC))
    for command in COMMANDS:
        done = CliRunner().invoke(app, [*command, "-C", str(repository)])
        assert isinstance(done.exception, ConfigError), done.output
        assert "expected its parts in a directory of this repository" in str(done.exception)
    found = [finding for finding in examine(repository) if finding.subject == VIEW and not finding.ok]
    assert [finding.check for finding in found] == ["registry"] and "outside" in found[0].detail
    assert {file.name: file.read_bytes() for file in outside.iterdir()} == before
    assert not repository.with_name(f"{repository.name}_2").exists()


def test_a_part_is_a_file_of_the_view(tmp_path):
    """Names of parts to remove come from the ledger: a database that others may write to."""
    (tmp_path / "view").mkdir()
    victim = tmp_path / "victim.parquet"
    victim.write_bytes(b"")
    parts = Parts(tmp_path / "view", "view", {"fingerprint": "x"})
    for name in ("../victim.parquet", str(victim), "..", "x/../../victim.parquet"):
        for act in (lambda name: parts.remove([name]), parts.read, parts.rows):
            with pytest.raises(LedgerError, match="expected the name of a part, found"):
                act(name)
    assert victim.exists()
