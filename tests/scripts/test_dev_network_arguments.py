"""scripts/_dev_network_arguments.py: what can be asked for, and one line about what cannot."""

from __future__ import annotations

import pytest

from _dev_network_arguments import NODES_MAX, Fault, parse


def test_by_default_a_few_real_providers_and_the_rest_ask() -> None:
    arguments = parse(["8"])
    assert (arguments.count, arguments.providers, arguments.aggregators, arguments.paced) == (8, 3, 0, False)
    assert parse(["2"]).providers == 2
    assert arguments.names == ["n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8"]


def test_roles_and_models_can_be_chosen() -> None:
    arguments = parse(["6", "--paced", "--serve", "n1=a", "--serve", "n4=a,b", "--aggregators", "2"])
    roles = [arguments.role(name) for name in arguments.names]
    assert roles == ["provider", "aggregator", "aggregator", "provider", "client", "client"]
    assert [arguments.served_by(name) for name in ("n1", "n4")] == [("a",), ("a", "b")]
    dealt = parse(["5", "--paced", "--providers", "3", "--models", "x,y"])
    assert [dealt.served_by(name) for name in dealt.names[:3]] == [("x",), ("y",), ("x",)]


def test_faults_and_kills_name_pairs_and_times() -> None:
    arguments = parse(
        ["5", "--fault", "n2-n5:delay=0.2,loss=0.1", "--fault", "n1-*:blackhole@30+20.5", "--kill", "n1@7"]
    )
    assert arguments.faults == (
        Fault("n2", "n5", "delay=0.2,loss=0.1", 0.0, None),
        Fault("n1", "*", "blackhole", 30.0, 20.5),
    )
    assert arguments.kills == (("n1", 7.0),)


def test_it_may_end_by_itself() -> None:
    assert (parse(["3"]).for_s, parse(["3", "--for", "2.5"]).for_s) == (None, 2.5)


def test_routers_come_with_namespaces() -> None:
    arguments = parse(["7", "--nat", "n3", "--nat", "n6,n7"])
    assert arguments.namespaces
    assert arguments.routers == (("n3",), ("n6", "n7"))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["0"], "nodes"),
        (["many"], "1 to 200 nodes"),
        ([str(NODES_MAX + 1)], "nodes"),
        (["3", "--providers", "4"], "more than N"),
        (["3", "--providers", "0"], "n1 must be"),
        (["3", "--providers", "-1"], "not negative"),
        (["3", "--paced", "--serve", "n2=a"], "n1 must be"),
        (["3", "--paced", "--serve", "n2"], "a name and its models"),
        (["3", "--paced", "--serve", "n7=a"], "there is no node 'n7'"),
        (["3", "--serve", "n1=a"], "--serve goes with --paced"),
        (["3", "--kill", "n9@1"], "there is no node 'n9'"),
        (["3", "--kill", "n1"], "a name and a second"),
        (["3", "--for", "-1"], "a number of seconds"),
        (["3", "--for", "nan"], "a number of seconds"),
        (["3", "--nat", "n1"], "n1 cannot be behind"),
        (["3", "--nat", "n2", "--nat", "n2,n3"], "one router only"),
        (["3", "--fault", "n1"], "a pair and its faults"),
        (["3", "--fault", "n1-n4:cut"], "there is no node 'n4'"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_help_shows_how(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("examples:", "--nat", "blackhole", "dribble", "root"):
        assert word in text
