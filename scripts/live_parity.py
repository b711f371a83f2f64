"""The page that computes beside Python: the same tokens, and the same numbers within BOUND, on texts of many kinds.

Run it as `scripts/live_parity.py [MODEL ...]`, by default with the bundled models; it needs playwright and Debian's
chromium. It prints the largest difference of each kind, and ends with status 1 where one is above the bound.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from playwright.sync_api import sync_playwright

import minilens
from minilens.edits import patch, then, zero
from minilens.learned.named import bundled_lenses
from minilens.live.page import live_page
from minilens.vocab import OF_ALL_LOGITS

CHROMIUM = "/usr/bin/chromium"
BOUND = 1e-3  # nats, logits and probabilities
TIE = 1e-3  # of logits that are closer than this, either may come first
TEXTS = [
    "Once upon a time there was a little girl who lived in a house in the forest",
    "The fox said: \"I don't know; they've all gone, and we'll follow. He'd go, I'm sure, it's late, you're right!\"",
    "a",
    " ",
    "\n\n\n  three lines,\tand a tab\r\nand a carriage return \n",
    "Größe, naïve, Ångström, ĳ, ﬁ, ß, İstanbul",
    "Добрый день, как вас зовут? Καλημέρα κόσμε",
    "日本語の文章と中文的句子 한국어 문장도",
    "مرحبا بالعالم שלום עולם हिन्दी में नमस्ते ภาษาไทย",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 \U0001f600\U000e0001 ☃︎",
    "e\u0301 a\u0308 \u0301\u0302 Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d",
    "\u00a0\u2003\u3000\u1680\u200b\u2028\u2029\ufeff\x85 white \x1c\x1d\x1e\x1f space",
    "\x00\x01\x07\x1b[31m\x7f\x9b bytes that a terminal obeys",
    "<|endoftext|>Once<|endoftext|> <|endoftext <unk> <unk>x x<unk>y",
    "</script><img src=x onerror=alert(1)><!-- &lt; \"'` ${1} $& \\u0041 constructor __proto__",
    "1234567890 3.14159 ½ Ⅷ ٣٤ 1,000,000 0x1F600 2²",
    "supercalifragilisticexpialidocious" * 3,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'sss'ttt 'S 'T ''s",
    "Books The king had three sons. The eldest was clever, and the youngest was a simpleton. " * 5,
    "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16") + "\U0010ffff \ufffe \ue000 private",
]
WAYS: list[dict[str, Any]] = [
    {},
    {"decoder": "block:2", "sites": ("resid_mid", "resid_post")},
    {"decoder": "mlp", "norm": "plain"},
    {"lens": "affine"},
]
ASK = """async (question) => {
  const found = await call('ask', { question });
  if (!found.tables) return found;
  return { ...found, attention: found.attention.heads.map((heads) => heads.map((head) => Array.from(head))) };
}"""


class Page:
    """A page that computes, and the model that it holds. A browser's page is to open `html` before it is asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model, tokenizer = minilens.load(name)
        assert tokenizer
        self.tokenizer = tokenizer
        self.lenses = {each: minilens.load_lens(f"{name}/{each}") for each in bundled_lenses(name)}
        self.html = live_page(self.model, tokenizer, lenses=list(self.lenses.values()), title=name)

    def of(self, page: Any) -> "Page":
        """The same, opened in a browser."""
        page.wait_for_selector("#asks[data-answered]")
        self.page = page
        return self

    def ask(self, text: str, **question: Any) -> dict[str, Any]:
        """What the page answers to a question."""
        first = {"written": [], "other": None, "decoder": "final", "norm": "final", "lens": None, "edits": []}
        found = self.page.evaluate(ASK, {"text": text, **first, "sites": ["resid_post"], **question})
        assert isinstance(found, dict)
        return found

    def differences(
        self, text: str, way: dict[str, Any], edits: list[dict[str, Any]], other: str | None = None
    ) -> Iterator[tuple[str, float]]:
        """The largest difference of each kind of number, under its name. Raises AssertionError where tokens differ."""
        wanted = self.tokenizer.encode(text)
        found = self.ask(text, other=other, edits=edits, **way)
        assert found["tokens"] == wanted[0].tolist(), (text, found["tokens"], wanted[0].tolist())
        if not found["tokens"]:
            return
        edit = self.edit(edits, other)
        options = {key: value for key, value in way.items() if key != "lens"}
        if "lens" in way:
            options["transport"] = self.lenses[way["lens"]]
        rows = torch.stack([row.logits[0] for row in minilens.lens_rows(self.model, wanted, edit=edit, **options)])
        table = minilens.logit_lens(self.model, wanted, stats="all", edit=edit, **options)
        ours = found["tables"][0]
        assert tuple(ours["labels"]) == table.labels
        shape = table.entropy.shape

        def read(numbers: list[float | None], *more: int) -> torch.Tensor:
            return torch.tensor([torch.nan if number is None else number for number in numbers]).view(*shape, *more)

        def far(one: torch.Tensor, two: torch.Tensor) -> float:
            assert torch.equal(one.isnan(), two.isnan())
            return float((one - two).nan_to_num().abs().max())

        for name in OF_ALL_LOGITS:
            yield name, far(read(ours["values"][name]), getattr(table, name))
        for name in ("final", "next", "input"):
            standing, theirs = ours["standings"][name], getattr(table, name)
            yield "logits", far(read(standing["logit"]), theirs.logit)
            yield "log-probabilities", far(read(standing["logprob"]), theirs.logprob)
            own, rank = theirs.logit[..., None], read(standing["rank"])
            least, most = 1 + (rows > own + TIE).sum(-1), (rows > own - TIE).sum(-1)
            assert ((least <= rank) & (rank <= most) | rank.isnan()).all(), f"{name}: ranks differ by more than ties"
        k = ours["top"]["k"]
        best = torch.tensor(ours["top"]["tokens"]).view(*shape, k)
        assert (rows.gather(-1, best) - table.top.logit).abs().max() < TIE, "the best tokens differ by more than ties"
        yield "log-probabilities", far(read(ours["top"]["logprob"], k), table.top.logprob)
        last = self.page.evaluate("(text) => call('logits')")
        yield "logits", float((torch.tensor(last) - rows[-1, -1]).abs().max())
        n = wanted.shape[1]
        query, key = torch.tril_indices(n, n)
        for block, heads in zip(minilens.trace(self.model, wanted, edit=edit).blocks, found["attention"], strict=True):
            codes = torch.tensor(heads)
            assert torch.equal(codes == 65535, (block.scores[0] == -torch.inf)[:, query, key])
            weights = codes.masked_fill(codes == 65535, 0) / 65000
            yield "attention", far(weights, block.pattern[0][:, query, key])

    def edit(self, edits: list[dict[str, Any]], other: str | None) -> minilens.Edit:
        """The same edits in Python."""
        blocks = minilens.trace(self.model, self.tokenizer.encode(other)).blocks if other else ()
        found = [
            zero(each["layer"], "z", heads=each["head"])
            if each["kind"] == "zero"
            else patch(blocks[each["layer"]], each["site"], positions=each["position"])
            for each in edits
        ]
        return then(*found) if found else minilens.untouched

    def written(self, text: str, n: int) -> list[int]:
        """The tokens that the page writes after a text, the best one each time."""
        question = {"text": text, "written": [], "other": None, "decoder": "final", "norm": "final", "lens": None}
        script = """async ({ question, n }) => {
          const tokens = [];
          const step = ({ token }) => tokens.push(token);
          await call('write', { question, how: { n, temperature: 0, top_k: null } }, { step });
          return tokens;
        }"""
        found = self.page.evaluate(script, {"question": {**question, "edits": [], "sites": ["resid_post"]}, "n": n})
        assert isinstance(found, list)
        return found


