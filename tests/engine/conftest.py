"""Repositories on real online stores."""

from __future__ import annotations

import pytest

from tests.engine.online_places import Place


@pytest.fixture(params=["sqlite", "redis"])
def kind(request):
    return request.param


@pytest.fixture
def places(tmp_path, request):
    """Make repositories; a Redis is started where one is asked for."""
    made = []

    def make(kind, settings=None, **online):
        url = request.getfixturevalue("redis_url") if kind == "redis" else None
        folder = tmp_path / f"place{len(made)}"
        folder.mkdir()
        made.append(Place(kind, folder, url, settings or {}, **online))
        return made[-1]

    yield make
    for place in made:
        place.store.teardown()
