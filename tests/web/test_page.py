"""The page in a real browser: headless Chromium, the served files, the exported network."""

import shutil
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.workplace import ROOT
from web import serve

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytest.importorskip("onnx", reason="the package onnx is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-sync"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
    pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed"),
]


@pytest.fixture(scope="module")
def address():
    serve.prepare()
    with serve.make_server(0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def launch():
    """Starts a browser with more flags."""
    with playwright.sync_playwright() as started:
        yield lambda *flags: started.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *flags])


@pytest.fixture(scope="module")
def browser(launch):
    browser = launch("--disable-gpu")
    yield browser
    browser.close()


@pytest.fixture
def page(browser, address):
    """The page, loaded and ready; `page.requests` collects what it asks for afterwards."""
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.problems, page.requests = [], []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda said: said.type == "error" and page.problems.append(said.text))
    page.goto(address)
    wait_until(page, "document.getElementById('state').textContent.startsWith('Ready')")
    page.on("request", lambda request: page.requests.append(request.url))
    yield page
    page.close()


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def give(page, *files: Path) -> None:
    page.set_input_files("#files", [str(file) for file in files])


def wait_until(page, expression: str, seconds: float = 120) -> None:
    """Asked again and again: Playwright's own waiting evaluates text in the page, which its policy forbids."""
    ends = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < ends, f"{expression} is not true after {seconds:.0f} s: {page.inner_text('body')}"
        time.sleep(0.1)


def wait_for(page, name: str, words: str, seconds: float = 120) -> None:
    wait_until(
        page,
        "[...document.querySelectorAll('#items li')].some((item) =>"
        f" item.querySelector('.label').textContent === '{name}' &&"
        f" item.querySelector('.message').textContent.startsWith('{words}'))",
        seconds,
    )


def restored(page) -> np.ndarray:
    """What the download link gives, BGR."""
    with page.expect_download() as download:
        page.click("#download")
    return cv2.imread(str(download.value.path()), cv2.IMREAD_COLOR)


def by_pytorch(image: np.ndarray, tile: int | None = None) -> np.ndarray:
    from engine.config import shipped_weights
    from engine.predict.inference import Restorer
    from models.images import images_to_tensor, tensor_to_images

    restorer = Restorer(
        ROOT / shipped_weights("xyscannet_t"), "xyscannet_t", torch.device("cpu"), tile=tile, overlap=64, streamed=False
    )
    return tensor_to_images(restorer.restore(images_to_tensor([image[..., ::-1]]))[0])[0][..., ::-1]


@pytest.mark.parametrize("size, tile", [((61, 90), None), ((750, 1250), 512)])
def test_the_image_is_pytorchs_to_one_level(page, tmp_path, size, tile):
    image, file = photograph(*size), tmp_path / "photo.png"
    cv2.imwrite(str(file), image)
    give(page, file)
    wait_for(page, "photo.png", "Done")
    difference = np.abs(restored(page).astype(int) - by_pytorch(image, tile).astype(int))
    assert difference.max() <= 1
    assert page.get_attribute("#download", "download") == "photo-deblurred.png"
    assert not [url for url in page.requests if not url.startswith("blob:")] and not page.problems


def test_720p_takes_less_than_30_seconds(page, tmp_path):
    file = tmp_path / "large.jpg"
    cv2.imwrite(str(file), photograph(720, 1280))
    started = time.monotonic()
    give(page, file)
    wait_for(page, "large.jpg", "Done")
    print(f"720p in the page: {time.monotonic() - started:.1f} s")
    assert page.get_attribute("#download", "download") == "large-deblurred.jpg"


def test_a_broken_file_gets_a_message_and_the_others_go_on(page, tmp_path):
    broken, sound = tmp_path / "broken.jpg", tmp_path / "sound.png"
    broken.write_bytes(b"\xff\xd8\xff no photograph")
    cv2.imwrite(str(sound), photograph(40, 40))
    cv2.imwrite(str(tmp_path / "thin.png"), photograph(8, 66000))
    give(page, tmp_path / "thin.png", broken, sound)
    wait_for(page, "thin.png", "Failed: ")
    wait_for(page, "broken.jpg", "Failed: this browser cannot read the file")
    wait_for(page, "sound.png", "Done")


def test_cancelling_one_lets_the_next_begin(page, tmp_path):
    for name, size in (("long.png", (1500, 2000)), ("short.png", (48, 48))):
        cv2.imwrite(str(tmp_path / name), photograph(*size))
    give(page, tmp_path / "long.png", tmp_path / "short.png")
    wait_for(page, "long.png", "Tile")
    page.get_by_role("button", name="Cancel long.png").click()
    wait_for(page, "long.png", "Cancelled")
    wait_for(page, "short.png", "Done")


def test_the_keyboard_moves_the_divider_and_every_control_has_a_name(page, tmp_path):
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), photograph(48, 64))
    give(page, file)
    wait_for(page, "a.png", "Done")
    page.focus("#split")
    page.keyboard.press("ArrowRight")
    assert page.input_value("#split") == "51" and "51%" in page.get_attribute("#line", "style")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, a, input')].filter((control) => !control.hidden &&"
        " !(control.ariaLabel || control.textContent.trim() || control.labels?.length)).length"
    )
    assert unnamed == 0


def test_on_a_graphics_card_the_image_is_the_same_and_a_slow_card_is_not_chosen(launch, address, tmp_path):
    """The card is imitated by the processor, many times slower than the processor itself."""
    imitated = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--use-vulkan=swiftshader"]
    browser = launch(*imitated, "--enable-features=Vulkan")
    page = browser.new_page()
    image, file = photograph(16, 16), tmp_path / "photo.png"
    cv2.imwrite(str(file), image)
    page.goto(f"{address}/?on=webgpu")
    if not page.evaluate("navigator.gpu?.requestAdapter().then(Boolean)"):
        browser.close()
        pytest.skip("this Chromium has no software WebGPU")
    wait_until(page, "document.getElementById('state').textContent === 'Ready, on the graphics card.'")
    give(page, file)
    wait_for(page, "photo.png", "Done", 250)
    assert np.abs(restored(page).astype(int) - by_pytorch(image).astype(int)).max() <= 1
    page.goto(address)
    wait_until(page, "document.getElementById('state').textContent.startsWith('Ready')")
    give(page, file)
    wait_for(page, "photo.png", "Done")
    assert "graphics card" not in page.inner_text("#state")
    browser.close()


def test_a_narrow_screen_needs_no_sideways_scrolling(browser, address):
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()


def test_without_its_headers_it_runs_on_one_thread(browser, address, monkeypatch):
    monkeypatch.setattr(serve, "HEADERS", {})
    page = browser.new_page()
    page.goto(address)
    wait_until(page, "document.getElementById('state').textContent === 'Ready, one thread.'")
    page.close()