def largest(page: Page, text: str, **asked: Any) -> dict[str, float]:
    """The largest difference of each kind of number, on one text."""
    found: dict[str, float] = {}
    for name, difference in page.differences(text, **asked):
        found[name] = max(found.get(name, 0.0), difference)
    return found


def edits_of(page: Page) -> tuple[str, str, list[dict[str, Any]]]:
    """A text, another one, and edits of the first: two silenced heads, and residuals of the other text."""
    text = "Books Once upon a time there was a little girl who lived in the forest"
    places = [(0, "resid_pre", 3), (2, "resid_mid", 5), (page.model.n_layers - 2, "resid_post", 7)]
    patches = [{"kind": "patch", "layer": layer, "site": site, "position": at} for layer, site, at in places]
    heads = [{"kind": "zero", "layer": layer, "head": head} for layer, head in ((0, 1), (5, 7))]
    return text, text.replace("girl", "boy").replace("time", "day"), [*heads, *patches]


def main(names: list[str]) -> int:
    worst: dict[str, float] = {}
    with sync_playwright() as driver, TemporaryDirectory() as folder:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        for name in names:
            page, tab = Page(name), browser.new_page()
            path = Path(folder, "live.html")
            path.write_text(page.html, encoding="utf-8")
            tab.goto(path.as_uri())
            page.of(tab)
            found: dict[str, float] = {}
            for at, text in enumerate(TEXTS):
                for way in WAYS if at < 3 else WAYS[:1]:
                    for kind, difference in largest(page, text, way=way, edits=[]).items():
                        found[kind] = max(found.get(kind, 0.0), difference)
            text, other, edits = edits_of(page)
            for kind, difference in largest(page, text, way={}, edits=edits, other=other).items():
                found[kind] = max(found.get(kind, 0.0), difference)
            tokens = page.tokenizer.encode(text)
            wanted = minilens.generate(page.model, tokens, 40)[0, tokens.shape[1] :].tolist()
            assert page.written(text, 40) == wanted, "the page writes other tokens"
            print(f"{name}: {len(TEXTS)} texts, {', '.join(f'{kind} {value:.1e}' for kind, value in found.items())}")
            worst = {kind: max(worst.get(kind, 0.0), value) for kind, value in found.items()}
            tab.close()
        browser.close()
    print(f"the largest of all: {max(worst.values()):.1e}; the bound: {BOUND}")
    return int(max(worst.values()) > BOUND)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["tales-gpt2", "tales-gpt-neo", "tales-ctrl"]))
