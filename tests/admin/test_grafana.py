"""The dashboard and the alerts name only metrics and labels that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.admin.rig import administered

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARD = json.loads((FOLDER / "oinetd-dashboard.json").read_text())
ALERTS = (FOLDER / "oinetd-alerts.yml").read_text()
LABELS = {
    "rule",
    "direction",
    "ending",
    "reactor",
    "le",
    "name",
    "lane",
    "result",
    "version",
    "python",
    "group",
    "server",
}


async def test_every_metric_of_dashboard_and_alerts_is_there(tmp_path: Path) -> None:
    text = "127.0.0.1 0/udp localhost 9/udp [name=dns]\n127.0.0.1 0 localhost 9 [name=web]\n"
    async with administered(tmp_path, text) as admin:
        _, _, body = await admin.ask("GET", "/metrics")
        parsed = list(text_string_to_metric_families(body.decode()))
    names = {sample.name for family in parsed for sample in family.samples}
    labels = {label for family in parsed for sample in family.samples for label in sample.labels}
    assert labels <= LABELS
    asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    asked += [each["expr"] for each in DASHBOARD["annotations"]["list"]]
    asked += [json.loads(line.partition("expr: ")[2]) for line in ALERTS.splitlines() if "expr: " in line]
    assert len(asked) > 25
    for expression in asked:
        for name in re.findall(r"\boinetd_\w+", expression):
            assert name in names, expression
        assert expression.count("(") == expression.count(")"), expression


def test_every_alert_is_explained() -> None:
    alerts = re.findall(r"alert: (\w+)", ALERTS)
    explained = re.findall(r"^\| (Oinetd\w+) \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert alerts == explained
