"""One node: peer, driver, transport, engine and link, started and stopped in order.

Everything runs in one nursery. The order of starting is: driver, transport (so that a taken port is known before a
model is loaded), offer, link; the engine loads beside them, for as long as it takes, and what it has loaded is offered
then. Stopping is announced to everyone before anything is torn down.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import structlog
import trio

import infernet
from infernet.answers import AnswerEvent, Answers, AskOptions
from infernet.being_reached import BeingReached
from infernet.carriers.link import LinkCarrier
from infernet.carriers.loopback import Loopback
from infernet.carriers.transport import TransportCarrier
from infernet.cluster.membership import Cluster
from infernet.config import Config
from infernet.coordinator_client import RequestSigner
from infernet.discovery.contract import Source
from infernet.discovery.coordinator_list import CoordinatorList
from infernet.discovery.dht import Dht, DhtSettings
from infernet.discovery.discovery import Discovery
from infernet.discovery.joining import Joining
from infernet.discovery.mdns import Mdns
from infernet.discovery.saved import SavedPeers
from infernet.draining import Draining, JobsLeft
from infernet.driver import AppEffect, Contact, Driver, MoneyEffect, wall_ms
from infernet.engines.contract import DividesCards, Engine, EngineUnavailable, RunsOnCards, models_loading
from infernet.hardware.contract import Card
from infernet.hardware.watch import Watch
from infernet.ipc.inspection import Inspection
from infernet.ipc.why import WhyRequest, article
from infernet.kept_experience import KeptExperience
from infernet.money.client import MoneyClient
from infernet.money.performer import Money
from infernet.money.store import MoneyStore
from infernet.opening_hours import OpeningHours
from infernet.own_addresses import peer_of, uses_local_network
from infernet.proxy import proxy_for
from infernet.saying import Saying
from infernet.store import Store
from infernet.tally import Tally
from infernet.transport.contract import Transport
from protocol import events as e
from protocol.effects import (
    Drained,
    HeartbeatSigned,
    OwnAddresses,
    ReachabilityLearnt,
    RecordLearnt,
    SearchWanted,
)
from protocol.envelope import SigningKey
from protocol.errors import LocalProtocolError
from protocol.gpus import as_words
from protocol.ids import NodeId
from protocol.peer import Peer, PeerConfig
from protocol.records import FreePolicy, Gpu, ModelOffer, Role, Signed
from protocol.sealing import HpkeSealer

log = structlog.get_logger(__name__)

AGENT: Final = f"infernet/{infernet.__version__}"
# On stopping, offline heartbeats, receipts and resets get this long to leave.
FAREWELL_S: Final = 1.5
FAREWELL_FLUSH_S: Final = 0.1
CLAIMS_FAREWELL_S: Final = 3.0
# What changes right after the first heartbeat is gossiped five seconds later, so an engine that is up in a moment is
# to be in it.
FIRST_OFFER_S: Final = 1.0
_FREE_POLICIES: Final = {"nobody": FreePolicy.NOBODY, "known": FreePolicy.KNOWN, "all": FreePolicy.ALL}


class Node:
    """A running node. `assembly` makes it."""

    def __init__(
        self,
        config: Config,
        key: SigningKey,
        *,
        transport: Transport | None,
        engine: Engine | None,
        store: Store | None = None,
        money_store: MoneyStore | None = None,
        hardware: Watch | None = None,
        clock_ms: Callable[[], int] = wall_ms,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config
        self.node_id = key.node
        self._engine = engine
        self._hardware = hardware
        self._saved = SavedPeers(store, clock_ms) if store is not None else None
        self._transport = transport
        self._clock_ms = clock_ms
        self._rng = rng or random.SystemRandom()
        self._heartbeat: Signed | None = None
        self._link: LinkCarrier | None = None
        self._stop_requested = trio.Event()
        self._load_over = trio.Event()
        self._not_loaded: EngineUnavailable | None = None
        self._proxy = proxy_for(config, config.coordinator_url) if config.coordinator_url is not None else None
        now = e.Now(trio.current_time(), clock_ms())
        settings = PeerConfig(AGENT, reports=config.reports, forwards=config.forward)
        peer = Peer(settings, key, HpkeSealer(), self._rng, now)
        self.driver = Driver(peer, engine=engine, observe=self._observe, clock_ms=clock_ms)
        self._kept = KeptExperience(store, peer.experience.reputation) if store is not None else None
        self._loopback = Loopback(self.driver)
        self._answers = Answers(self.driver)
        self._joining = Joining(self.driver)
        self._draining = Draining(self.driver, self.stop)
        self._hours = OpeningHours(config, clock_ms, changed=self._offer)
        self._saying = Saying(config, engine, clock_ms, changed=self._offer)
        self._tally = Tally()
        #: Called each time that the coordinator has taken the link; set it at any time.
        self.on_linked: Callable[[], None] = lambda: None
        self._reached = BeingReached(config, key.node, transport, post=self.driver.post, changed=self._offer)
        self.driver.on_contact = self._on_contact
        # One for everything: the coordinator takes each number of this key once.
        self._signer = (
            RequestSigner(key, config.coordinator_key, clock_ms) if config.coordinator_key is not None else None
        )
        self._money = self._make_money(money_store)
        self._dht = self._make_dht(store)
        self._cluster = Cluster(config, engine, transport, self.driver)
        self._discovery = Discovery(self.driver, self._sources(), self._rng)
        self._inspection = Inspection(
            config,
            self.driver,
            engine=engine,
            models=self._models,
            transport=transport,
            reached=self._reached,
            discovery=self._discovery,
            dht=self._dht,
            draining=self._draining,
            money=self._money,
            gpus=self._gpus,
            hours=self._hours,
            tally=self._tally,
            cluster=self._cluster,
        )

    # ------------------------------------------------------------ life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start everything and serve until `stop` is called; being cancelled ends it without goodbye.

        The engine loads meanwhile, as `wait_loaded` tells. Raises TransportError (a taken port above all) and
        StoreError before `started()`, and EngineUnavailable when the first load has failed.
        """
        self._inspection.started_at_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.driver.run)
            await nursery.start(self._loopback.run)
            if self._money is not None:
                # Before anybody asks or is served: what was signed and given before must be known.
                await self._money.restore()
                await nursery.start(self._money.run)
            if self._transport is not None:
                self._inspection.carrier = TransportCarrier(self._transport, self.driver, self._cluster.services)
                await nursery.start(self._inspection.carrier.run)
            if self._hardware is not None:
                # Beside the engine, which seldom is up before them: the first offer is to have them.
                self._hardware.on_change, self._hardware.on_gone = self._offer, self._on_cards_gone
                nursery.start_soon(self._hardware.run)
            nursery.start_soon(self._load, nursery)
            with trio.move_on_after(FIRST_OFFER_S):
                await self._load_over.wait()
            if self._not_loaded is not None:
                raise self._not_loaded
            self._introduce()
            nursery.start_soon(self._discovery.run)
            nursery.start_soon(self._reached.run)
            nursery.start_soon(self._draining.run)
            nursery.start_soon(self._hours.run)
            nursery.start_soon(self._saying.run)
            if self._kept is not None:
                nursery.start_soon(self._kept.run)
            self._start_link(nursery)
            task_status.started()
            await self._stop_requested.wait()
            await self._say_goodbye()
            if self._saved is not None:
                await self._saved.save()
            if self._kept is not None:
                await self._kept.save()
            nursery.cancel_scope.cancel()
        if self._not_loaded is not None:
            raise self._not_loaded

    async def _load(self, nursery: trio.Nursery) -> None:
        """Start the engine, if there is one; a node whose engine cannot load at all ends."""
        if self._engine is not None:
            self._engine.on_change = self._offer
            try:
                await nursery.start(self._engine.run, self.driver.report)
            except EngineUnavailable as error:
                # What ends anyhow ends as it was asked to.
                if not self._stop_requested.is_set():
                    self._not_loaded = error
                    self.stop()
        self._load_over.set()

    @property
    def is_loading(self) -> bool:
        """Whether the engine loads for the first time."""
        return not self._load_over.is_set()

    def models_loading(self) -> tuple[str, ...]:
        """What is to be served and is not yet, or not again."""
        return models_loading(self._engine)

    async def wait_loaded(self) -> bool:
        """Wait until the engine has loaded what it can, and say whether this node goes on."""
        await self._load_over.wait()
        return not self._stop_requested.is_set()

    @property
    def is_linked(self) -> bool:
        """Whether the link to the coordinator stands."""
        return self._link is not None and self._link.connected

    def stop(self) -> None:
        """End gracefully: running jobs get their receipts, peers hear that this node goes offline."""
        self._stop_requested.set()

    async def wait_stopping(self) -> None:
        """Wait until the node begins to end."""
        await self._stop_requested.wait()

    def drain(self, limit_s: float) -> None:
        """Take no more jobs, and `stop` when the last one has ended or after this long."""
        self._draining.begin(limit_s)

    def pause(self, until_told: bool) -> None:
        """Take no new jobs until told to, or again. Raises LocalProtocolError for one that takes none anyway."""
        if self.config.role is not Role.PROVIDER:
            raise LocalProtocolError(f"this node is {article(self.config.role)}, which runs no jobs for others")
        if self._draining.has_begun or self._stop_requested.is_set():
            raise LocalProtocolError("this node is ending, and takes no more jobs: start it again when it has ended")
        self._hours.pause(until_told=until_told)

    def jobs_left(self) -> JobsLeft:
        """What a node that drains has still to do."""
        return self._draining.left()

    async def _say_goodbye(self) -> None:
        self.driver.command(e.Shutdown())
        with trio.move_on_after(FAREWELL_S):
            await self.driver.wait_for(lambda: self.driver.peer.statistics().jobs_running == 0)
            # What the peer said last is in the outboxes of its streams; their writers need a moment.
            await trio.sleep(FAREWELL_FLUSH_S)
        if self._money is not None:
            # A node may be away for longer than its leases can be claimed on.
            with trio.move_on_after(CLAIMS_FAREWELL_S):
                await self._money.settle()
            await self._money.flush()

    def _introduce(self) -> None:
        """Tell the peer whom we know and what we offer."""
        config = self.config
        known = {*config.allow, *((config.coordinator_key,) if config.coordinator_key is not None else ())}
        self.driver.command(e.Allow(frozenset(known)))
        if self._transport is not None:
            self._transport.trust({*known, *map(peer_of, config.peers), *self._cluster.known})
        self._permit((*config.peers, *self._cluster.addresses))
        if self._money is not None:
            self._use_coordinator(self._money)
        # Those whom the owner names, or was invited by, before anything is asked.
        for address in config.peers:
            self.driver.command(e.LearnAddresses(peer_of(address), (address,), connect=True))
        self._offer()

    def _sources(self) -> list[Source]:
        """How this node looks for others, beside gossip and those whom its owner names."""
        sources: list[Source] = [self._saved] if self._saved is not None else []
        if self.config.coordinator_url is not None:
            sources.append(CoordinatorList(self.config.coordinator_url, self._proxy))
        if self._saved is not None and self._transport is not None and uses_local_network(self.config):
            sources.append(Mdns(self._addresses_on_links, self._transport.permit, self._rng))
        if self._dht is not None:
            sources.append(self._dht)
        return sources

    def _make_dht(self, store: Store | None) -> Dht | None:
        config = self.config
        # A node that only asks a question does not stay long enough; and the DHT's own process knows no proxy.
        if not config.dht or store is None or not config.p2p_enabled or config.proxy is not None:
            return None
        port = config.dht_port if config.dht_port is not None else config.p2p_port and config.p2p_port + 1
        hosts = config.listen_hosts if config.advertise else ()
        settings = DhtSettings(hosts, port, config.dht_peers, config.allow_private)
        return Dht(settings, self.advertised_addresses, store, self._rng, changed=self._offer)

    def _make_money(self, store: MoneyStore | None) -> Money | None:
        config = self.config
        if store is None or config.coordinator_url is None or self._signer is None:
            return None
        client = MoneyClient(config.coordinator_url, self._signer, self._registration, self._proxy)
        return Money(store, self._signer.coordinator, client, self.driver, self._on_money_changed)

    def _on_money_changed(self) -> None:
        """Nobody is to pay us, and we pay nobody, while that cannot be written down."""
        assert self._money is not None
        self._use_coordinator(self._money)
        self._offer()

    def _use_coordinator(self, money: Money) -> None:
        self.driver.command(e.UseCoordinator(None if money.trouble else money.coordinator))

    def _addresses_on_links(self) -> list[str]:
        """What may be told in the networks of this machine."""
        return self.addresses() if self.config.advertise else []

    def _on_contact(self, contact: Contact) -> None:
        self._joining.observe(contact)
        if isinstance(contact, e.PeerConnected) and contact.peer == self.config.coordinator_key:
            self.on_linked()
        if isinstance(contact, e.PeerConnected) and not contact.inbound and self._saved is not None:
            self._saved.reached(contact.peer, contact.address)

    def _start_link(self, nursery: trio.Nursery) -> None:
        config = self.config
        if config.coordinator_url is None or self._signer is None or config.role is Role.CLIENT:
            return
        self._link = LinkCarrier(
            config.coordinator_url, self._signer, self.driver, self._rng, self._registration, self._proxy
        )
        self._inspection.link = self._link
        if self._money is not None:
            self._money.use_link(self._link)
        if self._heartbeat is not None:
            self._link.announce(self._heartbeat)
        nursery.start_soon(self._link.run)

    # ------------------------------------------------------------ what we say about ourselves

    def _offer(self) -> None:
        """Sign and spread what this node offers now; nothing after the goodbye, which an engine may outlive."""
        if self._stop_requested.is_set():
            return
        config = self.config
        offer = e.Offer(
            role=config.role,
            name=config.name,
            agent=AGENT,
            availability=self._hours.availability,
            gpus=self._gpus(),
            addresses=tuple(self.advertised_addresses()),
            models=self._models(),
            free_policy=_FREE_POLICIES[config.free_for],
            relays=self._reached.relays,
            coordinators=self._coordinators(),
            dht_address=next(iter(self._dht.addresses), None) if self._dht is not None else None,
            models_loading=self.models_loading(),
            said=self._saying.of(self._models()),
        )
        self.driver.command(e.SetOffer(offer))

    def _coordinators(self) -> tuple[NodeId, ...]:
        """Whose leases are taken: nobody's where nothing has a price, or what comes in cannot be kept."""
        if self._money is None or self._money.trouble or all(model.is_free for model in self._models()):
            return ()
        return (self._money.coordinator,)

    def _models(self) -> tuple[ModelOffer, ...]:
        return self._engine.models() if self._engine is not None else ()

    def _gpus(self) -> tuple[Gpu, ...]:
        return self._hardware.announced if self._hardware is not None else ()

    def _on_cards_gone(self, cards: Sequence[Card]) -> None:
        """What was served on a card that is gone is offered no more, before the engine finds out in a job."""
        engine: object = self._engine
        if isinstance(engine, DividesCards):
            engine.lose_cards(cards)
        elif isinstance(engine, RunsOnCards):
            engine.card_gone()

    def _registration(self) -> dict[str, object]:
        return registration(self.config, self.node_id, self._models(), self._gpus())

    def addresses(self) -> list[str]:
        """The multiaddrs that this node really listens on, for people on the same machine or network."""
        return self._transport.addresses() if self._transport is not None else []

    def advertised_addresses(self) -> list[str]:
        """The multiaddrs that the heartbeat publishes."""
        return self._reached.advertised()

    def learn_peer(self, address: str) -> NodeId:
        """Learn the full multiaddr of a peer, dialled when it is asked; gives who it is. Raises LocalProtocolError."""
        node = peer_of(address)
        self._permit([address])
        self.driver.command(e.LearnAddresses(node, (address,)))
        return node

    def _permit(self, addresses: Iterable[str]) -> None:
        """These addresses were given by the owner: they may lead into networks of ours."""
        for address in addresses:
            if self._transport is not None:
                self._transport.permit(address)

    async def join(self, peers: Mapping[NodeId, Sequence[str]]) -> dict[NodeId, str]:
        """Keep connections to these nodes; for each "" once it is connected, or why it is not."""
        self._permit(itertools.chain.from_iterable(peers.values()))
        return await self._joining.join(peers)

    # ------------------------------------------------------------ asking

    def ask(self, options: AskOptions) -> AbstractAsyncContextManager[AsyncIterator[AnswerEvent]]:
        """Ask a question: inside, an iterator over what happens to the job, to JobDone or JobFailed.

        Leaving early cancels the job. Raises LocalProtocolError for a request that no provider could run.
        """
        if self._draining.has_begun:
            raise LocalProtocolError("this node is stopping and takes no new questions")
        # What it answers itself costs nothing.
        if options.spend_uusd_max and options.provider != self.node_id:
            self.money.check_spending()
        return self._answers.ask(options)

    @property
    def money(self) -> Money:
        """This node's money. Raises LocalProtocolError where there is none."""
        if self._money is None:
            raise LocalProtocolError(
                "no coordinator holds money for this node: `infernet login --url URL` names one, and holds after "
                "`infernet stop` and `infernet start`"
            )
        return self._money

    @property
    def can_pay(self) -> bool:
        """Whether a coordinator holds money for this node, and what is signed can be written down."""
        return self._money is not None and not self._money.trouble

    def _observe(self, effect: AppEffect) -> None:
        """Take what the peer says to the application."""
        is_linked = self._link.connected if self._link is not None else None
        self._tally.observe(effect, trio.current_time(), is_linked=is_linked)
        if isinstance(effect, HeartbeatSigned):
            self._heartbeat = effect.record
            if self._link is not None:
                self._link.announce(effect.record)
            if self._dht is not None:
                self._dht.offer(effect.record)
        elif isinstance(effect, RecordLearnt):
            if self._saved is not None:
                self._saved.learn(effect.heartbeat, effect.record)
            if self._dht is not None:
                self._dht.meet(effect.heartbeat)
        elif isinstance(effect, SearchWanted):
            if self._dht is not None:
                self._dht.search(effect.model)
        elif isinstance(effect, (ReachabilityLearnt, OwnAddresses)):
            self._reached.observe(effect)
        elif isinstance(effect, Drained):
            self._draining.drained()
        elif isinstance(effect, MoneyEffect):
            # Without a coordinator there are no leases, and nothing comes of none.
            assert self._money is not None, "an effect about money in a node that has none"
            self._money.perform(effect)
        else:
            self._answers.deliver(effect)

    # ------------------------------------------------------------ what people ask about it

    def status(self) -> dict[str, Any]:
        """What `infernet status --json` prints."""
        return self._inspection.status()

    def live(self) -> dict[str, Any]:
        """What `infernet tui` shows. Foreign text is not cleaned."""
        return self._inspection.live()

    def find_cards(self) -> tuple[Card, ...]:
        """The cards of this machine as they are now, where this node has a use for them; waits for their drivers."""
        return tuple(self._hardware.find(self._hardware.machine)) if self._hardware is not None else ()

    def why(self, request: WhyRequest) -> dict[str, Any]:
        """What `infernet why --json` prints. Foreign text is not cleaned."""
        return self._inspection.why(request)

    def peers(self) -> list[dict[str, Any]]:
        """Every node whose heartbeat is held: what `infernet peers --json` prints. Foreign text is not cleaned."""
        return self._inspection.peers()


def registration(
    config: Config, node: NodeId, models: Sequence[ModelOffer], gpus: Sequence[Gpu] = ()
) -> dict[str, object]:
    """What a coordinator is told of a node when it registers."""
    fields: dict[str, object] = {
        "role": config.role.name.lower(),
        # The form that the coordinator keeps free for this key: any other could be taken by somebody else first.
        "node_id": f"{config.role.name.lower()}-{node.hex()[:16]}",
        "name": config.name,
        "specs": {
            "gpus": [as_words(gpu) for gpu in gpus],
            "gpu_count": len(gpus),
            "served_models": [model.name for model in models],
        },
    }
    if config.advertise and config.address is not None:
        fields |= {"address": config.address, "port": config.p2p_port}
    return fields
