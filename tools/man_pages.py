"""Man pages from what there is: the commands' help, holdfastd's options, docs/configuration.md and the hook's docstring.

    .venv/bin/python tools/man_pages.py DIRECTORY       # holdfast.1, holdfast-who.1, ..., holdfastd.8, holdfast.toml.5

groff's man(7) macros, so that `man -l FILE` shows them. Nothing is written by hand but what a page is about.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from markdown_it import MarkdownIt
from markdown_it.token import Token

from holdfast import __version__
from holdfast.cli.main import cli
from holdfast.daemon import sanlockd
from holdfast.daemon.main import argument_parser
from holdfast.hooks import qemu
from holdfast.switch import program
from holdfast.web.main import argument_parser as web_arguments

ROOT = Path(__file__).parents[1]
DESCRIPTIONS = {
    "holdfast.toml": "configuration of holdfastd",
    "holdfastd": "lock daemon for virtual machine disks, in virtlockd's place",
    "holdfast-sanlockd": "holdfastd in the place of sanlock's daemon",
    "holdfast-web": "web page and metrics about the locks of a host",
    "holdfast-virtlockd-switch": "stands in virtlockd's place while that becomes holdfastd",
    "holdfast-qemu-hook": "libvirt's hook that asks holdfastd for a VM's disks before QEMU opens them",
}
FILES = "/etc/holdfast/holdfast.toml, /run/holdfast, /var/lib/holdfast: see holdfast.toml(5)."
SEE_ALSO = (
    "holdfast(1)",
    "holdfastd(8)",
    "holdfast.toml(5)",
    "holdfast-qemu-hook(8)",
    "holdfast-sanlockd(8)",
    "holdfast-web(8)",
)


def escaped(text: str) -> str:
    """Plain text as roff shows it: no escape, no request at the start of a line, and minus signs that can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = "".join(each if each.isascii() else f"\\[u{ord(each):04X}]" for each in text)
    return re.sub(r"(?m)^([.'])", r"\\&\1", text)


def heading(name: str, section: int, description: str) -> str:
    return (
        f'.TH "{escaped(name.upper())}" "{section}" "" "Holdfast {__version__}" "Holdfast"\n'
        ".nh\n.ad l\n"
        f".SH NAME\n{escaped(name)} \\- {escaped(description)}\n"
    )


def closing(page: str) -> str:
    others = ", ".join(escaped(each) for each in SEE_ALSO if each != page)
    return f".SH SEE ALSO\n{others}\n"


# --- commands ---


def commands(group: click.Group, parent: click.Context) -> Iterator[click.Context]:
    """The context of each command, groups first."""
    yield parent
    for name, command in sorted(group.commands.items()):
        context = click.Context(command, info_name=name, parent=parent)
        if isinstance(command, click.Group):
            yield from commands(command, context)
        else:
            yield context


def paragraphs(text: str) -> str:
    """A command's help: paragraphs, and those that begin with \\b, whose lines are kept."""
    out = []
    for part in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in part.strip().splitlines()]
        if lines[0] == "\b":
            kept = "\n".join(escaped(line) for line in lines[1:])
            out.append(f".PP\n.nf\n{kept}\n.fi\n")
        else:
            out.append(f".PP\n{escaped(' '.join(lines))}\n")
    return "".join(out)


def of_command(context: click.Context) -> str:
    """The page of one command."""
    command = context.command
    name = context.command_path.replace(" ", "-")
    synopsis = " ".join(command.collect_usage_pieces(context))
    page = heading(name, 1, command.get_short_help_str(limit=400).rstrip("."))
    page += f".SH SYNOPSIS\n\\fB{escaped(context.command_path)}\\fR {escaped(synopsis)}\n"
    page += f".SH DESCRIPTION\n{paragraphs(command.help or '')}"
    records = [found for each in command.get_params(context) if (found := each.get_help_record(context))]
    if records:
        page += ".SH OPTIONS\n"
        for names, text in records:
            page += f".TP\n\\fB{escaped(names)}\\fR\n{escaped(text or 'See above.')}\n"
    if isinstance(command, click.Group):
        page += ".SH COMMANDS\n"
        for each, below in sorted(command.commands.items()):
            pages = f"{name}-{each}(1)"
            page += f".TP\n\\fB{escaped(pages)}\\fR\n{escaped(below.get_short_help_str(limit=400))}\n"
    return page + f".SH FILES\n{escaped(FILES)}\n" + closing("holdfast(1)" if name == "holdfast" else "")


# --- programs ---


def of_program(parser: argparse.ArgumentParser) -> str:
    """A program with argparse's options."""
    name = parser.prog
    page = heading(name, 8, DESCRIPTIONS[name])
    usage = " ".join(parser.format_usage().removeprefix(f"usage: {name}").split())
    page += f".SH SYNOPSIS\n\\fB{escaped(name)}\\fR {escaped(usage)}\n"
    page += f".SH DESCRIPTION\n{escaped(parser.description or '')}\n.SH OPTIONS\n"
    for action in parser._actions:
        names = ", ".join(action.option_strings)
        value = f" {action.metavar}" if action.metavar else ""
        text = (action.help or "").replace("%(default)s", str(action.default)).replace("%(prog)s", name)
        page += f".TP\n\\fB{escaped(names + value)}\\fR\n{escaped(text)}\n"
    return page + f".SH FILES\n{escaped(FILES)}\n" + closing(f"{name}(8)")


