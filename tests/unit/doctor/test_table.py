"""The table of findings, its page, and the command around them."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from tools import doctor_page

import holdfast.cli.doctor
from holdfast.cli import exits
from holdfast.cli.doctor.rules import RULES
from holdfast.cli.main import cli

SOURCES = Path(holdfast.cli.doctor.__file__).parents[1]


def ids_found() -> set[str]:
    """Every id that a check may yield."""
    return {
        node.value
        for path in SOURCES.rglob("*.py")
        if path.name != "rules.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"HF\d{3}", node.value)
    }


def test_each_finding_has_a_rule_and_each_rule_is_found_somewhere() -> None:
    assert ids_found() == set(RULES)


def test_ids_are_in_order_and_given_once() -> None:
    source = (SOURCES / "doctor/rules.py").read_text()
    written = re.findall(r'^ {8}"(HF\d{3})",$', source, re.MULTILINE)
    assert written == sorted(set(written)) == list(RULES)


def test_page_says_what_the_table_says() -> None:
    assert doctor_page.PAGE.read_text() == doctor_page.page(), "run: python tools/doctor_page.py"


def test_each_exit_code_has_one_meaning() -> None:
    codes = {name: value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    del codes["SIGNAL_BASE"]
    assert sorted(codes.values()) == sorted(exits.MEANINGS)


def test_explain_prints_the_page_of_a_finding_and_checks_nothing() -> None:
    result = CliRunner().invoke(cli, ["--socket", "/nowhere", "doctor", "--explain", "hf022"])
    assert result.exit_code == 0
    assert result.output.startswith("### HF022 ")
    assert "virtlockd kills every VM that holds a lock" in result.output
    assert len(json.loads(CliRunner().invoke(cli, ["doctor", "--explain", "all", "--json"]).output)) == len(
        RULES
    )


@pytest.mark.parametrize("option", ["--explain", "--only"])
def test_finding_that_does_not_exist_is_a_mistake_on_the_command_line(option: str) -> None:
    result = CliRunner().invoke(cli, ["doctor", option, "HF999"])
    assert result.exit_code == exits.USAGE
    assert "there is no finding HF999" in result.output


def test_only_reports_and_counts_those_findings_alone(tmp_path: Path) -> None:
    config = tmp_path / "holdfast.toml"
    config.write_text(f'run_dir = "{tmp_path}/run"\n[virtlockd]\nsocket = "{tmp_path}/sock"\n')
    arguments = ["--config", str(config), "doctor", "--root", str(tmp_path), "--json"]
    result = CliRunner().invoke(cli, [*arguments, "--only", "HF020,hf032"])
    assert {each["id"] for each in json.loads(result.output)} == {"HF020"}
    assert result.exit_code == exits.PROBLEMS
    assert CliRunner().invoke(cli, [*arguments, "--only", "HF032"]).exit_code == exits.OK
