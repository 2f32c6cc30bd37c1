"""The schedules against published ones, OneCycle against torch's own, and both through a checkpoint."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from token_methods.core.schedules import OneCycle, WarmupCosine, one_cycle, warmup_cosine


def optimiser() -> torch.optim.AdamW:
    return torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.zeros(2))]}, {"params": [torch.nn.Parameter(torch.zeros(1))]}])


def test_published_values(reference: Path) -> None:
    schedules = json.loads((reference / "parity" / "tokengs" / "schedules.json").read_text())["one_cycle"]
    for told in schedules.values():
        warmup = round(told["pct_start"] * told["total_steps"])
        for row in told["rows"]:
            lr, beta1 = one_cycle(row["step"], peak=told["max_lr"], total_steps=told["total_steps"], warmup_steps=warmup)
            assert lr == pytest.approx(row["lr"], abs=1e-9)
            assert beta1 == pytest.approx(row["beta1"], abs=1e-6)


@pytest.mark.parametrize(("total", "warmup"), [(20, 6), (10, 10), (7, 2)])
def test_every_group_follows_torchs_own_schedule(total: int, warmup: int) -> None:
    ours, theirs = optimiser(), optimiser()
    mine = OneCycle(ours, 2e-3, total, warmup)
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        theirs, 2e-3, total_steps=total, pct_start=min(warmup / total, 0.99), final_div_factor=1000
    )
    for _ in range(total - 1):
        for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert group["lr"] == pytest.approx(other["lr"], rel=1e-9)
            assert group["betas"] == pytest.approx(other["betas"], rel=1e-9)
        for step in (ours, theirs, mine, torchs):
            step.step()


def test_training_on_keeps_the_last_rate() -> None:
    optimizer = optimiser()
    schedule = OneCycle(optimizer, 1.0, 5, 2)
    for _ in range(9):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == pytest.approx([1 / 25000] * 2)


def test_no_warmup_starts_on_the_way_down() -> None:
    rates = [one_cycle(step, peak=1.0, total_steps=8, warmup_steps=0)[0] for step in range(8)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.9
    assert one_cycle(0, peak=1.0, total_steps=1, warmup_steps=0)[0] == pytest.approx(1 / 25000)


@pytest.mark.parametrize("kind", [OneCycle, WarmupCosine])
def test_state_survives_a_file_that_may_not_run_code(kind: type[OneCycle] | type[WarmupCosine]) -> None:
    optimizer = optimiser()
    schedule = kind(optimizer, 1.0, 50, 10)
    for _ in range(17):
        optimizer.step()
        schedule.step()
    file = io.BytesIO()
    torch.save(schedule.state_dict(), file)
    file.seek(0)
    resumed_optimizer = optimiser()
    resumed = kind(resumed_optimizer, 1.0, 50, 10)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        assert [group["lr"] for group in resumed_optimizer.param_groups] == [group["lr"] for group in optimizer.param_groups]
        assert [group["betas"] for group in resumed_optimizer.param_groups] == [group["betas"] for group in optimizer.param_groups]
        for step in (optimizer, resumed_optimizer, schedule, resumed):
            step.step()


def test_published_warmup_cosine(reference: Path) -> None:
    stored = json.loads((reference / "parity" / "gaussiantoken" / "cases" / "schedule.json").read_text())["values"]
    runs = [told for told in stored.values() if "lr_after_update" in told]
    assert runs
    for told in runs:
        per_epoch = told["updates_per_epoch"]
        for step, expected in told["lr_after_update"]:
            rate = warmup_cosine(step, peak=told["lr"], total_steps=per_epoch * told["num_epochs"], warmup_steps=per_epoch)
            assert rate == pytest.approx(expected, rel=1e-9, abs=0)


def test_warmup_cosine_climbs_falls_and_stays_at_zero() -> None:
    rates = [warmup_cosine(step, peak=2e-4, total_steps=30, warmup_steps=5) for step in range(33)]
    assert rates[0] == 1e-6
    assert rates[:5] == sorted(rates[:5])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert max(rates) == rates[5] < 2e-4  # the cosine has run since step 0
    assert rates[30:] == [0.0] * 3
    assert warmup_cosine(0, peak=1.0, total_steps=2, warmup_steps=0) == 1.0


def test_warmup_cosine_sets_every_group_from_the_first_step_on() -> None:
    optimizer = optimiser()
    schedule = WarmupCosine(optimizer, 0.5, 7, 3, initial=0.1)
    for step in range(10):
        expected = warmup_cosine(step, peak=0.5, total_steps=7, warmup_steps=3, initial=0.1)
        assert [group["lr"] for group in optimizer.param_groups] == [expected] * 2
        optimizer.step()
        schedule.step()
