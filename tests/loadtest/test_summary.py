"""Figures and ratios from slots made by hand, and what the report says of them."""

import json

import pytest

from loadtest.clients.window import Result
from loadtest.measures import chosen
from loadtest.percentiles import Distribution
from loadtest.plot import plot_ratios
from loadtest.report import Settings, make_report, markdown, write_report
from loadtest.rounds import Slot, group_order
from loadtest.summary import summarise


def slot(proxy, *, round_=0, beside="envoy", measure="unary-1", cpu_us=0.0, p50_us=10.0, errors=0):
    units = 1000
    latency = Distribution(count=units, p50_us=p50_us, p90_us=p50_us, p99_us=2 * p50_us, max_us=3 * p50_us)
    # A supervisor (1) with a tenth of the time, a worker (2) with the rest.
    cpu = {} if proxy == "direct" else {1: int(cpu_us * units * 100), 2: int(cpu_us * units * 900)}
    result = Result(
        units=units,
        errors=errors,
        elapsed_s=0.5,
        latency=latency,
        first_event=None,
        gap=None,
        cpu_ns=cpu,
        detail="status 503" if errors else "",
    )
    return Slot(
        measure=measure, round=round_, beside=beside, proxy=proxy, main_cpu_ns=cpu.get(2, 0), result=result
    )


def group(round_, ours_cpu, peer_cpu, ours_p50, peer_p50, *, direct_p50=10.0, beside="envoy"):
    return [
        slot("direct", round_=round_, beside=beside, p50_us=direct_p50),
        slot("ours", round_=round_, beside=beside, cpu_us=ours_cpu, p50_us=ours_p50),
        slot(beside, round_=round_, beside=beside, cpu_us=peer_cpu, p50_us=peer_p50),
    ]


MEASURES = chosen(["unary"], quick=False)


def test_ratios_are_made_within_a_round():
    """The machine became twice as slow in the second round: each ratio stays what it is."""
    slots = group(0, 30, 60, 40, 70) + group(1, 60, 120, 80, 140, direct_p50=20.0)
    (summary,) = summarise(MEASURES, slots)
    (row,) = summary.ratios
    assert (row.cpu.low, row.cpu.median, row.cpu.high) == pytest.approx((0.5, 0.5, 0.5))
    assert row.added_p50.median == pytest.approx(0.5)
    assert row.p50.median == pytest.approx(4 / 7)


def test_a_ratio_uses_the_ours_beside_its_peer():
    slots = group(0, 30, 60, 40, 70) + group(0, 50, 25, 40, 30, beside="nginx")
    (summary,) = summarise(MEASURES, slots)
    assert {row.peer: row.cpu.median for row in summary.ratios} == pytest.approx({"envoy": 0.5, "nginx": 2.0})


def test_figures_name_worker_and_total():
    (summary,) = summarise(MEASURES, group(0, 30, 60, 40, 70))
    figures = {one.proxy: one for one in summary.figures}
    assert figures["direct"].cpu_us is None
    assert figures["ours"].cpu_us.median == pytest.approx(30)
    assert figures["ours"].relay_cpu_us.median == pytest.approx(27)
    assert figures["ours"].added_p50_us.median == pytest.approx(30)
    assert figures["envoy"].rate_per_s.median == pytest.approx(2000)


def test_an_added_latency_lost_in_noise_has_no_ratio():
    (summary,) = summarise(MEASURES, group(0, 30, 60, 9, 70))
    assert summary.ratios[0].added_p50 is None


def settings():
    return Settings(
        started="now",
        rounds=1,
        duration_s=0.5,
        rate_per_s=2000,
        pins="not pinned",
        replica="nginx, canned",
        ours_command="python -m router serve",
        versions={"ours": "0.1.0"},
        absent=["haproxy is not installed (apt install haproxy): the run goes on without it."],
        skipped=[],
    )


def test_report_is_written_and_says_which_goals_hold(tmp_path):
    slots = group(0, 30, 60, 40, 70) + [slot("ours", round_=1, cpu_us=30, errors=2)]
    report = make_report(settings(), MEASURES, slots)
    write_report(report, tmp_path)
    plot_ratios(report, tmp_path / "ratios.png")
    text = markdown(report)
    assert "haproxy is not installed" in text
    assert "| unary-1 | CPU | envoy | reach | 0.6 | 0.50 | yes |" in text
    assert "| unary-1 | CPU | nginx | beyond | 1.5 | - | not measured |" in text
    assert "2: status 503" in text
    assert (tmp_path / "report.md").read_text() == text
    written = json.loads((tmp_path / "report.json").read_text())
    assert len(written["slots"]) == 4
    assert (tmp_path / "ratios.png").read_bytes().startswith(b"\x89PNG")


def test_the_order_of_a_group():
    assert group_order("nginx") == ("direct", "ours", "nginx")
    assert group_order("direct") == ("direct", "ours")
