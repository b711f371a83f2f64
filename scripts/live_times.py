"""How long the page that computes takes: a start, a key at 40 tokens, and the memory of its tab.

Run it as `scripts/live_times.py [MODEL]`; it needs playwright and Debian's chromium. A key is timed in the page, from
the event to the frame after the new grid. Each press adds or removes the last letter of a text of about 40 tokens.
"""

import statistics
import sys
from os import getloadavg
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from playwright.sync_api import sync_playwright

import minilens
from minilens.learned.named import bundled_lenses
from minilens.live.page import live_page

CHROMIUM = "/usr/bin/chromium"
KEYS = 60
TEXT = (
    "Once upon a time there was a little girl who lived in a house in the forest with her mother and her brother, "
    "and one day they went to the sea to look for fish"
)
KEY = """async (text) => {
  const [field, asks] = [document.querySelector('#text'), document.querySelector('#asks')];
  const drawn = new Promise((done) => new MutationObserver((_, watch) => { watch.disconnect(); done(); })
    .observe(asks, { attributeFilter: ['data-answered'] }));
  const began = performance.now();
  field.value = text;
  field.dispatchEvent(new Event('input'));
  await drawn;
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const took = performance.now() - began;
  await new Promise((done) => setTimeout(done, 150)); // what can wait is drawn now
  return took;
}"""


def memory(browser: Any) -> float:
    """MB of the tab's process that are its own, with its worker: what the system counts as resident and not shared."""
    session = browser.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    sizes = []
    for process in processes:
        if process["type"] == "renderer":
            total, shared = (Path(f"/proc/{process['id']}/statm").read_text().split()[at] for at in (1, 2))
            sizes.append((int(total) - int(shared)) * 4096 / 1e6)
    return max(sizes)


def main(name: str) -> None:
    model, tokenizer = minilens.load(name)
    assert tokenizer
    lenses = [minilens.load_lens(f"{name}/{each}") for each in bundled_lenses(name)]
    text = " ".join([*tokenizer.codes[:1], TEXT])
    with TemporaryDirectory() as folder, sync_playwright() as driver:
        path = Path(folder, "live.html")
        path.write_text(live_page(model, tokenizer, lenses=lenses, title=name), encoding="utf-8")
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        began = perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("#asks[data-answered]")
        print(
            f"{name}: {path.stat().st_size / 1e6:.1f} MB; from opening to the first grid {perf_counter() - began:.1f} s"
        )
        print(f"the whole text at once, {tokenizer.encode(text).shape[1]} tokens: {page.evaluate(KEY, text):.0f} ms")
        took = [page.evaluate(KEY, text + "es"[: 1 + key % 2]) for key in range(KEYS)]
        load = getloadavg()[0]
        median = statistics.median(took)
        print(f"a key: median {median:.0f} ms, worst {max(took):.0f} ms of {KEYS}, at a load of {load:.1f}")
        print(f"memory of the tab: {memory(browser):.0f} MB")
        browser.close()


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["tales-gpt2"]))
