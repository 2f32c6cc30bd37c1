"""OneCycle against the published schedules, torch's own, and through a checkpoint."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from token_methods.core.schedules import OneCycle, one_cycle


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


def test_state_survives_a_file_that_may_not_run_code() -> None:
    optimizer = optimiser()
    schedule = OneCycle(optimizer, 1.0, 50, 10)
    for _ in range(17):
        optimizer.step()
        schedule.step()
    file = io.BytesIO()
    torch.save(schedule.state_dict(), file)
    file.seek(0)
    resumed_optimizer = optimiser()
    resumed = OneCycle(resumed_optimizer, 1.0, 50, 10)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        assert [group["lr"] for group in resumed_optimizer.param_groups] == [group["lr"] for group in optimizer.param_groups]
        assert [group["betas"] for group in resumed_optimizer.param_groups] == [group["betas"] for group in optimizer.param_groups]
        for step in (optimizer, resumed_optimizer, schedule, resumed):
            step.step()
