"""Runs the network that `scripts/dev_network` was asked for, inside its environment."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
from collections.abc import Iterator

import trio
from rich.live import Live

from _dev_network_arguments import Arguments, Fault, parse
from _dev_network_detour import Detour
from _dev_network_faults import NONE, Faults, Weather, parse_faults
from _dev_network_money import Bank, bank, give_money
from _dev_network_namespaces import Internet
from _dev_network_nodes import NodeProcess, Nodes, Plan, add_at, add_on_loopback, nodes, serve_proxy
from _dev_network_view import Teller, Watch, ask_everything, asked_table, view_table
from _environment import ROOT, Failure, run_main, step
from infernet.engines.models import STARTER, ModelError
from infernet.engines.starter import fetch_starter

LOOK_INTERVAL_S = 0.5
# A check waits no longer than this for everybody to know everybody.
FULL_VIEW_S = 120.0
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MODEL_STORE = ROOT / ".cache" / "models"


class Network:
    """The network while it runs."""

    def __init__(self, arguments: Arguments, network: Nodes, teller: Teller, nursery: trio.Nursery) -> None:
        self._arguments = arguments
        self._network = network
        self._teller = teller
        self._nursery = nursery
        self._weather = Weather()
        self._internet: Internet | None = None
        self._bank: Bank | None = None
        self._started_s = trio.current_time()
        self.watch = Watch(network)

    # ------------------------------------------------------------ starting

    async def start(self, stack: contextlib.ExitStack) -> None:
        """Start n1, then all others at once. Raises Failure."""
        if self._arguments.namespaces:
            self._internet = stack.enter_context(Internet())
            if self._arguments.faults:
                detour = Detour(self._internet.detour_device(), self._weather.of, random.Random(1))
                await self._nursery.start(detour.run)
        if self._arguments.paid:
            self._bank = stack.enter_context(bank(self._network.home / "bank"))
            self._tell_of(self._bank)
        for index, name in enumerate(self._arguments.names):
            self._add(index, name)
        first, *others = self._network.all.values()
        for node in self._network.all.values():
            if self._has_proxy(node):
                await serve_proxy(self._network, self._weather, node, self._nursery)
        await self._start(first)
        self.watch = Watch(self._network)
        self._started_s = self.watch.started_s
        async with trio.open_nursery() as nursery:
            for node in others:
                nursery.start_soon(self._start, node)
        self._teller.tell("all_up", f"All {len(self._network.all)} nodes are up.", nodes=len(self._network.all))

    def _tell_of(self, bank: Bank) -> None:
        text = (
            f"Coordinator {bank.url} with key {bank.key}, process {bank.process.pid}, home {bank.home}.\n"
            f"Its gateway is a double: let coins arrive for all open invoices with\n"
            f"  curl -d {{}} {bank.gateway}/control/arrive"
        )
        self._teller.tell(
            "bank",
            text,
            url=bank.url,
            key=bank.key,
            gateway=bank.gateway,
            pid=bank.process.pid,
            home=str(bank.home),
        )

    def _has_proxy(self, node: NodeProcess) -> bool:
        return bool(self._arguments.faults) and node.place is None and node.address is not None

    def _add(self, index: int, name: str) -> None:
        arguments = self._arguments
        plan = Plan(name, arguments.role(name), self._models(name), arguments.paced)
        first = next(iter(self._network.all.values()), None)
        words: tuple[str, ...] = () if first is None else ("--peers", str(first.address))
        if self._bank is not None:
            words += self._bank.words(plan.role)
        if self._internet is None:
            add_on_loopback(self._network, plan, index + 1, *words, behind_proxy=bool(arguments.faults))
        else:
            self._add_to(self._internet, plan, words)
        node = self._network[name]
        if plan.role == "provider" and not plan.paced:
            models = node.home / "data" / "models"
            models.parent.mkdir(parents=True)
            models.symlink_to(MODEL_STORE)

    def _add_to(self, internet: Internet, plan: Plan, words: tuple[str, ...]) -> None:
        for number, behind in enumerate(self._arguments.routers, start=1):
            if plan.name in behind:
                router = f"router {number}"
                if plan.name == min(behind, key=self._arguments.names.index):
                    internet.nat(router)
                add_at(self._network, plan, internet.behind(router, plan.name), *words, is_public=False)
                return
        add_at(self._network, plan, internet.public(plan.name), *words)

    def _models(self, name: str) -> tuple[str, ...]:
        if self._arguments.role(name) != "provider":
            return ()
        return self._arguments.served_by(name) if self._arguments.paced else (STARTER.name,)

    async def _start(self, node: NodeProcess) -> None:
        await self._network.start(node)
        self._teller.tell(
            "up",
            f"{node.name}: {node.plan.role}, process {node.pid}, INFERNET_HOME={node.home}",
            node=node.name,
            role=node.plan.role,
            pid=node.pid,
            home=str(node.home),
            address=node.address,
            node_id=node.node.hex(),
        )

    # ------------------------------------------------------------ while it runs

    async def let_everything_happen(self) -> None:
        """Every fault and every death that was asked for, each at its time."""
        async with trio.open_nursery() as nursery:
            for fault in self._arguments.faults:
                nursery.start_soon(self._carry_out, fault)
            for name, at_s in self._arguments.kills:
                nursery.start_soon(self._kill, name, at_s)

    async def _carry_out(self, fault: Fault) -> None:
        """Make a line bad, and good again when its time is over."""
        faults = parse_faults(fault.what)
        await trio.sleep_until(self._started_s + fault.start_s)
        self._set(fault, faults)
        self._teller.tell("fault", f"{fault.one}-{fault.other}: {fault.what}", pair=[fault.one, fault.other])
        if fault.length_s is not None:
            await trio.sleep(fault.length_s)
            self._set(fault, NONE)
            self._teller.tell("healed", f"{fault.one}-{fault.other}: healed", pair=[fault.one, fault.other])

    def _set(self, fault: Fault, faults: Faults) -> None:
        if self._internet is None:
            self._weather.set_both(fault.one, fault.other, faults)
            return
        for source, target in self._pairs(fault):
            was_fair = self._weather.of(source, target) == NONE
            self._weather.set(source, target, faults)
            if was_fair and faults != NONE:
                self._internet.send_by_detour(source, target)
            elif not was_fair and faults == NONE:
                self._internet.send_directly(source, target)

    def _pairs(self, fault: Fault) -> Iterator[tuple[str, str]]:
        """The addresses of all pairs that are meant, as others see them, in both directions."""
        hosts = {node.name: node.place.seen_as for node in self._network.all.values() if node.place is not None}
        ones = list(hosts.values()) if fault.one == "*" else [hosts[fault.one]]
        others = list(hosts.values()) if fault.other == "*" else [hosts[fault.other]]
        yield from {pair for one in ones for other in others if one != other for pair in ((one, other), (other, one))}

    async def _kill(self, name: str, at_s: float) -> None:
        """Kill a node when its time has come."""
        await trio.sleep_until(self._started_s + at_s)
        await self._network.kill(self._network[name])
        self._teller.tell("killed", f"{name} was killed", node=name)
        self.watch.forget()

    async def look_until_full(self, timeout_s: float = float("inf")) -> None:
        """Wait until every node knows every provider and an address of it, or this time is over."""
        with trio.move_on_after(timeout_s):
            while True:
                await self.watch.look()
                if self.watch.is_full:
                    break
                await trio.sleep(LOOK_INTERVAL_S)
        times = self.watch.full_after_s()
        if self.watch.is_full:
            text = f"Every node knows every provider and how to reach it, the last one after {times[-1]:.1f} s."
            self._teller.tell("full_view", text, after_s=[round(time, 2) for time in times])
        else:
            self._teller.show(view_table(self.watch))
            text = f"Not every node knows how to reach every provider after {timeout_s:.0f} s."
            self._teller.tell("no_full_view", text, after_s=[round(time, 2) for time in times])

    async def check(self) -> bool:
        """Let every node ask every model; whether all were answered."""
        running = [node for node in self._network.all.values() if node.is_running]
        if self._bank is not None:
            await give_money(self._bank, [node for node in running if node.plan.role != "provider"])
        models = sorted({model for node in running for model in await self._models_of(node)})
        asked = await ask_everything(running, models)
        failed = [each for each in asked if not each.answer.is_whole]
        self._teller.show(asked_table(asked))
        self._teller.tell(
            "checked",
            f"{len(asked) - len(failed)} of {len(asked)} questions were answered.",
            asked=len(asked),
            failed=[{"node": each.node, "model": each.model, "code": each.answer.code} for each in failed],
        )
        return not failed

    @staticmethod
    async def _models_of(node: NodeProcess) -> list[str]:
        try:
            return list((await node.status())["models"])
        except OSError:
            return []


async def run(arguments: Arguments) -> int:
    """The whole life of the network; gives the exit status."""
    teller = Teller(as_json=arguments.json)
    ended_by = 0

    async def end_on_signal(
        scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        nonlocal ended_by
        with trio.open_signal_receiver(*ENDING_SIGNALS) as received:
            task_status.started()
            ended_by = await anext(received)
            scope.cancel()
            # From here on only the ending runs, and nobody interrupts that; it has deadlines of its own.
            async for _ in received:
                pass

    is_good = True
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        await nursery.start(end_on_signal, scope)
        with scope, trio.move_on_after(arguments.for_s if arguments.for_s is not None else float("inf")):
            is_good = await live(arguments, teller)
        nursery.cancel_scope.cancel()
    if ended_by:
        teller.tell("ended", "Ended.", signal=ended_by)
        return 0 if ended_by == signal.SIGINT else 128 + ended_by
    return 0 if is_good else 1


async def live(arguments: Arguments, teller: Teller) -> bool:
    """Start, watch, and check if asked to; only returns after a check."""
    with contextlib.ExitStack() as stack:
        async with nodes() as network, trio.open_nursery() as nursery:
            running = Network(arguments, network, teller, nursery)
            await running.start(stack)
            if arguments.check:
                await running.let_everything_happen()
                await running.look_until_full(FULL_VIEW_S)
                is_good = await running.check()
                nursery.cancel_scope.cancel()
                return is_good
            nursery.start_soon(running.let_everything_happen)
            if sys.stdout.isatty() and not arguments.json:
                await show(running.watch)
            await running.look_until_full()
            await trio.sleep_forever()
    raise AssertionError


async def show(watch: Watch) -> None:
    """The live table, for as long as anybody looks."""
    with Live(view_table(watch), refresh_per_second=4) as screen:
        while True:
            await watch.look()
            screen.update(view_table(watch))
            await trio.sleep(LOOK_INTERVAL_S)


def fetch_model() -> None:
    """Have the starter model in this checkout's cache, where the nodes find it."""
    with step(f"Model {STARTER.name}"):
        try:
            fetch_starter(MODEL_STORE, lambda *_: None)
        except ModelError as error:
            raise Failure(str(error)) from None


def main() -> int:
    """Run it."""
    arguments = parse(sys.argv[1:])
    if arguments.faults and os.geteuid() != 0:
        raise Failure("faults need root, to tell which process a connection comes from: run this with sudo")
    for fault in arguments.faults:
        try:
            faults = parse_faults(fault.what)
        except ValueError as error:
            raise Failure(f"--fault {fault.one}-{fault.other}: {error}") from None
        if arguments.namespaces and (faults.is_cut or faults.dribble_s is not None):
            raise Failure("in namespaces packets are delayed and lost as they are: no dribble, no cut")
    if arguments.paid and arguments.namespaces:
        raise Failure("--paid needs all nodes on loopback: leave out --namespaces and --nat")
    if not arguments.paced and arguments.providers:
        fetch_model()
    try:
        return trio.run(run, arguments)
    except BaseExceptionGroup as group:
        if group.subgroup(BrokenPipeError) is not None:
            # Who read what is told has enough; Python must not complain about it when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        failure, _ = group.split(Failure)
        if failure is None:
            raise
        raise _first(failure) from None


def _first(group: BaseExceptionGroup[Failure]) -> Failure:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


if __name__ == "__main__":
    sys.exit(run_main(main, "dev_network"))
