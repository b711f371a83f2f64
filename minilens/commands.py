"""What each command of `minilens` does, given its arguments; cli.py reads those."""

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from .arguments import (
    check_edits,
    check_new,
    given_edit,
    given_pair,
    given_text,
    given_tokens,
    named_edits,
    named_token,
    places,
    read_text,
    say,
    words,
)
from .geometry import geometry as geometry_of
from .hub import bundled, cached, load
from .lens import DEFAULT_STATS, STATS, logit_lens
from .ops import check_layer
from .patching import log_probability, logit_difference
from .patching import patching as patching_of
from .run import run
from .shapes import Tokens
from .text import Tokenizer
from .trace import BlockTrace, Edit, Model
from .verify import verify as verify_of
from .views.panels import stats_for
from .views.tokens import printable

FIELDS = tuple(field.name for field in fields(BlockTrace))[1:]  # all but its layer
DEFAULT_MODEL = "tales-gpt2"
FIGURES = ("png", "svg", "pdf")


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
    model, tokenizer = load(args.model, revision=args.revision)
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
    if args.json:
        from .views.export import as_record

        record = as_record(tables[0])
        json.dump({"model": args.model, "family": model.family, "edits": edits, **record}, sys.stdout, indent=1)
        print()
    elif args.csv:
        from .views.export import as_lines

        csv.writer(sys.stdout, lineterminator="\n").writerows(as_lines(tables[0]))
        if edits:
            say(f"note: this is the lens of an edited model: {', '.join(edits)}")
    elif args.html:
        from .views.page import lens_page

        page = lens_page(tables, title=args.model + edited, tokens=tokens, patterns=patterns)
        args.html.write_text(page, encoding="utf-8")
    elif figures:
        from .views.figure import lens_figure, save_figure

        figure = lens_figure(tables, show=show, style=style, title=args.model + edited if edits else "")
        for path in figures.values():
            save_figure(path, figure)
    else:
        from rich.console import Console
        from rich.text import Text

        from .views.terminal import lens_view
        from .views.tokens import text_label

        console = Console(highlight=False)
        console.print(lens_view(tables, show=show, width=console.width))
        if edits:
            console.print(Text(text_label(f"edited: {', '.join(edits)}"), "dim"))


def _check(args: argparse.Namespace, decoders: list[str], figures: dict[str, Path], show: list[str]) -> None:
    """Refuse what does not go together, before a model is loaded."""
    given = _given({"--json": args.json, "--csv": args.csv, "--html": args.html}, figures)
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
    _check_files(args, figures)


def _given(outputs: dict[str, Any], figures: dict[str, Path]) -> list[str]:
    """The option that chooses the output, or none; two are refused. Several figures count as one."""
    given = [option for option, value in {**outputs, f"--{next(iter(figures), '')}": figures}.items() if value]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} are both given: choose one")
    return given


def _check_files(args: argparse.Namespace, figures: dict[str, Path]) -> None:
    """Refuse files that cannot be written, or should not."""
    for kind, path in {"html": args.html, **figures}.items():
        if path:
            if kind != "html" and path.suffix.lower() != f".{kind}":
                raise ValueError(f"the name of the file for --{kind} must end in .{kind}; got {str(path)!r}")
            check_new(path, args.overwrite)


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


def trace(args: argparse.Namespace) -> None:
    """Save the values of a forward pass."""
    names = FIELDS if args.fields == "all" else words(args.fields)
    if unknown := [name for name in names if name not in FIELDS]:
        raise ValueError(f'a block has no "{unknown[0]}"; it has {", ".join(FIELDS)}')
    check_new(args.out, args.overwrite)
    check_edits(args)
    if args.out.parent.resolve() == Path(args.model).resolve():
        raise ValueError(f"{args.out} is in the model's own folder: give another name")
    text = given_text(args)
    model, tokenizer = load(args.model, revision=args.revision)
    tokens = given_tokens(args, text, tokenizer)
    resid = model.embed(tokens)
    values = {"tokens": tokens, "embed": resid}
    for block in run(model, resid, edit=given_edit(args, model, tokenizer)):
        values |= {f"{block.layer}.{name}": getattr(block, name) for name in names}
        resid = block.resid_post
    values["logits"] = model.unembed(resid)
    # safetensors takes no views and no tensor twice, as the stream leaving one block and entering the next would be
    values = {name: value.clone(memory_format=torch.contiguous_format) for name, value in values.items()}
    try:
        save_file(
            values,
            args.out,
            metadata={"model": printable(args.model), "family": model.family, "edits": ", ".join(named_edits(args))},
        )
        args.out.chmod(0o644)  # safetensors writes for the owner only
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{args.out} cannot be written: {error}") from error


