"""What can go wrong with a network of real processes, done to one at random, and what must hold all the same."""

from __future__ import annotations

import random
import re
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from _dev_network_faults import BLACKHOLE, CUT, NONE, Faults
from _dev_network_nodes import Answer, NodeProcess
from _environment import Failure
from tests.helpers_cluster import Cluster
from tests.helpers_engine import WORDS

HOUR_MS = 3_600_000
# Jobs take a moment, so that most faults hit some in the middle.
TOKENS_MAX = 60
QUESTIONS_AT_ONCE = 2
# As when people ask: what ends a job before must be that somebody noticed.
JOB_TIMEOUT_S = 600.0
PAUSE_S = 0.3
REASONS_SHOWN = 8
# What the log of a node must not hold after anything that the network can do to it.
FORBIDDEN = re.compile(r"Traceback|in a way that we do not know|\"level\": \"(?:error|critical)\"|the node ended")


@dataclass
class Asked:
    """One question of the load, and how it went; no answer yet while it is open."""

    node: str
    model: str
    tokens: int
    at_s: float
    answer: Answer | None = None
    ended: trio.Event = field(default_factory=trio.Event, repr=False)

    @property
    def is_right(self) -> bool:
        """A whole answer is exactly what the model says, wherever it was continued."""
        assert self.answer is not None
        words = [WORDS[index % len(WORDS)] for index in range(self.tokens)]
        return not self.answer.is_whole or self.answer.text == "".join(words)


