"""Next items that keep up with events: each event moves its user's online row on, however long their history is.

::

    event -> user's state (online) -> generator, one step -> list and state (online)
                    ^                                               |
                    +-----------------------------------------------+

The rows are those that a materialisation would write for the same events, and under the same stamps, so that either may
come first. The offline rows come with the next materialisation, from the source. A stream begins with the events after
the end of the last materialisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from recsys_llm import timestamps as clock
from recsys_llm.config import load_config
from recsys_llm.engine.publish import OnlinePublisher
from recsys_llm.errors import ConfigError, FingerprintError, RowError
from recsys_llm.producers import ProducerTag, open_ledger, open_producer
from recsys_llm.producers.next_items import NextItems
from recsys_llm.producers.pipeline import stored_schema
from recsys_llm.producers.sequence_states import SequenceStates, states_from
from recsys_llm.producers.user_rows import refuse_reserved
from recsys_llm.retrieval.online_emptied import require_published
from recsys_llm.retrieval.store import known_view, open_store
from recsys_llm.schema import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    HAD_GROUPS,
    HAD_ITEMS,
    ITEM_ID,
    NEWEST_EVENT,
    STATE,
    STATE_FINGERPRINT,
    USER_ID,
    USER_NEXT_ITEMS,
    USER_STATES,
    VERSIONS_FILE,
    current_version,
    read_versions,
)
from recsys_llm.seqgan import Histories
from recsys_llm.seqgan.histories import sorted_interactions
from recsys_llm.seqgan.states import UserStates, advance, next_items_of, opening_states
from recsys_llm.timestamps import FUTURE_TOLERANCE, MICROSECOND, TIMESTAMP, as_utc, to_micros

NEWCOMER_SECONDS = 1.0
"""The same as ``check_every``, at most, where a user has no state: nothing tells the model of one that begins."""
_STATE_FEATURES = (STATE, HAD_ITEMS, HAD_GROUPS, NEWEST_EVENT, STATE_FINGERPRINT)


class Advanced(NamedTuple):
    """What became of a batch of events."""

    users: int
    """Users whose rows moved on."""
    events: int
    """Events that did it; repeated ones count once."""
    late: pa.Table
    """Events no later than what their user's state holds, or than the model's training: they have changed nothing. A
    materialisation from :attr:`again_from` on puts them in their place, once the source has them."""

    @property
    def again_from(self) -> datetime | None:
        """Where the next materialisation must start, in place of the watermark; None: nothing came late."""
        earliest = pc.min(self.late[EVENT_TIMESTAMP]).as_py()
        return None if earliest is None else earliest - MICROSECOND


class NextItemsStream:
    """Moves users' next items on with their events, in the online store of a feature repository.

    One stream at a time may handle a user: partition events by user, as consumers of a log do. Events may be delivered
    again: they are late then, and change nothing.

    Parameters
    ----------
    repository
        Folder with ``feature_store.yaml``.
    config_file
        Another file in it, such as ``feature_store.prod.yaml``.
    lists, states
        The views of next items and of states, of one model; both materialised before. None: those that are read in the
        place of ``user_next_items_v1`` and ``user_states_v1`` by versions.yaml.
    device
        "auto", or a torch device.
    now
        The clock that tells events of the future.
    check_every
        How often, at most, the stream looks whether its views still are what services read, of the model at hand. What
        a state belongs to is told by the state itself, every time.

    Raises
    ------
    ConfigError
        A view is unknown, of another producer, of another model than the other, or was not materialised from before the
        model's training cut-off on; or the model has a ``granularity`` other than ``event``.
    FingerprintError
        A view holds rows of another model than the one at hand.

    Attributes
    ----------
    store
        The Feast store.

    Examples
    --------
    ::

        stream = NextItemsStream("feature_repo")
        stream.advance("42", ["318", "356"], datetime.now(UTC))
    """

    def __init__(
        self,
        repository: Path | str,
        *,
        config_file: str | None = None,
        lists: str | None = None,
        states: str | None = None,
        device: str = "auto",
        now: Callable[[], datetime] = clock.now,
        check_every: timedelta = timedelta(seconds=30),
    ) -> None:
        self.store = open_store(repository, config_file=config_file)
        self._config = load_config(repository)
        self._now = now
        self._device = device
        self._check_seconds = check_every.total_seconds()
        self._followed = [view for view, named in ((USER_NEXT_ITEMS, lists), (USER_STATES, states)) if named is None]
        lists = lists or self._in_its_place(USER_NEXT_ITEMS)
        states = states or self._in_its_place(USER_STATES)
        list_view, state_view = known_view(self.store, lists), known_view(self.store, states)
        list_tag, state_tag = (ProducerTag.of(view.name, view.tags) for view in (list_view, state_view))
        if list_tag is None or state_tag is None or list_tag.model != state_tag.model:
            raise ConfigError(
                f"views {lists} and {states}: expected the tags of one model, found {list_tag}, {state_tag}"
            )
        list_producer, state_producer = self._producer(lists, list_tag), self._producer(states, state_tag)
        if not isinstance(list_producer, NextItems) or not isinstance(state_producer, SequenceStates):
            raise ConfigError(
                f"views {lists} and {states}: expected next items and states, found {list_tag}, {state_tag}"
            )
        if list_producer.settings.granularity != "event":
            raise ConfigError(
                f"model {list_tag.model}: expected granularity 'event', found {list_producer.settings.granularity!r}; "
                "with a coarser one a row must not know of an event before its period has ended"
            )
        self._lists, self._states, self._states_view = list_producer, state_producer, states
        for view in (list_view, state_view):
            self._check_whole(view)
        _check_fields(state_view)
        self._publish_lists, self._publish_states = self._publisher(list_view), self._publisher(state_view)
        self._tags = {lists: list_tag, states: state_tag}
        self._checked = monotonic()

    def advance(self, user_id: str, item_ids: Sequence[str], event_timestamp: datetime) -> bool:
        """Take a user's events of one time: what they had together.

        Returns
        -------
        bool
            False: the events are late; nothing has changed.

        Raises
        ------
        RowError
            The time lies in the future, or the user has a reserved id.
        SchemaError
            The time has no zone.
        """
        events = {
            USER_ID: pa.array([user_id] * len(item_ids), pa.string()),
            ITEM_ID: pa.array(item_ids, pa.string()),
            EVENT_TIMESTAMP: pa.array([as_utc(event_timestamp, name=EVENT_TIMESTAMP)] * len(item_ids), TIMESTAMP),
        }
        return self.advance_many(pa.table(events)).users == 1

    def advance_many(self, events: pa.Table) -> Advanced:
        """Take events of any users, in any order; all of a user at one time must come together.

        Parameters
        ----------
        events
            ``user_id``, ``item_id`` (string), ``event_timestamp`` (timestamp[us, UTC]); other columns are not read.
            Items that the model doesn't know are passed over.

        Raises
        ------
        FingerprintError
            A state is another model's, or the views are another model's or no longer read; nothing has changed. A new
            stream takes up what is there now.
        RowError
            A value is null, a time lies in the future, or a user has a reserved id; nothing has changed.
        SchemaError
            A column is missing or has another type.
        """
        events = sorted_interactions(events)
        users = Histories.from_interactions(events).user_ids.to_pylist()  # which checks every row
        if not users:
            return Advanced(0, 0, events)
        refuse_reserved(users, "events")
        self._check_times(events)
        if monotonic() - self._checked >= self._check_seconds:
            self._check_current()
        before = self._read(users)
        late = self._late(events, users, before.newest)
        histories = Histories.from_interactions(events.filter(pa.array(~late)))
        moved = histories.user_ids.to_pylist()
        if moved:
            place = {user: row for row, user in enumerate(users)}
            self._write(moved, self._after(before, np.array([place[user] for user in moved]), histories))
        return Advanced(len(moved), len(histories.item_ids), events.filter(pa.array(late)))

    def _after(self, before: UserStates, rows: npt.NDArray[np.int64], histories: Histories) -> UserStates:
        model = self._states.models.newest
        return advance(model, before.take(rows), histories, filter_seen=self._states.filter_seen, device=self._device)

    def _read(self, users: list[str]) -> UserStates:
        """Return the stored states of users; those of newcomers begin."""
        references = [f"{self._states_view}:{name}" for name in _STATE_FEATURES]
        found = self.store.get_online_features(references, [{USER_ID: user} for user in users]).to_dict()
        begin = opening_states(self._states.models.newest, 1)
        if None in found[STATE]:
            require_published(self.store, [self._states_view])  # in an emptied store nobody seems to have a history
            if monotonic() - self._checked >= min(self._check_seconds, NEWCOMER_SECONDS):
                self._check_current()  # their states will begin with the model at hand
        expected = self._states.manifest["fingerprint"]
        columns = zip(*(found[name] for name in _STATE_FEATURES), strict=True)
        known = [
            row if row[0] is not None else (begin.vectors[0], [], [], begin.newest[0], expected) for row in columns
        ]
        vectors, items, groups, newest, fingerprints = zip(*known, strict=True)
        for user, fingerprint in zip(users, fingerprints, strict=True):
            if fingerprint != expected:
                raise FingerprintError(
                    f"view {self._states_view}, user {user!r}: expected a state of fingerprint {expected}, found "
                    f"{fingerprint}, another model's: if the view was materialised anew, start the stream again, with "
                    "the events since the end of that; else materialise it, with this event in the source"
                )
        return states_from(vectors, [had or [] for had in items], [sizes or [] for sizes in groups], newest)

    def _write(self, users: list[str], states: UserStates) -> None:
        """Publish lists first: a process that dies in between is given the events again, and they aren't late yet."""
        model = self._lists.models.newest
        predicted = next_items_of(
            model, states, self._lists.settings.top_n, filter_seen=self._lists.filter_seen, device=self._device
        )
        for producer, columns, publish in (
            (self._lists, self._lists.columns(predicted, model), self._publish_lists),
            (self._states, self._states.columns(states), self._publish_states),
        ):
            schema = stored_schema(producer)
            made = {
                **{name: columns.column(name) for name in columns.schema.names},
                USER_ID: pa.array(users, pa.string()),
                EVENT_TIMESTAMP: pa.array(states.newest + 1).cast(TIMESTAMP),
                CREATED_TIMESTAMP: pa.array([self._now()] * len(users), TIMESTAMP),
            }
            missing = {name: pa.nulls(len(users), schema.field(name).type) for name in schema.names if name not in made}
            publish(pa.table([(made | missing)[name] for name in schema.names], schema=schema))

    def _late(self, events: pa.Table, users: list[str], newest: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        times = events[EVENT_TIMESTAMP].cast(pa.int64()).to_numpy()
        place = pc.index_in(events[USER_ID], value_set=pa.array(users, pa.string())).to_numpy()
        cutoff = to_micros(self._states.models.newest.trained_until)
        late: npt.NDArray[np.bool_] = (times <= newest[place]) | (times < cutoff)
        return late

    def _check_times(self, events: pa.Table) -> None:
        latest = self._now() + FUTURE_TOLERANCE
        ahead = pc.greater(events[EVENT_TIMESTAMP], pa.scalar(latest, TIMESTAMP))
        if pc.any(ahead).as_py():
            row = pc.index(ahead, True).as_py()
            raise RowError(
                f"event of user {events[USER_ID][row].as_py()!r} at {events[EVENT_TIMESTAMP][row].as_py()}: lies in "
                "the future; a row with such a stamp would block later ones: correct the event's time"
            )

    def _in_its_place(self, view: str) -> str:
        """Return the view that is read in the place of ``view``."""
        try:
            return current_version(view, read_versions(self._config.root / VERSIONS_FILE))
        except (ValueError, yaml.YAMLError) as error:
            raise ConfigError(str(error)) from None

    def _check_current(self) -> None:
        """Refuse to go on with views that were moved, declared anew, or filled by another model."""
        for view in self._followed:
            if (current := self._in_its_place(view)) not in self._tags:
                raise FingerprintError(
                    f"views {', '.join(self._tags)}: {current} is read in their place now; start the stream again, "
                    "with the events since the end of that view's materialisation"
                )
        self.store.refresh_registry()
        for view, tag in self._tags.items():
            found = ProducerTag.of(view, known_view(self.store, view).tags)
            if found != tag:
                raise FingerprintError(f"view {view}: was {tag}, and is {found} now; start the stream again")
        for producer, view in zip((self._lists, self._states), self._tags, strict=True):
            self._check_ledger(view, producer.manifest["fingerprint"])
        self._checked = monotonic()

    def _check_whole(self, view: Any) -> None:
        """Refuse a view that lacks rows from the model's training cut-off: their users would seem to be newcomers."""
        cutoff = self._states.models.newest.trained_until
        starts = [as_utc(start) for start, _ in view.materialization_intervals]
        if not starts or min(starts) >= cutoff:
            found = f"from {min(starts)} on only" if starts else "never"
            raise ConfigError(
                f"view {view.name} was materialised {found}, so that users with a history would seem to have none; run "
                f"`feast materialize START END -v {view.name}`, START before the model's training cut-off {cutoff}"
            )

    def _producer(self, view: str, tag: ProducerTag) -> Any:
        producer = open_producer(view, tag, self._config, device=self._device)
        self._check_ledger(view, producer.manifest["fingerprint"])
        return producer

    def _check_ledger(self, view: str, fingerprint: str) -> None:
        ledger = open_ledger(self._config)
        try:
            ledger.check(view, fingerprint)
        finally:
            ledger.close()

    def _publisher(self, view: Any) -> OnlinePublisher:
        return OnlinePublisher(self.store.config, self.store.provider.online_store, view)


def _check_fields(view: Any) -> None:
    missing = set(_STATE_FEATURES) - {field.name for field in view.features}
    if missing:
        raise ConfigError(
            f"view {view.name}: has no field {', '.join(sorted(missing))}; declare a new view with the fields that "
            f"the template gives {USER_STATES}, `feast apply`, materialise it and hand its name over as `states`"
        )
