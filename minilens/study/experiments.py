"""The experiments of the logit lens on any model: three texts, each in five readings.

nostalgebraist 2020, "interpreting GPT: the logit lens" (the post), and the notebook of 2021 that extends it to GPT-Neo
and CTRL.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..checkpoint.tokenizer import Tokenizer
from ..model import Model
from ..table import LensTable, logit_lens


class Reading(NamedTuple):
    """One way to decode the rows."""

    name: str
    lens: Mapping[str, Any]  # options of a `Lens`


READINGS = (
    Reading("final", {}),
    Reading("plain norm", {"norm": "plain"}),
    Reading("centred", {"centre": True}),
    Reading("mlp", {"decoder": "mlp"}),
    Reading("block:1", {"decoder": "block:1"}),
)
SITES = ("resid_mid", "resid_post")
PROMPTS = ("passage", "repetition", "extreme")

# Written for this study, in words that a model of children's stories knows as well as GPT-2 does.
PASSAGE = (
    "Once upon a time there was a girl who lived with her grandmother in a small house near the sea. Every morning she "
    "went down to the shore to see what the water had brought. One day she found a little box made of wood, and in the "
    'box there was a key. "What does it open?" she asked. Her grandmother looked at the key for a long time and did '
    "not say a word. Then she took the girl by the hand and they walked along the beach until they came to an old door "
    "in the rocks. The girl was afraid, but she put the key into the lock and turned it. Behind the door there was a "
    "garden full of flowers, and in the middle of the garden stood a tree with golden apples."
)


class Wording(NamedTuple):
    """A text that ends with a rare word which it has had before, and one that says little else; {} is the word."""

    repetition: str
    extreme: str


PLASMA = "plasma"  # the post's word
PLASMA_WORDINGS = (
    Wording(  # the post's; its extreme form is in the post's notebook
        "Sometimes, when people say {}, they mean a state of matter. Other times, when people say {}",
        "I love {}. I love {}. I love {}. I love {}.",
    ),
    Wording(  # CTRL cuts "plasma," into "plas@@ ma,", so here no sign follows the word
        "Sometimes when people say {} they mean a state of matter. Other times when people say {}",
        "I love {} and I love {} and I love {} and I love {}",
    ),
)
# Words that a model of children's stories knows and seldom expects, and what it might read of them.
WORDS = ("diamond", "elephant", "balloon", "turtle", "feather", "dragon", "castle", "crown", "rabbit", "monkey")
STORY = Wording(
    "Anna had a {} and she loved her {} very much. One day she could not find it anywhere. She asked her mother, "
    '"Where is my {}',
    "I love my {} and I love my {} and I love my {} and I love my {}",
)


class Word(NamedTuple):
    """A rare word and the texts that repeat it."""

    token: int
    repetition: str
    extreme: str


@dataclass(frozen=True, eq=False)
class Study:
    """A model's tables, by prompt and reading, and what they say."""

    name: str
    family: str
    n_layers: int
    texts: dict[str, str]  # by prompt
    word: int  # the rare word's token
    tables: dict[tuple[str, str], LensTable]
    others: dict[int, dict[str, LensTable]]  # other rare words: by token and prompt, in the final reading
    readings: tuple[Reading, ...] = READINGS

    def quartiles(self, prompt: str, reading: str, statistic: str) -> Float[Tensor, "3 row"]:
        """The lower quartile, the median and the upper quartile of one of STATISTICS over the positions."""
        values = STATISTICS[statistic](self.tables[prompt, reading]).double()
        return values.nanquantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=1)

    def share(self, prompt: str, reading: str, share: str) -> Float[Tensor, "row"]:
        """The share of positions, 0 to 1, for which one of SHARES is true."""
        return SHARES[share](self.tables[prompt, reading]).double().mean(1)

    def word_ranks(self, prompt: str, reading: str = "final") -> Int[Tensor, "row place"]:
        """The rank of the rare word as the next token, wherever it is the true one."""
        return _ranks_before(self.word, self.tables[prompt, reading])

    def other_ranks(self, prompt: str) -> dict[int, Int[Tensor, "row place"]]:
        """The same of each other word, in the final reading."""
        return {token: _ranks_before(token, tables[prompt]) for token, tables in self.others.items()}

    def word_as_input(self, prompt: str, reading: str = "final") -> Int[Tensor, "row place"]:
        """The rank of the rare word where it is the input."""
        table = self.tables[prompt, reading]
        return table.tracked.rank[:, table.tokens == self.word, 0]

    def __repr__(self) -> str:
        return f"Study of {self.name!r}: {', '.join(PROMPTS)}; {1 + len(self.others)} rare words"


def _ranks_before(token: int, table: LensTable) -> Int[Tensor, "row place"]:
    return table.tracked.rank[:, table.next_tokens == token, 0]


STATISTICS: dict[str, Callable[[LensTable], Tensor]] = {
    "kl_final": lambda table: table.kl_final,
    "kl_input": lambda table: table.kl_input,
    "final_rank": lambda table: table.final.rank,
    "input_rank": lambda table: table.input.rank,
    "entropy": lambda table: table.entropy,
    "cross_entropy": lambda table: table.cross_entropy,
}
SHARES: dict[str, Callable[[LensTable], Tensor]] = {
    "agrees": lambda table: table.agrees,
    "settled": lambda table: table.settled <= torch.arange(len(table.labels))[:, None],
    "input_first": lambda table: table.input.rank == 1,
}

Job = tuple[str, int, str, Reading]  # a prompt, the word it is about, its text, and how to read it


