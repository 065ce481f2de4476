"""`quantmill` as a command: quick help, JSON, and exit statuses that scripts can use."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.files import write_json
from registry import cli, commands
from tests.tiny import TARGET, verdict

ROOT = Path(__file__).parents[2]


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["quantmill", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    return (code, *capsys.readouterr())


def test_help_imports_nothing_heavy():
    program = """
import sys
from registry import cli
sys.argv = ["quantmill", "--help"]
try:
    cli.main()
except SystemExit:
    pass
print(sorted(m for m in ("numpy", "pydantic", "yaml", "torch", "mlflow", "dvc", "requests") if m in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "exit status: 0 done" in done.stdout


def test_each_command_has_a_function_and_help():
    (actions,) = cli.parser()._subparsers._group_actions
    for name, command in actions.choices.items():
        assert callable(getattr(commands, name)) and command.description, name


def test_check_says_what_runs_here_and_what_to_install(project, monkeypatch, capsys):
    file = ROOT / "params.yaml"
    code, out, err = run(monkeypatch, capsys, "check", str(file))
    assert (code, err) == (0, "") and "openvino-int8     openvino     int8       cpu     yes" in out
    code, out, _ = run(monkeypatch, capsys, "check", str(file), "--json")
    assert json.loads(out)["ok"] and {t["runs_here"] for t in json.loads(out)["targets"]} == {True}
    monkeypatch.setattr("pipelines.runtimes.openvino.PACKAGES", ("no_such_package",))
    Path("one.yaml").write_text("targets: {a: {runtime: onnxruntime, precision: fp32, device: cpu}}\n")
    code, out, _ = run(monkeypatch, capsys, "check", "one.yaml")
    assert code == 1 and "no target names openvino: pip install no_such_package" in out
    code, out, err = run(monkeypatch, capsys, "check", str(file), "--json")
    (target,) = [t for t in json.loads(out)["targets"] if t["target"] == "openvino-int8"]
    assert code == 1 and target["install"] == "pip install no_such_package" and "no_such_package" in err


def test_exit_statuses_tell_no_from_cannot_say(project, monkeypatch, capsys, tmp_path):
    code, out, _ = run(monkeypatch, capsys, "trace", "build/bundles/" + TARGET, "--json")
    assert code == 0 and json.loads(out)["holds"]
    (tmp_path / "stray").write_text("x")
    assert run(monkeypatch, capsys, "trace", str(tmp_path / "stray"))[0] == 1
    assert run(monkeypatch, capsys, "trace", str(tmp_path / "missing"))[0] == 3
    assert run(monkeypatch, capsys, "trace")[0] == 2
    assert run(monkeypatch, capsys, "check", "nowhere.yaml")[0] == 3
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert run(monkeypatch, capsys, "promote", f"tiny.{TARGET}", "1")[0] == 3
    code, out, err = run(monkeypatch, capsys, "sync", "--json")
    assert code == 3 and not out and "the results are safe" in err
    assert run(monkeypatch, capsys, "report", str(tmp_path))[0] == 3


def test_report_strict_is_a_gate_for_scripts(project, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "report", "--strict", "--json")
    assert code == 0 and json.loads(out)["page"] == "build/report/index.html"
    assert Path("build/report/index.html").is_file()
    write_json(project / "build" / "verdicts" / f"{TARGET}.json", verdict("inconclusive"))
    code, out, err = run(monkeypatch, capsys, "report", "--strict")
    assert code == 1 and "0 of 1 targets passed; 1 inconclusive." in err
    assert out.startswith(f"{TARGET}: inconclusive. 12x smaller")
    assert run(monkeypatch, capsys, "report")[0] == 0


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_shells_complete_the_commands(monkeypatch, capsys, shell):
    code, out, _ = run(monkeypatch, capsys, "completion", shell)
    assert code == 0 and "rollback" in out and "quantmill" in out
    program = {"bash": ["bash", "-n"], "zsh": None, "fish": None}[shell]
    if program:
        done = subprocess.run(program, input=out, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
