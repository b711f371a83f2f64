"""Who can use the pages: axe-core's findings, and what is wider than the window, in many windows.

Run it as `scripts/live_access.py AXE [FOLDER]`, where AXE is the file axe.min.js of the npm package axe-core; it needs
playwright and Debian's chromium. The page that computes, the same from a server, and the page of a table are opened in
the light and in the dark, from 80 to 4,000 pixels, at 200 % zoom, and on paper. With a FOLDER their pictures are kept
there, some as a person with deuteranopia sees them. It ends with status 1 where axe finds what is serious, where a page
is wider than its window, and where the browser complains.
"""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import sync_playwright

import minilens
from minilens.live.answers import Answerer
from minilens.live.page import live_page
from minilens.live.server import server
from minilens.views.lens_page import lens_page

CHROMIUM = "/usr/bin/chromium"
TEXT = "Once upon a time there was a little girl who lived in a house in the forest with her mother"
OTHER = TEXT.replace("girl", "boy")
# What is open in the page: a comparison, a silenced head, the source of a block; for the page of a table two pins.
BUSY = "text={}&other={}&edits=5.h7&colour=difference&at=3.resid_post@9".format(
    TEXT.replace(" ", "%20"), OTHER.replace(" ", "%20")
)
WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("light", {"viewport": {"width": 1200, "height": 800}}),
    ("dark", {"viewport": {"width": 1200, "height": 800}, "color_scheme": "dark"}),
    ("zoom", {"viewport": {"width": 640, "height": 400}, "device_scale_factor": 2}),  # 200 % of 1280 by 800
    ("80", {"viewport": {"width": 80, "height": 600}}),
    ("400", {"viewport": {"width": 400, "height": 800}}),
    ("4000", {"viewport": {"width": 4000, "height": 2000}}),
]


@contextmanager
def served(answerer: Answerer) -> Iterator[str]:
    """The address of a server with this model."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        running = server({"tales-gpt2": lambda: answerer, "another": lambda: answerer}, "token", port)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{port}/token/"
        running.should_exit = True
        thread.join()


def findings(browser: Any, axe: str, address: str, window: dict[str, Any], picture: Path | None) -> list[str]:
    """What is wrong with a page in a window."""
    context = browser.new_context(bypass_csp=True, **window)
    page, found = context.new_page(), []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda message: found.append(message.text))
    page.goto(address)
    page.wait_for_selector("#scroller td")
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.wait_for_timeout(1000)
    if picture:
        page.screenshot(path=picture, full_page=True)
        if picture.stem.endswith("light"):
            vision = {"type": "deuteranopia"}
            context.new_cdp_session(page).send("Emulation.setEmulatedVisionDeficiency", vision)
            page.screenshot(path=picture.with_stem(f"{picture.stem}-deuteranopia"), full_page=True)
            page.pdf(path=picture.with_suffix(".pdf"))
    page.evaluate(axe)
    for each in page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]:
        found.append(
            f"axe, {each['impact']}: {each['id']}, {len(each['nodes'])} times, {each['nodes'][0]['html'][:100]}"
        )
    wider = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    context.close()
    return found + ([f"{wider} pixels wider than the window"] if wider > 0 else [])


def main(axe: str, folder: str | None = None) -> int:
    model, tokenizer = minilens.load("tales-gpt2")
    assert tokenizer
    lenses = {"affine": minilens.load_lens("tales-gpt2/affine")}
    tokens = tokenizer.encode(TEXT)
    tables = [
        minilens.logit_lens(model, tokens, decoder=decoder, stats="all", tokenizer=tokenizer)
        for decoder in ("final", "mlp")
    ]
    blocks = minilens.run(model, model.embed(tokens))
    count = 0
    with (
        TemporaryDirectory() as made,
        sync_playwright() as driver,
        served(Answerer(model, tokenizer, lenses)) as address,
    ):
        report, live = Path(made, "report.html"), Path(made, "live.html")
        report.write_text(lens_page(tables, title="tales-gpt2", tokens=tokens, patterns=blocks))
        live.write_text(live_page(model, tokenizer, lenses=[*lenses.values()], title="tales-gpt2"))
        pins = f"pins={tables[0].final_tokens[5]}@5+{tables[0].final_tokens[9]}@9"
        pages = {
            "live": f"{live.as_uri()}#{BUSY}",
            "served": f"{address}#{BUSY}",
            "report": f"{report.as_uri()}#{pins}",
        }
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        for name, where in pages.items():
            for window, settings in WINDOWS:
                picture = Path(folder, f"{name}-{window}.png") if folder else None
                found = findings(browser, Path(axe).read_text(), where, settings, picture)
                count += len(found)
                print(f"{name}, {window}: {'; '.join(found) or 'nothing'}", flush=True)
        browser.close()
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