def walk(args: argparse.Namespace) -> None:
    """Show how one block computes, a line of its source at a time."""
    from rich.console import Console

    from .views.walk import walk_view

    text = given_text(args)
    model, tokenizer = load(args.model, revision=args.revision)
    check_layer(args.layer, model.n_layers)
    tokens = given_tokens(args, text, tokenizer)
    resid = model.embed(tokens)
    for block in run(model, resid, stop=args.layer):
        resid = block.resid_post
    block = model.block(args.layer, resid)
    console = Console(highlight=False)
    place = {"position": args.position, "head": args.head}
    console.print(walk_view(model, tokens, block, **place, tokenizer=tokenizer, width=console.width))


def patching(args: argparse.Namespace) -> None:
    """Put the values of one run into another, one at a time, and show how much of the metric each brings back."""
    figures = {kind: getattr(args, kind) for kind in FIGURES if getattr(args, kind)}
    _given({"--json": args.json, "--html": args.html}, figures)
    _check_files(args, figures)
    if figures:
        from .views.figure import save_figure
        from .views.patches_figure import patching_figure
    from rich.console import Console
    from rich.progress import Progress

    from .views.tokens import text_label, token_label

    model, tokenizer = load(args.model, revision=args.revision)
    clean, corrupt = given_pair(args, tokenizer)
    given = {option: text for option in ("right", "wrong") if (text := getattr(args, option)) is not None}
    named = {option: named_token(f"--{option}", text, tokenizer) for option, text in given.items()}
    for option, token in named.items():
        if token >= model.W_U.shape[1]:
            raise ValueError(f"--{option}: token id {token} does not exist: they go from 0 to {model.W_U.shape[1] - 1}")
    labels = [token_label(tokenizer, token) for token in named.values()]
    if "wrong" in named:
        metric, asked = logit_difference(*named.values()), "logit of {} less that of {}".format(*labels)
    else:
        metric, asked = log_probability(*named.values()), "log-probability of {}".format(*labels)
    default = "z" if args.by == "head" else "resid_pre,attn_out,mlp_out"
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        found = patching_of(
            model,
            clean,
            corrupt,
            metric,
            sites=words(default if args.sites is None else args.sites),
            by=args.by,
            position=args.position,
            tokenizer=tokenizer,
            each=partial(progress.track, description="patching"),
        )
    position = args.position % clean.shape[1]
    title = f"{text_label(args.model)}: {asked}, at position {position}"
    if args.json:
        from .views.export import patching_record, token_record

        tokens = {option: token_record(tokenizer, token) for option, token in named.items()}
        record = {"model": args.model, "family": model.family, "position": position, **tokens, **patching_record(found)}
        json.dump(record, sys.stdout, indent=1)
        print()
    elif args.html:
        from .views.patches import patching_page

        args.html.write_text(patching_page(found, title=title), encoding="utf-8")
    elif figures:
        figure = patching_figure(found, title=title)
        for path in figures.values():
            save_figure(path, figure)
    else:
        from .views.patches import patching_view

        console = Console(highlight=False)
        console.print(patching_view(found, title=title, width=console.width))


