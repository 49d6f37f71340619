"""What `infernet why` shows: whom a job would go to and why not to others, and why this node gets few jobs itself.

Both views are made of what was really decided: the first by asking routing about every known node, the second from what
other askers reported about this one. Texts are for people, figures are measured; foreign names are not cleaned here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from infernet.engines.contract import EngineState
from infernet.ipc.said import what_is_said
from protocol import constants as c
from protocol.events import Now
from protocol.hearsay import DAY_MS, HOUR_MS, Heard
from protocol.peer import Peer
from protocol.ranking import STRANGER
from protocol.records import Availability, Kind, Role
from protocol.routing import Exclusion, RouteRequest, Verdict, model_for

# What `infernet chat` asks for when it is told nothing else.
OUTPUT_TOKENS: Final = 512
PROMPT_BYTES: Final = c.SEALED_PADDING_BYTES_MIN + c.SEAL_OVERHEAD_BYTES

# What an asker can do about a reason that keeps everybody out.
ADVICE_FOR_ASKERS: Final = {
    Exclusion.NO_MODEL: "`infernet peers` shows what is served; without --model anybody may answer",
    Exclusion.WRONG_KIND: "`infernet peers` shows who else there is; try another model",
    Exclusion.CONTEXT: "shorten the question, or lower --max-tokens",
    Exclusion.TOO_LARGE: "shorten the question",
    Exclusion.NOT_FREE: "they want to be paid, which this version cannot do: ask for another model",
    Exclusion.NO_SEALING_KEY: "they are starting, or older than this program: try again in a moment",
    Exclusion.UNREACHABLE: "nobody has told this node where they are: connect with somebody who knows, `infernet join`",
    Exclusion.NOT_CONNECTED: "they are not linked: wait until they are",
    Exclusion.DRAINING: "they are stopping: try again when they are back",
    Exclusion.OFFLINE: "they have gone: try again when they are back",
    Exclusion.EXPIRED: "they have not been heard of lately: try again in a moment",
}
# What an owner can do about a reason that keeps jobs away.
ADVICE_FOR_OWNERS: Final = {
    Exclusion.NOT_PROVIDER: "to run jobs: infernet start --role provider",
    Exclusion.EXPIRED: "its heartbeats do not arrive: see that this machine stays awake, connected and on time",
    Exclusion.DRAINING: "it was told to finish: start it again",
    Exclusion.OFFLINE: "it was stopped: nothing to do, unless that was not you",
    Exclusion.NO_MODEL: "serve a model that is asked for (--model)",
    Exclusion.WRONG_KIND: "serve a model that does this kind of job",
    Exclusion.CONTEXT: "serve a longer context (--context-tokens), where memory allows",
    Exclusion.PRICE_IN: "ask for less",
    Exclusion.PRICE_OUT: "ask for less",
    Exclusion.NOT_FREE: "run free jobs for more askers (--free-for known or all)",
    Exclusion.NO_SEALING_KEY: "upgrade infernet",
    Exclusion.TOO_LARGE: "nothing: such prompts are rare",
    Exclusion.UNREACHABLE: "let others reach it: listen (--advertise), or link a coordinator",
    Exclusion.NOT_CONNECTED: "link it to that coordinator: `infernet status` says how the link is",
    Exclusion.TOO_DEAR: "ask for less, or nothing: the asker had less left to spend than such an answer may cost",
    Exclusion.OTHER_COORDINATOR: "nothing, unless most ask there: a node takes leases of its own coordinator (--url)",
    Exclusion.OTHER_WEIGHTS: "nothing: these jobs had begun with other weights",
    Exclusion.LACKS_FEATURE: "upgrade infernet",
    Exclusion.OUTRANKED: "be faster, or surer: a smaller model, a faster machine, fewer jobs at once (--slots)",
    Exclusion.FULL: "run more jobs at once (--slots), where memory allows",
    Exclusion.RESTING: "it failed or refused jobs: see its log",
    Exclusion.NEWCOMER: "nothing: it gets larger jobs when it has done some small ones",
    Exclusion.MAY_REFUSE: "run free jobs for all (--free-for all)",
    Exclusion.NOT_REACHED: "its address does not work from there: see `infernet status`, or link a coordinator",
    Exclusion.REFUSED: "see its log for what it refused, and why",
    Exclusion.SILENT: "it was asleep, cut off or overloaded: see its log, run fewer jobs at once (--slots)",
}
# These are no fault of one node's: they say nothing about why nobody was found.
_NOT_ABOUT_THE_JOB: Final = (Exclusion.OURSELVES, Exclusion.NOT_PROVIDER)


class WhyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of `why`: the job to be explained."""

    model: Annotated[str, Meta(min_length=1, max_length=c.MODEL_NAME_CHARACTERS_MAX)] | None = None
    kind: Literal["chat", "completion", "embedding"] = "chat"


# ---------------------------------------------------------------- for askers


