"""`minilens lens`: what each layer would say next."""

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..loading import load
from ..model import Model, run
from ..ops import check_layer
from ..shapes import Tokens
from ..table import DEFAULT_STATS, STATS, logit_lens
from ..traces import RESID_SITES, BlockTrace, Edit
from ..views.lens_panels import MEASURES, PARTS, SHORT, WHOSE, stats_for
from .edits import add_edits, check_edits, given_edit, named_edits
from .inputs import Subparsers, add_source, given_text, given_tokens, named_token, places, words
from .outputs import FIGURES, add_figures, check_files, one_output, say


def add_to(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("lens", help="what each layer would say next, as a table")
    parser.set_defaults(command=lens)
    add_source(parser)
    add_edits(parser)
    parser.add_argument(
        "--decoder",
        default="final",
        help='"final"; "block:K": the last K blocks decode, too; "mlp"; several with commas, side by side',
    )
    parser.add_argument(
        "--norm", help='"final" (the default), or "plain": the final norm without gain and bias, as --style 2020 has it'
    )
    parser.add_argument("--centre", action="store_true", help="subtract from each row its mean over the positions")
    parser.add_argument(
        "--sites", default="resid_post", help=f"residuals to decode, with commas: {', '.join(RESID_SITES)}"
    )
    parser.add_argument(
        "--positions", help="columns, as in Python: 0,3,-1 or 5:10; before a minus sign, --positions=-10:"
    )
    parser.add_argument("--layers", help="blocks that get rows, written like --positions")
    parser.add_argument("--track", action="append", default=[], metavar="TOKEN", help='follow a token, such as " girl"')
    parser.add_argument("--top-k", type=int, help="tokens to show for each cell (default: 1, and 5 with --json)")
    parser.add_argument(
        "--show",
        help="what cells show in the terminal and in figures, with commas: prob (in the terminal the best tokens, the "
        f"default), {', '.join([name for name in SHORT['2021'] if name != 'prob'] + [*MEASURES])}; or "
        f"{', '.join(WHOSE)} or tracked with _{', _'.join(PARTS)}, as in next_rank",
    )
    parser.add_argument(
        "--stats", help=f"statistics for --json, --csv and --html, with commas, or all: {', '.join(STATS)}"
    )
    parser.add_argument("--json", action="store_true", help="print the whole table as JSON")
    parser.add_argument("--csv", action="store_true", help="print it as CSV, a line for each row and position")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write it as a page to look around in")
    parser.add_argument(
        "--patterns",
        nargs="?",
        const=":",
        metavar="LAYERS",
        help="put attention patterns into the page: after the text alone of all layers, or of some, as --layers",
    )
    add_figures(parser)
    parser.add_argument("--style", help='of figures: "2021" (the default) or "2020"')
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def lens(args: argparse.Namespace) -> None:
    """The lens on a text: in the terminal, as data, as a page or as a figure."""
    figures = {kind: getattr(args, kind) for kind in FIGURES if getattr(args, kind)}
    decoders = words(args.decoder)
    show = ["logit" if figures else "prob", *["tracked_rank"] * bool(args.track)]
    show = show if args.show is None else words(args.show)
    style = args.style or ("2021" if figures else "2020")
    _check(args, decoders, figures, show)
    check_edits(args)
    stats = _stats(args, show, style)
    text = given_text(args)
    model, tokenizer = load(args.model, revision=args.revision, ignoring=args.ignore_key)
    tokens = given_tokens(args, text, tokenizer)
    edit = given_edit(args, model, tokenizer)
    patterns = _patterns(args, model, tokens, edit)
    few = not (args.json or args.csv or args.html)
    tables = [
        logit_lens(
            model,
            tokens,
            decoder=decoder,
            norm=args.norm or ("plain" if figures and style == "2020" else "final"),
            centre=args.centre,
            sites=words(args.sites),
            layers=places("--layers", args.layers, model.n_layers),
            positions=places("--positions", args.positions, tokens.shape[1]),
            track=[named_token("--track", text, tokenizer) for text in args.track],
            top_k=args.top_k if args.top_k is not None else 1 if few else 5,
            stats=stats,
            edit=edit,
            tokenizer=tokenizer,
        )
        for decoder in decoders
    ]
    edits = named_edits(args)
    edited = "".join(f", {edit}" for edit in edits)
    ignored = "".join(f", ignoring {key}" for key in args.ignore_key)
    if args.json:
        from ..views.records import as_record

        record = as_record(tables[0])
        json.dump(
            {"model": args.model, "family": model.family, "ignored_keys": args.ignore_key, "edits": edits, **record},
            sys.stdout,
            indent=1,
        )
        print()
    elif args.csv:
        from ..views.records import as_lines

        csv.writer(sys.stdout, lineterminator="\n").writerows(as_lines(tables[0]))
        if edits:
            say(f"note: this is the lens of an edited model: {', '.join(edits)}")
    elif args.html:
        from ..views.lens_page import lens_page

        page = lens_page(tables, title=args.model + ignored + edited, tokens=tokens, patterns=patterns)
        args.html.write_text(page, encoding="utf-8")
    elif figures:
        from ..views.lens_figure import lens_figure
        from ..views.plots import save_figure

        figure = lens_figure(tables, show=show, style=style, title=args.model + ignored + edited if edits else "")
        for path in figures.values():
            save_figure(path, figure)
    else:
        from rich.console import Console
        from rich.text import Text

        from ..views.lens_terminal import lens_view
        from ..views.tokens import text_label

        console = Console(highlight=False)
        console.print(lens_view(tables, show=show, width=console.width))
        if edits:
            console.print(Text(text_label(f"edited: {', '.join(edits)}"), "dim"))


def _check(args: argparse.Namespace, decoders: list[str], figures: dict[str, Path], show: list[str]) -> None:
    """Refuse what does not go together, before a model is loaded."""
    given = one_output({"--json": args.json, "--csv": args.csv, "--html": args.html}, figures)
    if given and not figures and args.show:
        raise ValueError("--show is for the terminal and for figures: --stats chooses for the others")
    if figures or not given:
        of_tracked = [name for name in show if re.match("tracked_|token[0-9]", name)]
        if of_tracked and not args.track:
            raise ValueError(f"--show {of_tracked[0]} needs --track, which names the token")
        if args.track and not of_tracked:
            raise ValueError(f"--track is for cells that show its tokens: --show {args.show},tracked_rank")
    if args.stats and (figures or not given):
        raise ValueError("--stats is for --json, --csv and --html; in the terminal --show chooses")
    if repeated := [decoder for at, decoder in enumerate(decoders) if decoder in decoders[:at]]:
        raise ValueError(f"the decoder {repeated[0]} is named twice")
    if args.style and not figures:
        raise ValueError("--style is for figures: --png, --svg, --pdf")
    if args.patterns is not None:
        if not args.html:
            raise ValueError("--patterns is for --html")
        places("--patterns", args.patterns, 0)  # its spelling: a text that follows the option is no list of layers
    if len(decoders) > 1 and (args.json or args.csv):
        raise ValueError(f"{given[0]} takes one decoder; several are for the terminal, --html and figures")
    if args.top_k is not None and (figures or not (given or "prob" in show)):
        raise ValueError(
            "--top-k goes with --json or with cells that show tokens, not with "
            + (given[0] if given else f"--show {args.show}")
        )
    check_files(args, figures)


def _stats(args: argparse.Namespace, show: list[str], style: str) -> Iterable[str]:
    """What logit_lens is to compute."""
    if args.stats is not None:
        return STATS if args.stats == "all" else words(args.stats)
    if args.html:
        return (*DEFAULT_STATS, "input")
    return DEFAULT_STATS if args.json or args.csv else stats_for(show, style)


def _patterns(args: argparse.Namespace, model: Model, tokens: Tokens, edit: Edit) -> Iterator[BlockTrace] | None:
    """The blocks whose attention patterns go into the page, each computed when it is asked for."""
    if args.patterns is None:
        return None
    layers = places("--patterns", args.patterns, model.n_layers) or []
    for layer in layers:
        check_layer(layer, model.n_layers)
    if not layers:
        raise ValueError(f"--patterns names no layer with {args.patterns!r}: the model has {model.n_layers}")
    return filter(lambda block: block.layer in layers, run(model, model.embed(tokens), edit=edit))


def corpus(args: argparse.Namespace) -> None:
    """The lens over files of text."""
    from .corpus import corpus as corpus_of

    corpus_of(args)
