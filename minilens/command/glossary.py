"""`minilens glossary`: what a word means."""

from dataclasses import dataclass

from ..course.glossary import glossary as all_entries
from ..course.glossary import look_up
from .options import Command, argument
from .outputs import terminal


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens glossary` is asked for."""

    word: str | None = argument(nargs="?", metavar="WORD", help="such as logit; without it, all words are shown")


def glossary(request: Request) -> None:
    """Print the entry of a word, or all words."""
    from rich.table import Table
    from rich.text import Text

    console = terminal()
    if request.word is not None:
        for entry in look_up(request.word):
            console.print(Text(f"{', '.join(entry.words)} ({entry.subject[0].lower()}{entry.subject[1:]})", "bold"))
            console.print(Text(f"  {entry.meaning}"))
        return
    for subject in dict.fromkeys(entry.subject for entry in all_entries()):
        table = Table.grid(padding=(0, 2, 0, 0))
        for entry in all_entries():
            if entry.subject == subject:
                table.add_row(Text("\n".join(entry.words)), Text(entry.meaning))
        console.print(Text(f"{subject}\n", "bold"), table, Text())


COMMAND = Command("glossary", "what a word means", Request, glossary)