def asking(peer: Peer, request: WhyRequest, now: Now) -> dict[str, Any]:
    """Whom such a job would go to now, who else could do it, and what keeps the others out."""
    kind = Kind[request.kind.upper()]
    output_tokens = 0 if kind is Kind.EMBEDDING else OUTPUT_TOKENS
    wanted = RouteRequest(
        request.model, kind, context_tokens=output_tokens, prompt_bytes=PROMPT_BYTES, output_tokens=output_tokens
    )
    verdicts = peer.explain(wanted, now)
    candidates = sum(verdict.rank is not None for verdict in verdicts)
    what = f"{request.kind} jobs" + (f" with {request.model}" if request.model is not None else "")
    if _serves(peer, wanted):
        others = f", and {_count(candidates, 'other node')} could do them" if candidates else ""
        summary, advice = f"this node answers {what} itself{others}", None
    else:
        summary, advice = _summary(verdicts, candidates, what)
    return {
        "model": request.model,
        "kind": request.kind,
        "summary": summary,
        "advice": advice,
        "candidates": candidates,
        "left_out": len(verdicts) - candidates,
        "nodes": [_node(peer, verdict, place, now) for place, verdict in enumerate(verdicts, 1)],
    }


def _serves(peer: Peer, wanted: RouteRequest) -> bool:
    """Whether a question of the owner's is for this node's own engine. Its hours are for the jobs of others."""
    own = peer.directory.get(peer.node)
    if own is None or own.heartbeat.role is not Role.PROVIDER:
        return False
    return own.heartbeat.availability is not Availability.OFFLINE and model_for(own, wanted) is not None


def _summary(verdicts: Sequence[Verdict], candidates: int, what: str) -> tuple[str, str | None]:
    """What came of it in one sentence, and what to do where nobody was found."""
    if candidates:
        others = f", and {candidates - 1} more could do them" if candidates > 1 else ""
        return f"{what} would go to {_hex(verdicts[0])}{others}", None
    against = Counter(v.against for v in verdicts if v.against is not None and v.against not in _NOT_ABOUT_THE_JOB)
    if not against:
        return (
            f"nobody can do {what}: this node knows no provider yet",
            "connect with somebody's invite (`infernet join`), or link a coordinator (`infernet init --url`)",
        )
    # Those that serve the model come closer than those that do not.
    reason, count = max(against.items(), key=lambda item: (item[0] is not Exclusion.NO_MODEL, item[1]))
    known = _count(sum(against.values()), "node")
    closest = f"nobody can do {what}: {known} known; what keeps out the {count} that come closest: {reason.words}"
    return closest, ADVICE_FOR_ASKERS.get(reason)


def _hex(verdict: Verdict) -> str:
    return verdict.node.hex()[:8]


def _node(peer: Peer, verdict: Verdict, place: int, now: Now) -> dict[str, Any]:
    entry = peer.directory.get(verdict.node)
    described: dict[str, Any] = {
        "node_id": verdict.node.hex(),
        "name": entry.heartbeat.name if entry is not None else "",
        "model": verdict.model,
        "says": what_is_said(entry.heartbeat).get(verdict.model or "") if entry is not None else None,
    }
    rank = verdict.rank
    if rank is None:
        assert verdict.against is not None
        reason = {"number": verdict.against.number, "name": verdict.against.name.lower()}
        return described | {"verdict": "left out", "reason": reason, "text": verdict.against.words}
    assert verdict.model is not None
    account = peer.experience.reputation.account(verdict.node, verdict.model, now.wall_ms)
    standing = rank.standing
    return described | {
        "verdict": "candidate",
        "place": place,
        "tier": rank.tier.name.lower(),
        "score_s": round(rank.score_s, 3),
        "expected_s": round(rank.expected_s, 3),
        "wait_s": round(rank.wait_s, 3),
        "first_token_s": round(standing.first_token_s, 3),
        "tokens_per_s": round(standing.tokens_per_s, 1),
        "is_measured": (account.standing.first_token_s, account.standing.tokens_per_s)
        != (STRANGER.first_token_s, STRANGER.tokens_per_s),
        "reliability": round(standing.reliability, 3),
        "load": rank.load,
        "own_ok": round(account.ok, 2),
        "own_bad": round(account.bad, 2),
        "own_refused": round(account.refused, 2),
        "others_ok": round(account.others_ok, 2),
        "others_bad": round(account.others_bad, 2),
        "askers": account.askers,
    }


# ---------------------------------------------------------------- for owners


@dataclass(frozen=True)
class Situation:
    """All that this node knows of itself that may keep jobs away."""

    role: Role
    models: Sequence[str]
    engine: str | None
    engine_error: str
    availability: Availability
    free_for: str
    peers: int
    coordinator: str | None
    is_linked: bool
    link_error: str
    is_published: bool
    reach_advice: str
    jobs_running: int
    slots: int
    #: Empty, or that it is paused, or outside the hours in which its owner lets it serve.
    hours: str = ""
    is_paused: bool = False


