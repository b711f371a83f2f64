"""`minilens verify`: whether a checkpoint is what it says."""

from dataclasses import dataclass
from functools import partial

from ..checks.verify import verify as verify_of
from .inputs import Reading
from .options import Command, argument, option
from .outputs import print_json, progress, terminal


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens verify` is asked for."""

    model: str = argument(metavar="MODEL", help="a bundled model, a folder or a Hub repository")
    reading: Reading
    known_as: str | None = option(
        "--as",
        metavar="REPOSITORY",
        help="the repository on the Hub whose published outputs the model should give",
    )
    json: bool = option(help="print the report as JSON")


def verify(request: Request) -> int:
    """Check a checkpoint part by part; 1 where anything is wrong."""
    from ..views.verify import verify_record, verify_view

    reading = request.reading
    with progress() as bar:
        each = partial(bar.track, description="tensors")
        report = verify_of(
            request.model, revision=reading.revision, ignoring=reading.ignore_key, known_as=request.known_as, each=each
        )
    if request.json:
        print_json(verify_record(report))
    else:
        terminal().print(verify_view(report))
    return 1 if report.faults else 0


COMMAND = Command("verify", "whether a checkpoint is what it says, and is computed rightly", Request, verify)
