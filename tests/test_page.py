"""The report as a person sees it: opened in headless Chromium, wide and narrow, light and dark, and printed. The screenshots stay in
outputs/screenshots/."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hypotheses import experiment, record, report
from hypotheses.config import ROOT

sync_api = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.xdist_group("page")  # one report for all of them
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SHOTS = ROOT / "outputs" / "screenshots"
WIDE, NARROW = (1280, 900), (390, 844)  # pixels: a laptop, a phone

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium to look with: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as engine:
        started = engine.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory, make_records, memory):
    """The file of a report in which every part is filled."""
    results = tmp_path_factory.mktemp("results")
    arms = {
        "mambaout_atto": 90.0,
        "mambaout_atto_ssm": 90.3,
        "mambaout_atto_identity": 40.0,
        "mambaout_atto_sham": 89.0,
    }
    vits = {"vit_atto": 50.0, "vit_atto_causal": 52.0, "vit_atto_identity": 20.0}
    sets = [make_records({a: [v + 0.3 * s for s in range(5)] for a, v in (arms | vits).items()})]
    sets += [
        make_records({a: [v / 2 + 0.3 * s for s in range(5)] for a, v in arms.items()}, t) for t in ("coco", "ade20k")
    ]
    doses = experiment.load("4").scales["demo"].registered()
    sets.append(make_records({a: [60.0 - 30 * ("identity" in a) + 0.3 * s for s in range(5)] for a in doses}))
    shutil.copytree(ROOT / "results/reference/measured", results / "measured")
    jpeg = io.BytesIO()
    Image.new("RGB", (200, 100), "gray").save(jpeg, "JPEG")
    for runs in (*sets, *memory.values()):
        for r in runs.values():
            file = results / "records" / f"{r['address']}.json"
            record.write(file, r)
            file.with_suffix(".jpg").write_bytes(jpeg.getvalue())
    report.write(experiment.load("1"), results)
    return results / "report" / "index.html"


def opened(browser, page: Path, size: tuple[int, int], scheme: str):
    """The page in a window of its own, with what it has said and asked for."""
    window = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme).new_page()
    said: list[str] = []
    asked: list[str] = []
    window.on("console", lambda message: said.append(message.text))
    window.on("pageerror", lambda error: said.append(str(error)))
    window.on("request", lambda request: asked.append(request.url))
    window.goto(page.as_uri())
    return window, said, [url for url in asked if url != page.as_uri() and not url.startswith("data:")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_it_opens_without_an_error_or_a_request_and_fits(browser, page, size, scheme):
    window, said, asked = opened(browser, page, size, scheme)
    assert said == [] and asked == []
    assert window.evaluate("document.documentElement.scrollWidth") <= size[0]  # nothing to scroll sideways but tables
    SHOTS.mkdir(parents=True, exist_ok=True)
    file = SHOTS / f"report_{size[0]}_{scheme}.png"
    window.screenshot(path=file, full_page=True)
    with Image.open(file) as shot:
        pixels = np.asarray(shot.convert("L")).astype(float)
    assert pixels.shape[0] > 2000 and pixels.std() > 10  # a long page with something on it
    assert (np.median(pixels) > 200) == (scheme == "light")
    window.context.close()


def test_the_verdicts_are_seen_before_anything_is_scrolled(browser, page):
    window, *_ = opened(browser, page, WIDE, "light")
    boxes = [card.bounding_box() for card in window.locator("header .verdict").all()]
    assert len(boxes) == 4 and all(box["y"] + box["height"] < WIDE[1] for box in boxes)
    words = window.locator("header .verdict").first.inner_text()
    assert "SUPPORTED" in words and "n = 5 seeds" in words and "demo scale" in words
    window.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_figures_can_be_read_on_their_ground(browser, page, scheme):
    """A contrast of 4.5 to 1 for the page's text colours, the figures' among them (WCAG 2, 1.4.3)."""
    window, *_ = opened(browser, page, WIDE, scheme)
    read = "name => { const e = document.createElement('i'); e.style.color = `var(${name})`; document.body.append(e); "
    read += "const c = getComputedStyle(e).color; e.remove(); return c.match(/[\\d.]+/g).slice(0, 3).map(Number) }"

    def luminance(name: str) -> float:
        share = np.array(window.evaluate(read, name)) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for ground in ("--paper", "--card"):
        for name in ("--ink", "--quiet", "--good", "--bad", "--supported", "--refuted", "--inconclusive"):
            low, high = sorted((luminance(name), luminance(ground)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)
    window.context.close()


def test_every_link_and_picture_leads_somewhere(browser, page):
    window, *_ = opened(browser, page, WIDE, "light")
    for link in window.locator("a").all():
        target = link.get_attribute("href") or ""
        found = window.locator(target).count() if target.startswith("#") else (page.parent / target).is_file()
        assert found, target
    window.locator("details").evaluate_all("all => all.forEach(d => d.open = true)")
    widths = window.locator("img").evaluate_all("all => all.map(i => i.naturalWidth)")
    assert len(widths) == (4 + 2 + 3) + (4 + 4 + 3) + 3 and set(widths) == {200}
    window.context.close()


def test_it_prints_with_everything_unfolded(browser, page):
    window, *_ = opened(browser, page, WIDE, "dark")
    window.emulate_media(media="print", color_scheme="dark")
    assert window.locator("details summary").first.is_visible()
    assert window.locator("details code").first.is_visible() and window.locator("details img").first.is_visible()
    assert window.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    SHOTS.mkdir(parents=True, exist_ok=True)
    window.pdf(path=SHOTS / "report.pdf", format="A4")
    assert (SHOTS / "report.pdf").read_bytes()[:5] == b"%PDF-"
    window.context.close()
