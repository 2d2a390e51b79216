"""`imagegen doctor`: checks the configuration, the machine and the models, and makes a picture."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

import imagegen
from imagegen.cli import checks
from imagegen.cli.checks import Finding
from imagegen.cli.common import ConfigOption, families_of, settings_with
from imagegen.gpu.machine import Machine, look

MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "fault": "[bold red]FAULT[/]"}


def doctor(
    context: typer.Context,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False,
) -> None:
    """Check this machine and make one picture. Exits with 0, or with the exit code of the first fault.

    It changes nothing and can run while the service runs.
    """
    settings, families = settings_with(config=config), families_of(context)
    with Console(stderr=True).status("Asking torch ..."):
        machine = look(settings.device)
    catalog, findings = checks.configuration(settings, families)
    findings += checks.folders(settings)
    findings += checks.device(machine, settings)
    findings += checks.libraries(machine)
    if catalog is not None:
        findings += checks.models(catalog, settings, machine, families)
    with Console(stderr=True).status("Making a picture ..."):
        findings.append(checks.picture(settings))
    exit_code = next((finding.exit_code for finding in findings if finding.level == "fault"), 0)
    if as_json:
        typer.echo(as_text(findings, machine, exit_code))
    else:
        show(findings)
    raise typer.Exit(exit_code)


def as_text(findings: list[Finding], machine: Machine, exit_code: int) -> str:
    """The findings as JSON."""
    whole = {
        "imagegen": imagegen.__version__,
        "exit_code": exit_code,
        "machine": machine.model_dump(mode="json"),
        "findings": [finding.model_dump(mode="json") for finding in findings],
    }
    return json.dumps(whole, indent=2)


def show(findings: list[Finding]) -> None:
    """Print the findings as tables, and the faults once more at the end."""
    console = Console()
    for section in dict.fromkeys(finding.section for finding in findings):
        table = Table(Column(width=5), Column(no_wrap=True), Column(overflow="fold"), box=None, show_header=False)
        for finding in (it for it in findings if it.section == section):
            says = escape(finding.says)
            if finding.mend:
                says += f"\n[dim]{escape(finding.mend)}[/]"
            table.add_row(MARKS[finding.level], escape(finding.about), says)
        console.print(f"[bold]{section}[/]")
        console.print(table)
    faults = [finding for finding in findings if finding.level == "fault"]
    console.print("\nAll is well." if not faults else f"\n[bold red]To mend: {len(faults)}[/]")
    for fault in faults:
        console.print(f"{escape(fault.about)}: {escape(fault.says)}. {escape(fault.mend)}", overflow="fold")
