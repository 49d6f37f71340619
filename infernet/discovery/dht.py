"""Who serves which model, looked up in a distributed hash table: `--dht`, off by default.

The library that speaks Kademlia is known to have faults, so it runs in a process of its own, which this source starts,
watches and starts again. What comes from there is a hint like any other.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from infernet.discovery.contract import Finds
from infernet.discovery.dht_frames import (
    ADDRESSES_MAX,
    BadDhtFrame,
    Begin,
    Begun,
    Found,
    Meet,
    NotBegun,
    Ping,
    Pong,
    Publish,
    Report,
    Search,
)
from infernet.discovery.dht_process import DhtProcess, open_dht_process, worker_command
from infernet.discovery.dht_records import (
    REPUBLISH_S,
    decode_heartbeat,
    dht_address_of,
    encode_heartbeat,
    model_key,
)
from infernet.host.files import reason_of
from infernet.store import Store, StoreError
from infernet.transport.addresses import parse_tcp
from protocol import codec
from protocol.errors import RemoteProtocolError
from protocol.formats.text import clean_line
from protocol.records import Availability, Heartbeat, Signed

log = structlog.get_logger(__name__)

RESTART_S_MIN: Final = 1.0
RESTART_S_MAX: Final = 300.0
# A process that lived this long has not died of how it was started.
STABLE_S: Final = 60.0
PING_S: Final = 15.0
PONG_TIMEOUT_S: Final = 30.0
# From the start of the process, whose library takes a second or ten to load.
BEGIN_TIMEOUT_S: Final = 60.0
# The same model is not looked up again sooner than this.
SEARCH_PAUSE_S: Final = 10.0
SEARCHED_MAX: Final = 64
# A node that changes what it offers all the time says so this often.
PUBLISH_PAUSE_S: Final = 30.0
SAVE_PEERS_S: Final = 300.0
_STORED_PEERS: Final = "dht_peers"


@dataclass(frozen=True)
class DhtSettings:
    """Where the DHT process listens, if anywhere, and with whom it begins."""

    listen_hosts: tuple[str, ...]
    port: int
    peers: tuple[str, ...]
    allow_private: bool


class Dht:
    """A source, which is also told what to publish and what to search for."""

    name = "dht"
    per_minute = 120

    def __init__(
        self,
        settings: DhtSettings,
        advertised: Callable[[], list[str]],
        store: Store | None,
        rng: random.Random,
        *,
        changed: Callable[[], None],
        command: Sequence[str] | None = None,
    ) -> None:
        """`advertised` gives the full multiaddrs that this node publishes: none when it is not to be found.

        `changed` is called when there are other `addresses`.
        """
        self._settings = settings
        self._advertised = advertised
        self._store = store
        self._rng = rng
        self._changed = changed
        self._command = list(command or worker_command())
        self._process: DhtProcess | None = None
        self._heartbeat: tuple[Heartbeat, Signed] | None = None
        self._published: tuple[object, ...] | None = None
        self._published_s = -REPUBLISH_S
        self._searched_s: dict[str, float] = {}
        self._met: dict[str, None] = {}
        self._ponged_s = 0.0
        self._save_at_s = 0.0
        #: Where the process is in the DHT, for others to begin with.
        self.addresses: tuple[str, ...] = ()
        #: How often it had to be started again.
        self.restarts = 0

    def status(self) -> dict[str, object]:
        """For `infernet status --json`."""
        return {
            "pid": self._process.pid if self._process is not None else None,
            "addresses": list(self.addresses),
            "restarts": self.restarts,
        }

    # ------------------------------------------------------------ what the node tells

    def offer(self, record: Signed) -> None:
        """This node has signed a new heartbeat: what others find of it."""
        self._heartbeat = (codec.decode_record(record.body, Heartbeat), record)
        self._publish()

    def search(self, model: str) -> None:
        """Look for providers of a model; what is found goes where all finds go."""
        now_s = trio.current_time()
        if self._process is None or now_s - self._searched_s.get(model, -SEARCH_PAUSE_S) < SEARCH_PAUSE_S:
            return
        self._searched_s.pop(model, None)
        self._searched_s[model] = now_s
        if len(self._searched_s) > SEARCHED_MAX:
            del self._searched_s[next(iter(self._searched_s))]
        self._process.post(Search(model_key(model)))

    def meet(self, heartbeat: Heartbeat) -> None:
        """Another node is known, and may be in the DHT, too."""
        address = dht_address_of(heartbeat)
        if address is not None and address not in self._met and len(self._met) < ADDRESSES_MAX:
            self._met[address] = None
            if self._process is not None:
                self._process.post(Meet((address,)))

    # ------------------------------------------------------------ the process

    async def run(self, finds: Finds) -> None:
        pause_s = RESTART_S_MIN
        while True:
            started_s = trio.current_time()
            reason = await self._run_once(finds)
            log.warning("dht.ended", reason=reason)
            self.restarts += 1
            if trio.current_time() - started_s > STABLE_S:
                pause_s = RESTART_S_MIN
            await trio.sleep(pause_s * (0.5 + self._rng.random()))
            pause_s = min(RESTART_S_MAX, 2 * pause_s)

    async def _run_once(self, finds: Finds) -> str:
        """Run a process to its end; gives why it ended."""
        begin = await self._begin()
        try:
            async with open_dht_process(self._command) as process:
                process.post(begin)
                self._process, self._published = process, None
                self._ponged_s = trio.current_time() + BEGIN_TIMEOUT_S - PONG_TIMEOUT_S
                reasons: list[str] = []
                async with trio.open_nursery() as nursery:

                    async def end_with(ending: Awaitable[str]) -> None:
                        reasons.append(await ending)
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(end_with, self._watch(process, begin))
                    nursery.start_soon(end_with, self._listen(process, finds))
                return reasons[0]
        except OSError as error:
            return f"it cannot be started ({reason_of(error)})"
        finally:
            self._process, self.addresses = None, ()

    async def _listen(self, process: DhtProcess, finds: Finds) -> str:
        """Take what the process says, to its end; gives why it ended."""
        try:
            while (reports := await process.receive()) is not None:
                for report in reports:
                    await self._take(report, finds)
        except BadDhtFrame as error:
            return f"it broke its contract ({error})"
        return await process.why_gone()

    async def _begin(self) -> Begin:
        settings = self._settings
        known = dict.fromkeys((*settings.peers, *self._met, *await self._load_peers()))
        peers = tuple(known)[:ADDRESSES_MAX]
        return Begin(settings.listen_hosts, settings.port, self._hosts(), peers, settings.allow_private)

    def _hosts(self) -> tuple[str, ...]:
        """Where this node is dialled directly."""
        hosts = (host for address in self._advertised() if (host := _host_of(address)) is not None)
        return tuple(dict.fromkeys(hosts))

    async def _watch(self, process: DhtProcess, begin: Begin) -> str:
        """Ask now and then whether it is alive, publish again what must not be forgotten; gives why it is to end."""
        started_s = trio.current_time()
        for number in itertools.count():
            if trio.current_time() - self._ponged_s >= PONG_TIMEOUT_S:
                return f"it did not answer for {PONG_TIMEOUT_S:g} s"
            if self._hosts() != begin.announced_hosts and trio.current_time() - started_s >= STABLE_S:
                # It takes part under the addresses that it began with.
                return "this node is reached at other addresses now"
            process.post(Ping(number))
            self._publish()
            await trio.sleep(PING_S)
        raise AssertionError

    async def _take(self, report: Report, finds: Finds) -> None:
        match report:
            case Begun():
                self.addresses = report.addresses
                log.info("dht.begun", addresses=[clean_line(address) for address in report.addresses])
                self._changed()
            case NotBegun():
                log.warning("dht.not_begun", reason=clean_line(report.reason))
            case Found():
                await self._take_find(report, finds)
            case Pong():
                self._ponged_s = max(self._ponged_s, trio.current_time())
                await self._save_peers(report.peers)

    async def _take_find(self, found: Found, finds: Finds) -> None:
        await finds.addresses(found.node, found.addresses)
        if found.record is not None:
            try:
                await finds.record(decode_heartbeat(found.record))
            except RemoteProtocolError as error:
                log.info("dht.bad_record", reason=str(error))

    # ------------------------------------------------------------ publishing

    def _publish(self) -> None:
        """Have the process say what this node offers now, if that is news to it and not too soon."""
        if self._process is None or self._heartbeat is None:
            return
        heartbeat, record = self._heartbeat
        addresses = tuple(self._advertised())
        # SPEC 03: A node MUST publish only addresses and heartbeats that it gives everybody, and nothing while it takes
        #   no jobs.
        is_open = heartbeat.availability is Availability.AVAILABLE and bool(addresses)
        names = tuple(dict.fromkeys(offer.name for offer in heartbeat.models)) if is_open else ()
        offered = (addresses if names else (), names)
        now_s = trio.current_time()
        age_s = now_s - self._published_s
        if self._published is None:
            if not names:
                return  # nothing was said, and nothing is to be
        elif age_s < (REPUBLISH_S if offered == self._published else PUBLISH_PAUSE_S):
            return
        self._published, self._published_s = offered, now_s
        self._process.post(Publish(heartbeat.node, offered[0], encode_heartbeat(record), tuple(map(model_key, names))))

    # ------------------------------------------------------------ peers of the DHT

    async def _load_peers(self) -> list[str]:
        if self._store is None:
            return []
        try:
            value = await trio.to_thread.run_sync(self._store.get, _STORED_PEERS)
            known = json.loads(value) if value is not None else []
        except (StoreError, ValueError) as error:
            log.warning("dht.peers_lost", reason=str(error))
            return []
        return [str(address) for address in known][:ADDRESSES_MAX]

    async def _save_peers(self, peers: tuple[str, ...]) -> None:
        now_s = trio.current_time()
        if self._store is None or not peers or now_s < self._save_at_s:
            return
        self._save_at_s = now_s + SAVE_PEERS_S
        try:
            await trio.to_thread.run_sync(self._store.put, _STORED_PEERS, json.dumps(peers).encode())
        except StoreError as error:
            log.warning("store.failed", reason=str(error))


def _host_of(address: str) -> str | None:
    """The host of a multiaddr that is dialled directly; None for a circuit."""
    try:
        return parse_tcp(address).host
    except ValueError:
        return None
