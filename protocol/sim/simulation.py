"""Builds the peers of a scenario, runs them in virtual time, and asks the judges."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from protocol.details import Said, in_steps
from protocol.envelope import SigningKey
from protocol.events import Ask, Event, LearnAddresses, Listening, Offer, SetOffer, StopAsking
from protocol.ids import JobId, NodeId
from protocol.jobs import default_sampling
from protocol.ledger import Entry
from protocol.peer import Peer, PeerConfig
from protocol.records import ChatMessage, FreePolicy, JobRequest, Kind, ModelOffer, Role
from protocol.sim.bank import Bank
from protocol.sim.checkers import Checker, Crashed, Ending, Seen, all_checkers
from protocol.sim.claim_checkers import lease_checkers
from protocol.sim.host import WALL_MS_AT_START, Host, Trace
from protocol.sim.lease_checkers import job_checkers
from protocol.sim.money_checkers import LedgerChanged, money_checkers
from protocol.sim.network import Network
from protocol.sim.reader import SharedReader
from protocol.sim.scenario import Crash, Happening, Money, Outage, Partition, Scenario, Speed, Topology
from protocol.sim.schedule import Schedule
from protocol.sim.summary import Summary

# How often a condition is looked at.
LOOK_S: Final = 0.05
EMBEDDING_INPUTS: Final = 3


class SimulationFailed(Exception):
    """A rule was broken; the message holds what broke it and the scenario that shows it again."""


class Simulation:
    """One run. The same scenario gives the same `trace`, in every process."""

    def __init__(self, scenario: Scenario, checkers: Sequence[Checker] | None = None) -> None:
        assert 0 <= scenario.providers <= scenario.peers
        self.scenario = scenario
        self.summary = Summary()
        judges_of_money = [*money_checkers(), *job_checkers(), *lease_checkers()] if scenario.money is not None else []
        self.checkers = list([*all_checkers(), *judges_of_money] if checkers is None else checkers)
        self._schedule = Schedule()
        self._trace = Trace()
        self._observers: defaultdict[type, list[Callable[[Seen], None]]] = defaultdict(list)
        observers: list[Checker | Summary] = [*self.checkers, self.summary]
        for observer in observers:
            for cls, callback in observer.interests().items():
                self._observers[cls].append(callback)
        self._reader = SharedReader()
        self.bank = Bank(SigningKey(self._rng("bank").randbytes(32), bytes)) if scenario.money is not None else None
        self.network = Network(scenario.faults, self._schedule, self._rng("network"))
        self.hosts = [self._host(index) for index in range(scenario.peers)]
        self._lives = [0] * scenario.peers
        is_public = [host.address is not None for host in self.hosts]
        self._neighbours = _wire(scenario, is_public, self._rng("topology"))
        self._crashed: dict[int, Crash] = {}
        self._laggard = 0
        self._partitions: list[frozenset[int]] = []
        starts = self._rng("starts")
        for host in self.hosts:
            # The one that all others know is there first.
            is_first = scenario.topology is Topology.STAR and host.index == 0
            at_s = starts.uniform(0.0, scenario.start_s)
            self._schedule.at(0.0 if is_first else at_s, partial(self._start, host))
        self._deposit()
        for happening in scenario.happenings:
            self._schedule.at(happening.at_s, partial(self._happen, happening))
        self._plan_jobs(self._rng("workload"))

    def _rng(self, purpose: str) -> random.Random:
        """A source of randomness of its own for each purpose, so that one more draw in one moves no other."""
        return random.Random(f"{self.scenario.seed}/{purpose}")  # noqa: S311 - to be repeated is what it is for

    # ------------------------------------------------------------ running

    @property
    def now_s(self) -> float:
        return self._schedule.now_s

    @property
    def events(self) -> int:
        """How many events were delivered to all peers together."""
        return self._trace.events

    @property
    def trace(self) -> str:
        """SHA-256 over all events delivered so far, in hexadecimal."""
        return self._trace.hexdigest()

    def run(self, until_s: float) -> None:
        """Run until this virtual instant."""
        self._schedule.run_until(until_s)

    def run_until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Run until a condition holds, or until this virtual instant; returns whether it holds."""
        while not condition():
            if self.now_s >= limit_s:
                return False
            self.run(min(self.now_s + LOOK_S, limit_s))
        return True

    def feed(self, index: int, event: Event) -> None:
        """Give a peer a command now."""
        self.hosts[index].receive(event)

    def at(self, at_s: float, index: int, event: Event) -> None:
        """Give a peer a command at this instant; it is lost when the peer is down then."""
        self._schedule.at(at_s, partial(self.feed, index, event))

    def plan(self, at_s: float, action: Callable[[], None]) -> None:
        """Have something done at this instant: by machines that a test attached to the network itself."""
        self._schedule.at(at_s, action)

    def heal(self) -> None:
        """End all faults: join what is apart, start what is down, lose no more. From here on everything must end."""
        self.network.faults = replace(self.network.faults, loss=0.0, replay=0.0)
        for inside in list(self._partitions):
            self._end_partition(inside)
        if self.bank is not None:
            self.bank.is_away = False
        for host in self.hosts:
            self.network.unclog(host.index)
            if host.peer is None:
                self._restart(host)

    def settle(self, limit_s: float) -> bool:
        """Run until no job is asked or run any more and all streams but gossip are gone, or for this long."""
        return self.run_until(self._is_at_rest, self.now_s + limit_s)

    def _is_at_rest(self) -> bool:
        return all(
            statistics.jobs_asked == statistics.jobs_running == statistics.queries == 0
            and statistics.streams <= 2 * statistics.connections
            for statistics in (host.peer.statistics() for host in self.hosts if host.peer is not None)
        )

    def has_converged(self) -> bool:
        """Whether every peer that is up holds the newest spread record of every peer that is up."""
        peers = [host.peer for host in self.hosts if host.peer is not None]
        if len(peers) < len(self.hosts) - len(self._crashed):
            return False  # not all have started
        newest = {peer.node: _sequence(peer, peer.node) for peer in peers}
        # Whoever was behind the last time is asked first: with a thousand peers that saves a million look-ups.
        peers = peers[self._laggard :] + peers[: self._laggard]
        for number, peer in enumerate(peers):
            if not all(_sequence(peer, node) == sequence >= 0 for node, sequence in newest.items()):
                self._laggard = (self._laggard + number) % len(peers)
                return False
        return True

    def violations(self) -> list[str]:
        """What the judges have found so far."""
        return [violation for checker in self.checkers for violation in checker.violations]

    def finish(self) -> None:
        """Let the judges see the end. Raises SimulationFailed with all that they found."""
        ending = Ending(
            statistics=[host.peer.statistics() for host in self.hosts if host.peer is not None],
            network_streams=self.network.open_streams,
            engine_runs=sum(host.engine.active for host in self.hosts if host.engine is not None),
            bank=self.bank,
            wall_ms=self.wall_ms(),
        )
        for checker in self.checkers:
            checker.finish(ending)
        found = self.violations()
        if found:
            raise SimulationFailed("\n".join([*found[:20], f"{len(found)} violations in {self.scenario!r}"]))

    # ------------------------------------------------------------ building

    def _host(self, index: int) -> Host:
        scenario = self.scenario
        rng = self._rng(f"peer {index}")
        network, number = divmod(index, scenario.peers_per_network)
        address = f"/ip4/{20 + (network >> 8)}.{network & 255}.{number >> 8}.{number & 255}"
        is_provider = index < scenario.providers
        is_hidden = scenario.providers - scenario.hidden_providers <= index < scenario.providers
        is_open = is_provider or self._is_aggregator(index) or self._is_relay(index) or index == 0
        publishes = is_open or rng.random() < scenario.publish_share
        skew = scenario.faults.clock_skew_ms_max
        money = scenario.money or Money()
        engine = scenario.engine
        if scenario.speeds and is_provider:
            speed = self._speed(index)
            engine = replace(engine, prompt_tokens_per_s=speed.prompt_tokens_per_s, tokens_per_s=speed.tokens_per_s)
        if is_provider and scenario.money is not None and rng.random() < money.cheating_providers:
            engine = replace(engine, failure_rate=0.0, hang_rate=1.0, output_tokens_mean=1.0)
        is_cheat = not is_provider and scenario.money is not None and rng.random() < money.cheating_askers
        return Host(
            self._schedule,
            self.network,
            self._trace,
            self._observe,
            rng,
            name=f"peer-{index}",
            listens_at=f"{address}/tcp/46337",
            address=f"{address}/tcp/46337" if publishes and not is_hidden else None,
            observed_address=f"{address}/tcp/50000",
            engine=engine if is_provider else None,
            skew_ms=rng.randint(-skew, skew),
            config=PeerConfig(
                agent="simulated/1",
                neighbours_min=scenario.neighbours_min,
                forwards=self._is_aggregator(index),
                directory_records_max=scenario.records_max,
                heartbeat_reader=self._reader,
            ),
            relays=self._is_relay(index),
            bank=self.bank,
            hides_vouchers=is_cheat,
        )

    def _deposit(self) -> None:
        if self.bank is not None and self.scenario.money is not None:
            self.bank.on_entry = self._on_entry
            for host in self.hosts:
                self.bank.deposit(host.node, self.scenario.money.deposit_uusd, self.wall_ms())

    def _on_entry(self, entry: Entry, at_ms: int) -> None:
        assert self.bank is not None
        for callback in self._observers.get(LedgerChanged, ()):
            callback(Seen(self.now_s, -1, self.bank.node, 0, LedgerChanged(entry, at_ms)))

    def wall_ms(self) -> int:
        """The true time, which is the coordinator's clock."""
        return WALL_MS_AT_START + int(self.now_s * 1000)

    def _is_aggregator(self, index: int) -> bool:
        return self.scenario.providers <= index < self.scenario.providers + self.scenario.aggregators

    def _is_relay(self, index: int) -> bool:
        first = self.scenario.providers + self.scenario.aggregators
        return first <= index < first + self.scenario.relays

    def _observe(self, host: Host, item: object) -> None:
        for callback in self._observers.get(type(item), ()):
            callback(Seen(self.now_s, host.index, host.node, self._lives[host.index], item))

    def _start(self, host: Host) -> None:
        if host.peer is not None or host.index in self._crashed:
            return
        self.network.start(host.index)
        host.start()
        if host.desk is not None:
            host.desk.start()
        host.offer = self._offer(host)
        host.receive(SetOffer(host.offer))
        if self.scenario.relays:
            host.receive(Listening((host.listens_at,), is_advertised=True))
        is_hidden_provider = host.engine is not None and host.address is None
        aggregators = filter(self._is_aggregator, range(self.scenario.peers)) if is_hidden_provider else ()
        connects = dict.fromkeys(self._neighbours[host.index], self.scenario.neighbours_min == 0)
        for index, connect in (connects | dict.fromkeys(aggregators, True)).items():
            address = self.hosts[index].address
            if address is not None:
                host.receive(LearnAddresses(self.hosts[index].node, (address,), connect=connect))

    def _offer(self, host: Host) -> Offer:
        models: tuple[ModelOffer, ...] = ()
        said: dict[str, Said] = {}
        if host.engine is not None:
            engine = self.scenario.engine
            model = self._model(host.index)
            fingerprint = hashlib.sha256(model.encode()).digest()
            kinds = (Kind.CHAT, Kind.EMBEDDING)
            money = self.scenario.money
            prices = (money.price_in_uusd, money.price_out_uusd, 0) if money is not None else (0, 0, 0)
            models = (ModelOffer(model, fingerprint, kinds, engine.context_tokens, engine.slots, *prices),)
            if self.scenario.speeds:
                said = {model: _said(self._speed(host.index))}
        others = Role.AGGREGATOR if self._is_aggregator(host.index) else Role.CLIENT
        return Offer(
            role=Role.PROVIDER if models else others,
            name=host.name,
            agent="simulated/1",
            addresses=(host.address,) if host.address is not None else (),
            models=models,
            free_policy=FreePolicy.ALL,
            relays=self._is_relay(host.index),
            coordinators=(self.bank.node,) if self.bank is not None and models else (),
            said=said,
        )

    def _speed(self, index: int) -> Speed:
        return self.scenario.speeds[index % len(self.scenario.speeds)]

    def _model(self, index: int) -> str:
        return f"model-{index % self.scenario.models}"

    # ------------------------------------------------------------ jobs

    def _plan_jobs(self, rng: random.Random) -> None:
        workload = self.scenario.workload
        at_s = workload.start_s
        for number in range(workload.jobs):
            at_s += rng.expovariate(workload.jobs_per_s)
            ask = self._ask(number, rng)
            asker = self._asker(rng)
            self.at(at_s, asker, ask)
            if rng.random() < workload.cancel_share:
                self.at(at_s + rng.expovariate(1 / workload.cancel_s_mean), asker, StopAsking(ask.job))

    def _asker(self, rng: random.Random) -> int:
        first = self.scenario.providers + self.scenario.aggregators
        return rng.randrange(first if first < self.scenario.peers else 0, self.scenario.peers)

    def _ask(self, number: int, rng: random.Random) -> Ask:
        workload = self.scenario.workload
        characters = 1 + round(rng.expovariate(1 / workload.prompt_characters_mean))
        is_embedding = rng.random() < workload.embedding_share
        if is_embedding:
            request = JobRequest(inputs=("x" * (1 + characters // EMBEDDING_INPUTS),) * EMBEDDING_INPUTS)
        else:
            request = JobRequest(messages=(ChatMessage("user", "x" * characters),))
        any_model = rng.random() < workload.any_model_share
        via = None
        if workload.via_share and rng.random() < workload.via_share:
            via = self.hosts[self.scenario.providers + rng.randrange(self.scenario.aggregators)].node
        return Ask(
            JobId(rng.randbytes(16)),
            Kind.EMBEDDING if is_embedding else Kind.CHAT,
            request,
            default_sampling(number),  # the seed names the job to the judges
            0 if is_embedding else rng.randint(1, workload.output_tokens_max),
            model=None if any_model else self._model(rng.randrange(self.scenario.models)),
            timeout_s=workload.timeout_s,
            via=via,
            spend_uusd_max=self._spend_uusd(rng),
        )

    def _spend_uusd(self, rng: random.Random) -> int:
        money = self.scenario.money
        return money.spend_uusd_max if money is not None and rng.random() < money.paid_share else 0

    # ------------------------------------------------------------ faults

    def _happen(self, happening: Happening) -> None:
        if isinstance(happening, Crash):
            self._crash(happening)
        elif isinstance(happening, Outage):
            self._go_away(happening)
        elif isinstance(happening, Partition):
            inside = self.network.partition(happening.peers)
            self._partitions.append(inside)
            self._schedule.at(self.now_s + happening.lasts_s, partial(self._end_partition, inside))
        else:
            self.network.clog(happening.peer)
            self._schedule.at(self.now_s + happening.lasts_s, partial(self.network.unclog, happening.peer))

    def _go_away(self, outage: Outage) -> None:
        assert self.bank is not None, "an outage of nobody"
        self.bank.is_away = True
        self._schedule.at(self.now_s + outage.lasts_s, partial(self._come_back, outage))

    def _come_back(self, outage: Outage) -> None:
        assert self.bank is not None
        if self.bank.is_away:
            self.bank.resume(round(outage.lasts_s * 1000), self.wall_ms())

    def _end_partition(self, inside: frozenset[int]) -> None:
        if inside in self._partitions:
            self._partitions.remove(inside)
            self.network.heal(inside)

    def _crash(self, crash: Crash) -> None:
        host = self.hosts[crash.peer]
        if host.peer is None:
            return
        self._observe(host, Crashed())
        self._crashed[crash.peer] = crash
        self._lives[crash.peer] += 1
        host.stop()
        self.network.crash(crash.peer, silent=crash.is_silent)
        if crash.restarts_after_s is not None:
            self._schedule.at(self.now_s + crash.restarts_after_s, partial(self._restart, host))

    def _restart(self, host: Host) -> None:
        if host.peer is None:
            self._crashed.pop(host.index, None)
            self._start(host)


def _said(speed: Speed) -> Said:
    """What a provider says of its own speed."""
    return Said(
        prompt_tokens_per_s=in_steps(speed.prompt_tokens_per_s * speed.boast),
        tokens_per_s=in_steps(speed.tokens_per_s * speed.boast),
    )


def _sequence(peer: Peer, node: NodeId) -> int:
    entry = peer.directory.get(node)
    return entry.heartbeat.sequence if entry is not None else -1


def _wire(scenario: Scenario, is_public: Sequence[bool], rng: random.Random) -> list[list[int]]:
    """Whom each peer knows at the start, by index; only those who can be dialled are of use."""
    known: list[list[int]] = []
    public: list[int] = []
    for index in range(scenario.peers):
        if scenario.topology is Topology.STAR:
            known.append(public[:1])
        elif scenario.topology is Topology.RANDOM:
            known.append(sorted(rng.sample(public, min(scenario.degree, len(public)))))
        else:
            known.append(public[-1:])
        if is_public[index]:
            public.append(index)
    if scenario.topology is Topology.RING and len(public) > 2:
        known[0] = public[-1:]
    return known