def study(
    name: str,
    model: Model,
    tokenizer: Tokenizer,
    *,
    passage: str = PASSAGE,
    word: str | None = None,
    others: Sequence[Reading] = (),
    each: Callable[[Sequence[Job]], Iterable[Job]] = iter,
) -> Study:
    """Read the passage, and two texts that repeat a rare word, in all READINGS, with rows after attention as well.

    name: the model's, for titles.
    passage: a text of two tokens or more. Of the built-in one as much is read as the context holds.
    word: the rare word. By default it is plasma, if the vocabulary has it as one token, else the first of WORDS; the
    others of WORDS are then read as well, in the final reading. If it has none, the word is its own longest one.
    others: readings beside READINGS, such as those through learned lenses; no claim depends on them.
    each: goes through the jobs in order, and may show how far it is.

    If the model has control codes, each text without one gets the first.
    Raises ValueError where a text is too short or too long, where no word suits the vocabulary, for a model of fewer
    than three blocks, and for two readings of one name.
    """
    readings = (*READINGS, *others)
    if len({reading.name for reading in readings}) < len(readings):
        raise ValueError(f"name each reading once; got {', '.join(reading.name for reading in readings)}")
    if model.n_layers < 3:
        raise ValueError(f"a study compares first, middle and last blocks: it needs three, not {model.n_layers}")
    if passage == PASSAGE:
        passage = _beginning(passage, model, tokenizer)
    if (n := tokenizer.encode(passage).shape[1]) < 2:
        raise ValueError(f"the passage has {n} {'token' if n == 1 else 'tokens'}: a study needs at least two")

    def coded(text: str) -> str:
        return f"{tokenizer.codes[0]} {text}" if tokenizer.codes and tokenizer.hint(text) else text

    first, *rare = _words(tokenizer, word)
    texts = dict(zip(PROMPTS, map(coded, (passage, first.repetition, first.extreme)), strict=True))
    jobs = [(prompt, first.token, text, reading) for prompt, text in texts.items() for reading in readings]
    for other in rare:
        pairs = zip(PROMPTS[1:], (other.repetition, other.extreme), strict=True)
        jobs += [(prompt, other.token, coded(text), READINGS[0]) for prompt, text in pairs]
    tables: dict[tuple[str, str], LensTable] = {}
    found: dict[int, dict[str, LensTable]] = {other.token: {} for other in rare}
    for prompt, token, text, reading in each(jobs):
        try:
            table = read(model, tokenizer, text, token, reading)
        except ValueError as error:
            raise ValueError(f"the {prompt} cannot be read: {error}") from error
        if token == first.token:
            tables[prompt, reading.name] = table
        else:
            found[token][prompt] = table
    return Study(name, model.family, model.n_layers, texts, first.token, tables, found, readings)


def read(model: Model, tokenizer: Tokenizer, text: str, token: int, reading: Reading) -> LensTable:
    """One text in one reading, with the ranks of a token. Raises ValueError for a text that is too long or empty."""
    options: dict[str, Any] = {"sites": SITES, **reading.lens, "track": (token,), "top_k": 1}
    stats = ("top", "final", "next", "input", "entropy", "kl_final", "kl_input")
    return logit_lens(model, tokenizer.encode(text), **options, stats=stats, tokenizer=tokenizer)


def _beginning(passage: str, model: Model, tokenizer: Tokenizer) -> str:
    """As many words of it as the model can read together, with a control code before them."""
    words = passage.split(" ")
    while len(words) > 1 and tokenizer.encode(" ".join(words)).shape[1] >= model.config.n_ctx:
        del words[-1]
    return " ".join(words)


def _words(tokenizer: Tokenizer, word: str | None) -> list[Word]:
    """The rare words that suit the vocabulary, with their texts: plasma or the first of WORDS, then the others."""
    if word is not None:
        own = _suiting(tokenizer, word, STORY)
        if own is None:
            raise ValueError(
                f'the rare word must be one token of this model, and none that the text has already; "{word}" is not'
            )
        return [own]
    plasma = [_suiting(tokenizer, PLASMA, wording) for wording in PLASMA_WORDINGS]
    stories = [_suiting(tokenizer, each, STORY) for each in WORDS]
    found = [each for each in plasma if each][:1] + [each for each in stories if each]
    if not found:  # in a small vocabulary its longest word is the rarest
        pieces = {tokenizer.piece(token).decode(errors="replace").strip() for token in range(tokenizer.size)}
        lower = [piece for piece in pieces if piece.isalpha() and piece.islower() and len(piece) > 2]
        longest = (_suiting(tokenizer, piece, STORY) for piece in sorted(lower, key=lambda piece: (-len(piece), piece)))
        found = [each for each in longest if each][:1]
    if not found:
        raise ValueError(
            f"none of the words {PLASMA}, {', '.join(WORDS)} is one token of this model: name one that is (--word)"
        )
    return found


def _suiting(tokenizer: Tokenizer, word: str, wording: Wording) -> Word | None:
    """The word in this wording, if it is one and the same token wherever it stands, and nothing else is that token."""
    if not word.strip():
        return None
    texts = [form.replace("{}", word) for form in wording]
    tokens = [tokenizer.encode(text)[0].tolist() for text in texts]
    last = tokens[0][-1]
    counts = [each.count(last) for each in tokens]
    fits = tokenizer.decode([last]).strip() == word and counts == [form.count("{}") for form in wording]
    return Word(last, *texts) if fits else None