def of_hook() -> str:
    options = "[--socket PATH] [--qemu-conf PATH] GUESTNAME OPERATION SUBOP EXTRA"
    return of_docstring("holdfast-qemu-hook", options, qemu.__doc__)


def of_sanlockd() -> str:
    return of_docstring("holdfast-sanlockd", "[daemon] [OPTION VALUE]...", sanlockd.__doc__)


def of_switch() -> str:
    notes = "Nobody runs it by hand: 'holdfast setup' and 'holdfast switch' put it in virtlockd's place for some seconds."
    page = of_docstring("holdfast-virtlockd-switch", "[OPTION OF VIRTLOCKD]...", program.__doc__)
    return f"{page}.SH NOTES\n{escaped(notes)}\n"


def of_docstring(name: str, options: str, docstring: str | None) -> str:
    """A program whose manual is its module's docstring."""
    page = heading(name, 8, DESCRIPTIONS[name])
    page += f".SH SYNOPSIS\n\\fB{escaped(name)}\\fR {escaped(options)}\n.SH DESCRIPTION\n"
    first, *rest = (docstring or "").strip().split("\n\n")
    page += f"{escaped(' '.join(first.split()))}\n"
    for part in rest:
        lines = part.splitlines()
        if all(line.startswith("    ") for line in lines):
            page += ".PP\n.nf\n" + "\n".join(escaped(line) for line in lines) + "\n.fi\n"
        else:
            page += f".PP\n{escaped(' '.join(part.split()))}\n"
    return page + closing(f"{name}(8)")


# --- Markdown ---


def inline(token: Token) -> str:
    """The text of one line of Markdown: code in bold, links by their text."""
    out = []
    for each in token.children or ():
        match each.type:
            case "text":
                out.append(escaped(each.content))
            case "code_inline":
                out.append(f"\\fB{escaped(each.content)}\\fR")
            case "softbreak" | "hardbreak":
                out.append(" ")
            case "em_open" | "strong_open":
                out.append("\\fI")
            case "em_close" | "strong_close":
                out.append("\\fR")
            case _:
                pass
    return re.sub(r"^([.'])", r"\\&\1", "".join(out))


def of_markdown(text: str) -> str:
    """Sections, paragraphs, lists, blocks of code, and tables: a row's first cell is what its other cells are about."""
    out: list[str] = []
    cells: list[str] = []
    titles: list[str] = []
    in_head = in_item = in_cell = False
    level = ""
    for token in MarkdownIt().enable("table").parse(text):
        match token.type:
            case "heading_open":
                level = token.tag
            case "heading_close":
                level = ""
            case "thead_open":
                in_head, titles = True, []
            case "thead_close":
                in_head = False
            case "list_item_open":
                in_item = True
                out.append(".IP \\(bu 2\n")
            case "list_item_close":
                in_item = False
            case "tr_open":
                cells = []
            case "th_open" | "td_open":
                in_cell = True
            case "th_close" | "td_close":
                in_cell = False
            case "tr_close" if not in_head:
                about = [
                    f"{title}: {cell}" if title in ("default", "migration_peers") else cell
                    for title, cell in zip(titles[1:], cells[1:], strict=True)
                    if cell
                ]
                out.append(f".TP\n{cells[0]}\n" + "\n.br\n".join(about or ["\\&"]) + "\n")
            case "fence" | "code_block":
                out.append(".PP\n.nf\n" + escaped(token.content.rstrip("\n")) + "\n.fi\n")
            case "inline":
                said = inline(token)
                if level:
                    out.append(f".SH {said}\n" if level != "h1" else "")
                elif in_cell:
                    (titles if in_head else cells).append(said)
                elif in_item:
                    out.append(f"{said}\n")
                else:
                    out.append(f".PP\n{said}\n")
            case _:
                pass
    return "".join(out)


def of_configuration() -> str:
    text = (ROOT / "docs" / "configuration.md").read_text()
    return (
        heading("holdfast.toml", 5, DESCRIPTIONS["holdfast.toml"])
        + f".SH DESCRIPTION\n{of_markdown(text)}"
        + closing("holdfast.toml(5)")
    )


def pages() -> dict[str, str]:
    """Every page, by its file's name."""
    top = click.Context(cli, info_name="holdfast")
    found = {f"{each.command_path.replace(' ', '-')}.1": of_command(each) for each in commands(cli, top)}
    found["holdfastd.8"] = of_program(argument_parser())
    found["holdfast-web.8"] = of_program(web_arguments())
    found["holdfast-qemu-hook.8"] = of_hook()
    found["holdfast-sanlockd.8"] = of_sanlockd()
    found["holdfast-virtlockd-switch.8"] = of_switch()
    found["holdfast.toml.5"] = of_configuration()
    return found


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: tools/man_pages.py DIRECTORY")
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text)
    print(f"{len(pages())} pages in {directory}")


if __name__ == "__main__":
    main()