@dataclass
class Chaos:
    """A cluster under load, and somebody who breaks it. `spared` are never killed: what leaks shows in them."""

    cluster: Cluster
    rng: random.Random
    spared: frozenset[str]
    asked: list[Asked] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    healed_at_s: float = 0.0
    lull_s_max: float = 8.0
    _is_asking: bool = True
    _kills: Counter[str] = field(default_factory=Counter)
    _killed: set[str] = field(default_factory=set)

    # ------------------------------------------------------------ load

    async def load(self) -> None:
        """Let every node ask, again and again, until `stop_asking`; what is open then is asked to its end."""
        async with trio.open_nursery() as nursery:
            for node in self.cluster.network.all.values():
                for _ in range(QUESTIONS_AT_ONCE):
                    nursery.start_soon(self._keep_asking, node)

    def stop_asking(self) -> None:
        """No new questions."""
        self._is_asking = False

    async def _keep_asking(self, node: NodeProcess) -> None:
        models = sorted({model for each in self.cluster.network.all.values() for model in each.plan.models})
        while self._is_asking:
            if node.is_running:
                tokens = self.rng.randint(1, TOKENS_MAX)
                asked = Asked(node.name, self.rng.choice(models), tokens, trio.current_time())
                self.asked.append(asked)
                asked.answer = await node.ask(asked.model, max_tokens=tokens, timeout_s=JOB_TIMEOUT_S)
                asked.ended.set()
            await trio.sleep(PAUSE_S * self.rng.random())

    # ------------------------------------------------------------ faults

    async def rage(self, seconds: float, between_s: float) -> None:
        """Do something bad every so often, each for a while, some at the same time."""
        deeds: list[Callable[[], Awaitable[None]]] = []
        async with trio.open_nursery() as nursery:
            end_s = trio.current_time() + seconds
            while trio.current_time() < end_s:
                if not deeds:
                    # Dealt, not drawn, so that a short storm has some of each.
                    deeds = [
                        self._kill,
                        self._kill,
                        self._freeze,
                        self._partition,
                        self._half_open,
                        *[self._bad_line] * 2,
                        self._jump,
                    ]
                    self.rng.shuffle(deeds)
                nursery.start_soon(deeds.pop())
                await trio.sleep(between_s * (0.5 + self.rng.random()))
            nursery.cancel_scope.cancel()

    async def heal(self) -> None:
        """Everything as it should be: fair weather, right clocks, all nodes up."""
        cluster = self.cluster
        for node in cluster.network.all.values():
            assert node.is_running or node.name in self._killed, f"{node.name} ended by itself: {node.last_words()}"
        cluster.heal()
        for node in cluster.running:
            await node.insides(do="clock", offset_ms=0)
        async with trio.open_nursery() as nursery:
            for node in cluster.network.all.values():
                if not node.is_running:
                    nursery.start_soon(self._revive, node)
        self.healed_at_s = trio.current_time()

    def _lull_s(self) -> float:
        return self.rng.uniform(0.5, self.lull_s_max)

    async def _kill(self) -> None:
        candidates = [node for node in self.cluster.running if node.name not in self.spared]
        if not candidates:
            return
        node = self.rng.choice(candidates)
        self.faults["kill -9"] += 1
        self._kills[node.name] += 1
        self._killed.add(node.name)
        await self.cluster.network.kill(node)
        await trio.sleep(self._lull_s())
        await self._revive(node)

    async def _revive(self, node: NodeProcess) -> None:
        # Not half: a process that nobody waits for could not be told from one that hangs.
        with trio.CancelScope(shield=True):
            if node.is_running:
                return
            kills = self._kills[node.name]
            try:
                await self.cluster.network.start(node)
                self._killed.discard(node.name)
            except Failure:
                # Whoever killed it again while it started brings it back.
                if self._kills[node.name] == kills:
                    raise

    async def _freeze(self) -> None:
        node = self.rng.choice(self.cluster.running)
        self.faults["freeze"] += 1
        node.send_signal(signal.SIGSTOP)
        try:
            await trio.sleep(self._lull_s())
        finally:
            # Also when the storm is over: somebody may wait for it to be up.
            node.send_signal(signal.SIGCONT)

    async def _partition(self) -> None:
        names = list(self.cluster.network.all)
        self.rng.shuffle(names)
        groups = [names[: (size := self.rng.randint(1, len(names) - 1))], names[size:]]
        faults = self.rng.choice([CUT, BLACKHOLE])
        self.faults["partition, " + ("cut" if faults.is_cut else "silent")] += 1
        await self._for_a_while([(one, other) for one in groups[0] for other in groups[1]], faults)

    async def _half_open(self) -> None:
        self.faults["half-open"] += 1
        one, other = self.rng.sample(list(self.cluster.network.all), 2)
        self.cluster.weather.set(one, other, BLACKHOLE)
        await trio.sleep(self._lull_s())
        self.cluster.weather.set(one, other, NONE)

    async def _bad_line(self) -> None:
        faults = self.rng.choice(
            [
                Faults(delay_s=0.3, jitter_s=0.3),
                Faults(loss=0.2),
                Faults(bytes_per_s=20_000),
                Faults(dribble_s=0.002),
            ]
        )
        self.faults["dribble" if faults.dribble_s is not None else "bad line"] += 1
        one, other = self.rng.sample(list(self.cluster.network.all), 2)
        await self._for_a_while([(one, other)], faults)

    async def _for_a_while(self, pairs: list[tuple[str, str]], faults: Faults) -> None:
        for one, other in pairs:
            self.cluster.weather.set_both(one, other, faults)
        await trio.sleep(self._lull_s())
        for one, other in pairs:
            self.cluster.weather.set_both(one, other, NONE)

    async def _jump(self) -> None:
        node = self.rng.choice(self.cluster.running)
        offset_ms = self.rng.choice([-HOUR_MS, -50_000, 50_000, HOUR_MS])
        self.faults["clock jump"] += 1
        try:
            await node.insides(do="clock", offset_ms=offset_ms)
            await trio.sleep(self._lull_s())
            await node.insides(do="clock", offset_ms=0)
        except OSError:
            return  # it was killed meanwhile, and comes back with the right time

    # ------------------------------------------------------------ what must hold

    async def until_all_ended(self, within_s: float) -> float:
        """Wait for every question; how many seconds after the healing the last one of before it ended."""
        last_s = 0.0
        with trio.move_on_at(self.healed_at_s + within_s):
            for asked in self.asked:
                await asked.ended.wait()
        still_open = [asked for asked in self.asked if asked.answer is None]
        assert not still_open, f"{len(still_open)} jobs hang, as {still_open[0]}"
        for asked in self.asked:
            assert asked.answer is not None
            if asked.at_s <= self.healed_at_s:
                last_s = max(last_s, asked.at_s + asked.answer.duration_s - self.healed_at_s)
        return last_s

    def require_right_answers(self) -> None:
        """No answer is told to be whole and is not what the model says."""
        wrong = [asked for asked in self.asked if not asked.is_right]
        assert not wrong, f"{len(wrong)} wrong answers, as {wrong[0]}"

    def require_quiet_logs(self) -> None:
        """No node met anything that it does not know how to meet."""
        complaints = [
            f"{node.name}: {line[:1500]}"
            for node in self.cluster.network.all.values()
            for line in node.log.read_text("utf-8", "replace").splitlines()
            if FORBIDDEN.search(line)
        ]
        assert not complaints, f"{len(complaints)} complaints:\n" + "\n".join(dict.fromkeys(complaints[:10]))

    def outcomes(self) -> Counter[str]:
        """How many questions ended how."""
        answers = [asked.answer for asked in self.asked if asked.answer is not None]
        outcomes = Counter(answer.code or "answered" for answer in answers)
        outcomes["answered after more than one attempt"] = sum(
            answer.is_whole and answer.attempts > 1 for answer in answers
        )
        return outcomes

    def reasons(self) -> list[tuple[str, int]]:
        """What askers were told most often when there was no whole answer."""
        answers = [asked.answer for asked in self.asked if asked.answer is not None and not asked.answer.is_whole]
        return Counter(f"{answer.code}: {answer.reason[:60]}" for answer in answers).most_common(REASONS_SHOWN)