def study(args: argparse.Namespace) -> None:
    """Run the known experiments on one model or several, print the verdicts, and write the report."""
    names = list(args.models or (bundled() if args.compare else [DEFAULT_MODEL]))
    if len(names) > 1 and args.revision:
        raise ValueError("--revision is for one model")
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    from .study import PASSAGE
    from .study import study as study_of
    from .views.figure import save_figure
    from .views.report import overview, study_lines, study_report, verdict_tables
    from .views.tokens import text_label

    page, curves, numbers = (args.out / name for name in ("report.html", "curves.png", "numbers.csv"))
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"{args.out} is not a folder: give another name with --out")
    if not args.out.parent.is_dir():
        raise ValueError(f"{args.out} cannot be made: there is no folder {args.out.parent}")
    for path in (page, curves, numbers) if args.out.exists() else ():
        check_new(path, args.overwrite)
    passage = PASSAGE if args.file is None else read_text(args.file)

    def loaded(name: str) -> tuple[Model, Tokenizer]:
        model, tokenizer = load(name, revision=args.revision)
        if tokenizer is None:
            raise ValueError(f"{name} has no tokenizer files, so it cannot read the texts of a study")
        return model, tokenizer

    for name in names[1:]:  # what cannot be loaded ends the command now, not after the studies of those before it
        loaded(name)
    studies = []
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        for name in names:
            model, tokenizer = loaded(name)
            each = partial(progress.track, description=escape(text_label(name)))
            studies.append(study_of(name, model, tokenizer, passage=passage, word=args.word, each=each))
        progress.add_task("drawing", total=None)
        report, figure = study_report(studies), overview(studies)
    console = Console(highlight=False)
    for table in verdict_tables(studies, width=console.width):
        console.print(table, end="\n")
    try:
        args.out.mkdir(exist_ok=True)
        page.write_text(report, encoding="utf-8")
        save_figure(curves, figure)
        with numbers.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(study_lines(studies))
    except OSError as error:
        raise ValueError(f"{error.filename or args.out} cannot be written: {error.strerror}") from error
    say(f"{page} has all figures, {curves} the first, {numbers} the numbers")


def corpus(args: argparse.Namespace) -> None:
    """The lens over files of text."""
    from .corpus_command import corpus as corpus_of

    corpus_of(args)


def geometry(args: argparse.Namespace) -> None:
    """Print how a model's embeddings lie in space."""
    model, tokenizer = load(args.model, revision=args.revision)
    found = geometry_of(model)
    if args.json:
        json.dump({"model": args.model, "family": model.family, **found._asdict()}, sys.stdout, indent=1)
        print()
        return
    from .views.tokens import text_label, token_label

    print(f"{model.W_U.shape[1]:,} embeddings of {model.W_U.shape[0]} dimensions, {text_label(args.model)}")
    print(f"mean norm                          {found.mean_norm:.3f}")
    print(f"norm of the mean                   {found.norm_of_mean:.3f}")
    print(f"mean cosine of two                 {found.mean_cosine:.4f}")
    print(f"the same, less the mean            {found.mean_cosine_centred:.4f}")
    for name, token, norm in (
        ("largest", found.largest, found.largest_norm),
        ("smallest", found.smallest, found.smallest_norm),
    ):
        print(f"{name + ' norm':34} {norm:.3f}  token {token}, {token_label(tokenizer, token)}")


def verify(args: argparse.Namespace) -> int:
    """Check a checkpoint part by part; 1 where anything is wrong."""
    from rich.console import Console
    from rich.progress import Progress

    from .views.verify import verify_record, verify_view

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        each = partial(progress.track, description="tensors")
        report = verify_of(args.model, revision=args.revision, known_as=args.known_as, each=each)
    if args.json:
        json.dump(verify_record(report), sys.stdout, indent=1)
        print()
    else:
        Console(highlight=False).print(verify_view(report))
    return 1 if report.faults else 0


def models(args: argparse.Namespace) -> None:
    """Print the models that are there."""
    rows = [(name, "bundled") for name in bundled()] + [(name, "cached") for name in cached()]
    width = max((len(name) for name, _ in rows), default=0)
    for name, where in rows:
        print(f"{name:{width}}  {where}")
