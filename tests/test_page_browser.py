"""The pages in a real browser, from file://: they draw, answer to mouse and keys, ask for nothing, and everybody can use them."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_case import blocks, browser, opened, violations

from spineclue_v2.imageio.volume import Volume
from spineclue_v2.visualization.page.batch_index import card, index_page
from spineclue_v2.visualization.page.case_page import write_case_page
from spineclue_v2.visualization.page.preview import make_preview

PIXEL = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc000000301010018dd8db000"
                      "00000049454e44ae426082")
DRAWN = """id => { const canvas = document.getElementById(id), view = canvas === spinePage.nv.canvas ? spinePage.nv : spinePage.solid;
  view.drawScene();
  const gl = view.gl, bytes = new Uint8Array(4 * canvas.width * canvas.height);
  gl.readPixels(0, 0, canvas.width, canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
  const colours = new Set();
  for (let i = 0; i < bytes.length; i += 4) colours.add(bytes[i] >> 3 << 10 | bytes[i + 1] >> 3 << 5 | bytes[i + 2] >> 3);
  return colours.size; }"""
WHERE = "() => spinePage.voxelOf()"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    for name, result in (("case", blocks()), ("empty", blocks(()))):
        small = make_preview(result.scan, Volume(result.labels, result.grid))
        write_case_page(folder / f"{name}.html", result.to_dict(), f"<b>{name}", small, PIXEL)
    cards = [card(blocks(levels).to_dict(), f"case {number}", thumbnail=False) for number, levels in enumerate((("L1", "L2"), ("C1",), ()))]
    (folder / "index.html").write_text(index_page(cards, {"case 9": "<i>broken</i>"}, "results"), encoding="utf-8")
    return folder


def ready(page: Any) -> Any:
    page.wait_for_selector("html[data-ready]", timeout=60_000)
    return page


def test_mouse_and_keys_move_all_views(chromium, pages):
    with opened(chromium, pages / "case.html") as (page, trouble):
        ready(page)
        assert page.evaluate(DRAWN, "slices") > 60 and page.evaluate(DRAWN, "solid") > 30
        assert page.evaluate("() => spinePage.meshes") == 4
        centres = []
        for name in ("T12", "L3"):
            page.locator("tr", has=page.get_by_role("button", name=f"Show {name}")).locator("td").nth(2).click()
            centres.append(page.evaluate(WHERE))
            assert name in page.locator("#readout").inner_text()
            assert page.locator(".tags button[aria-pressed=true]").all_inner_texts() == [name, name]
        assert centres[0][2] - centres[1][2] == pytest.approx(60, abs=1) and centres[0][1] > centres[1][1]
        canvas = page.locator("#slices")
        canvas.focus()
        for key, axis, by in (("ArrowLeft", 0, 1), ("ArrowRight", 0, -1), (",", 1, 1), (".", 1, -1), ("PageUp", 2, 1), ("PageDown", 2, -1)):
            before = page.evaluate(WHERE)
            page.keyboard.press(key)
            assert page.evaluate(WHERE)[axis] - before[axis] == by, key
        page.keyboard.press("ArrowUp")
        assert "L2" in page.locator("#readout").inner_text()
        box = page.locator(".pane.axial").bounding_box()
        page.mouse.click(box["x"] + box["width"] * 0.45, box["y"] + box["height"] * 0.6)
        assert page.evaluate(WHERE)[:2] != centres[1][:2]
        page.get_by_label("Axial plane", exact=True).fill("5")
        assert page.evaluate(WHERE)[2] == 5
        page.get_by_role("button", name="Soft tissue").click()
        assert page.evaluate("() => [spinePage.nv.volumes[0].cal_min, spinePage.nv.volumes[0].cal_max]") == [-100, 250]
        before = page.evaluate("() => spinePage.solid.scene.renderAzimuth")
        page.locator("#solid").focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("() => spinePage.solid.scene.renderAzimuth") == before + 10
        page.get_by_role("button", name="Names").click()
        assert page.locator(".tags button:visible").count() == 0
        assert trouble == []


@pytest.mark.parametrize("name, scheme", [("case", "light"), ("empty", "dark"), ("index", "light"),
                                          pytest.param("case", "dark", marks=pytest.mark.slow),
                                          pytest.param("index", "dark", marks=pytest.mark.slow)])
def test_everybody_can_use_it(chromium, pages, name, scheme):
    with opened(chromium, pages / f"{name}.html", color_scheme=scheme) as (page, trouble):
        if name != "index":
            ready(page)
            assert page.evaluate(DRAWN, "slices") > 5
        assert violations(page) == [] and trouble == []
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_a_small_screen_needs_no_scrolling_aside(chromium, pages):
    with opened(chromium, pages / "case.html", viewport={"width": 390, "height": 800}) as (page, trouble):
        ready(page)
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth") and trouble == []


@pytest.mark.parametrize("without", ["script", "webgl"])
def test_table_and_picture_stay_without(chromium, pages, without):
    with opened(chromium, pages / "case.html", java_script_enabled=without != "script") as (page, trouble):
        if without == "webgl":
            page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
            page.reload()
            assert page.locator("#trouble").is_visible()
        assert page.locator("#picture img").is_visible() and not page.locator("#viewer").is_visible()
        assert page.locator("tbody tr[data-item]").count() == 4 and trouble == []


@pytest.mark.slow
def test_paper_shows_the_picture_instead_of_the_views(chromium, pages):
    with opened(chromium, pages / "case.html") as (page, _):
        ready(page)
        page.emulate_media(media="print")
        assert page.locator("#picture img").is_visible() and not page.locator("#viewer").is_visible()


def test_cases_can_be_filtered(chromium, pages):
    with opened(chromium, pages / "index.html") as (page, trouble):
        def shown() -> list[str]:
            return page.locator("#cards > li:visible a").all_text_contents()

        assert shown() == ["case 0", "case 1", "case 2"] and "<i>broken</i>" in page.locator(".failed").inner_text()
        page.get_by_label("Region").select_option("cervical")
        assert shown() == ["case 1"] and page.locator("#shown").inner_text() == "1 of 3"
        page.get_by_label("Region").select_option("")
        page.get_by_role("searchbox").fill("E 2")
        assert shown() == ["case 2"]
        page.get_by_role("searchbox").fill("")
        page.get_by_label("Numbering").select_option("yes")
        assert shown() == [] and page.locator("#nothing").is_visible() and trouble == []
        page.get_by_label("Numbering").select_option("no")
        page.get_by_label("Flag").select_option("thick_slices")
        assert len(shown()) == 3