def facts(now: Situation) -> list[dict[str, str]]:
    """What this node's own state explains, most serious first: each a text and what to do."""
    found: list[tuple[str, str]] = []
    if now.role is not Role.PROVIDER:
        found.append((f"this node is {article(now.role)}, which runs no jobs", "infernet start --role provider"))
        return [{"text": text, "advice": advice} for text, advice in found]
    if now.hours:
        advice = "`infernet schedule resume`" if now.is_paused else "wait, or change them: `infernet schedule`"
        found.append((f"it takes no new jobs: it is {now.hours}", advice))
    elif now.availability is not Availability.AVAILABLE:
        found.append(("it takes no new jobs: it is stopping", "start it again when it has ended"))
    if not now.models and now.engine == EngineState.STARTING:
        found.append(
            ("it serves no model yet: the engine is loading", "wait: `infernet status` shows for how long it has been")
        )
    elif not now.models:
        state = f"the engine is {now.engine}" if now.engine is not None else "it has no engine"
        why = f" ({now.engine_error})" if now.engine_error else ""
        advice = (
            "see its log; `infernet model pull` fetches the starter model"
            if now.engine is not None
            else "`infernet config set --engine llama`, and start it anew (`infernet engine list` shows what there is)"
        )
        found.append((f"it serves no model: {state}{why}", advice))
    if not now.peers and not now.is_linked:
        found.append(
            ("nobody is connected to it", "`infernet join` with somebody's invite, or link a coordinator (--url)")
        )
    if now.coordinator is not None and not now.is_linked:
        why = f" ({now.link_error})" if now.link_error else ""
        found.append((f"its link to {now.coordinator} is down{why}", "it is tried again by itself; is the URL right?"))
    if now.reach_advice:
        found.append(("others cannot dial it directly", now.reach_advice))
    elif not now.is_published and not now.is_linked:
        found.append(
            (
                "it publishes no address, so only who is connected can ask it",
                "listen on an address of the Internet (--advertise, --address), or link a coordinator",
            )
        )
    if now.free_for == "nobody":
        found.append(
            ("it runs free jobs for nobody, and nothing can be paid yet", "--free-for known or --free-for all")
        )
    elif now.free_for == "known":
        found.append(
            ("it runs free jobs only for those its owner knows, so strangers ask others first", "--free-for all")
        )
    if now.jobs_running >= now.slots:
        found.append((f"all its {now.slots} slots are taken at this moment", "nothing: it has work"))
    return [{"text": text, "advice": advice} for text, advice in found]


def article(role: Role) -> str:
    """A role within a sentence."""
    return f"an {role.name.lower()}" if role is Role.AGGREGATOR else f"a {role.name.lower()}"


def serving(peer: Peer, situation: Situation, now: Now) -> dict[str, Any]:
    """What others decided about this node lately, and what its own state explains."""
    hearsay = peer.experience.hearsay
    hour, day = (hearsay.about_us(now.wall_ms - span_ms) for span_ms in (HOUR_MS, DAY_MS))
    return {
        "summary": _said(hour, day),
        "facts": facts(situation),
        "hour": _heard(hour),
        "day": _heard(day),
        "reasons": _reasons(hour, day),
    }


def _said(hour: Heard, day: Heard) -> str:
    if not day.askers:
        return (
            "nobody has told this node yet what they decided about it: askers that report do so every ten minutes, "
            "when they have asked for a model that it serves"
        )
    heard, span = (hour, "hour") if hour.askers else (day, "day")
    considered, chosen = _count(heard.considered, "time"), _count(heard.chosen, "time")
    return (
        f"in the last {span} {_count(heard.askers, 'asker')} considered this node {considered} and chose it {chosen}; "
        f"{_count(heard.jobs_done, 'job')} went well, {heard.jobs_failed} did not"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _heard(heard: Heard) -> dict[str, Any]:
    return {
        "askers": heard.askers,
        "considered": heard.considered,
        "chosen": heard.chosen,
        "jobs_done": heard.jobs_done,
        "jobs_failed": heard.jobs_failed,
        "first_token_s": round(heard.first_token_ms / 1000, 3) or None,
        "tokens_per_s": round(heard.tokens_per_s_milli / 1000, 1) or None,
    }


def _reasons(hour: Heard, day: Heard) -> list[dict[str, Any]]:
    """Why it was not chosen, by how often in a day."""
    in_hour = dict(hour.reasons)
    known = {exclusion.number: exclusion for exclusion in Exclusion}
    reasons = []
    for number, count in day.reasons:
        reason = known.get(number)
        reasons.append(
            {
                "number": number,
                "name": reason.name.lower() if reason is not None else None,
                "text": reason.words if reason is not None else f"a reason that this version does not know ({number})",
                "hour": in_hour.get(number, 0),
                "day": count,
                "advice": ADVICE_FOR_OWNERS.get(reason, "upgrade infernet")
                if reason is not None
                else "upgrade infernet",
            }
        )
    return reasons
