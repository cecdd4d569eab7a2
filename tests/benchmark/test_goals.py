"""Tests what is said of the goals."""

import pytest

from ltfast.benchmark import goals

CASE = "agcl 256 x 1000 float32"
LIMITS = {"bytes": 1e9, "flops": {"float32": 1e10, "bfloat16": 1e11}, "exps": 1e9}


def results(device="cpu", **rows):
    about = {"bytes": 1e6, "flops": 1e8, "peak_mib": 2.0, "times_ltfast": 1.0, "median_ms": 2.0, "dtype": "bfloat16"}
    listed = [{"case": CASE, "implementation": name, **about, **row} for name, row in rows.items()]
    return {"machine": {"device": device}, "ceilings": LIMITS, "rows": listed}


@pytest.mark.parametrize(
    ("times", "measured", "verdict"),
    [(12.0, "12.0x", "met"), (10.0, "10.0x", "met"), (9.0, "9.00x", "missed by 10.0 %")],
)
def test_a_goal_of_speed(times, measured, verdict):
    goal = goals.faster("cpu", CASE, "eager", 10)
    assert goal.judge(results(ltfast={}, eager={"times_ltfast": times})) == {
        "case": CASE,
        "quantity": "time of eager / ltfast",
        "goal": "at least 10x",
        "measured": measured,
        "verdict": verdict,
    }


def test_what_was_not_measured():
    goal = goals.faster("cpu", CASE, "eager", 10)
    for found in (results(), results(ltfast={})):
        assert (goal.judge(found)["measured"], goal.judge(found)["verdict"]) == (None, "not measured here")
    memory = goals.smaller("cpu", CASE, "eager", 10)
    assert memory.judge(results(ltfast={"peak_mib": None}, eager={"peak_mib": None}))["measured"] is None


def test_a_goal_of_memory():
    goal = goals.smaller("cpu", CASE, "eager", 10)
    assert goal.judge(results(ltfast={}, eager={"peak_mib": 30.0}))["measured"] == "15.0x"


def test_a_bound_from_above():
    goal = goals.Goal("cuda", CASE, "kernel launches", lambda rows, _: rows["ltfast"]["launches"], 3, "", at_most=True)
    judged = goal.judge(results(ltfast={"launches": 6}))
    assert (judged["goal"], judged["measured"], judged["verdict"]) == ("at most 3", "6", "missed by 100 %")
    assert goal.judge(results(ltfast={"launches": 3}))["verdict"] == "met"


def test_the_worst_of_every_case():
    goal = goals.faster("cpu", goals.EVERY_CASE, "torch.compile", 1)
    found = results(ltfast={}, **{"torch.compile": {"times_ltfast": 3.0}})
    found["rows"] += [{**row, "case": "other", "times_ltfast": 0.5} for row in found["rows"]]
    assert goal.judge(found)["measured"] == "0.500x"


def test_shares_of_the_limits():
    rows = {"ltfast": results(ltfast={})["rows"][0]}
    assert goals.copied(rows, LIMITS) == pytest.approx(50)  # 1 MB in 2 ms, where a copy takes 1 ms
    assert goals.multiplied(rows, LIMITS) == pytest.approx(50)
    fast, slow = {"times_ltfast": 0.5}, {"times_ltfast": 2.0}
    assert goals.best_attention({"attention, flash": slow, "attention, cudnn": fast, "eager": {}}, LIMITS) == 0.5
    assert goals.best_attention(rows, LIMITS) is None


def test_a_verdict_from_a_busy_machine_says_so():
    goal = goals.faster("cpu", CASE, "eager", 10)
    found = results(ltfast={"others": 0.5}, eager={"times_ltfast": 12.0})
    assert goal.judge(found)["verdict"] == "met, on a busy machine"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_each_goal_has_a_row(device):
    judged = goals.judge(results(device))
    assert len(judged) == sum(goal.device == device for goal in goals.GOALS) > 10
    assert {row["verdict"] for row in judged} == {"not measured here"}
    assert len({(row["case"], row["quantity"]) for row in judged}) == len(judged)
