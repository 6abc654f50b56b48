"""The page of runtime.web in a browser: draw, stop, edit, wrong input, and nothing from another site."""

from __future__ import annotations

import fcntl
import io
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from examples.serving.server import free_port
from runtime import Pipeline
from runtime.record import Record
from tests import web_environment

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
DESKTOP, PHONE = (1280, 900), (390, 844)
MOST_WAITING = 16  # runtime.web.page has it, which needs Gradio
SECONDS = 60  # to wait for anything


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with Gradio."""
    if not BROWSER or not DRIVER:
        pytest.skip("no Chromium to look at the page with: apt-get install chromium chromium-driver")
    pytest.importorskip("selenium", reason="selenium is not installed, which drives the browser: pip install selenium")
    with (web_environment.ROOT / ".venv" / "web.lock").open("w") as lock:  # other processes of the suite
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return web_environment.make()
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("Gradio could not be installed: python -m tests.web_environment")


@pytest.fixture(scope="module")
def url(python: Path, golden_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page of a model that takes seconds for an image, so that it can be stopped."""
    port, home = free_port(), tmp_path_factory.mktemp("home")
    command = [python, "-m", "runtime.web", "--bundle", golden_bundle, "--port", str(port)]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(home), "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(
        command, env=environment, cwd=web_environment.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert server.stdout
        line = server.stdout.readline()
        assert line.startswith(f"http://127.0.0.1:{port}: "), line + server.stdout.read()
        yield f"http://127.0.0.1:{port}"
        server.terminate()
        rest, _ = server.communicate(timeout=20)
        assert server.returncode == 143
        assert rest.endswith("terminated\n")
        assert "runtime/web" not in rest  # Gradio itself prints a traceback for a request that no page sends
        assert not list(home.glob("var-edge-web-*"))
    finally:
        server.kill()


@pytest.fixture(scope="module")
def browser(python: Path) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, url: str) -> Page:
    return Page(browser, url)


class Page:
    """What a visitor does and sees."""

    def __init__(self, browser: Any, url: str, size: tuple[int, int] = DESKTOP) -> None:
        self.browser = browser
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(url)
        self.wait(lambda: self.all("#draw"), "the page")

    def all(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", selector))

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            try:
                if found := condition():
                    return found
            except Exception as error:
                if "stale element" not in str(error):
                    raise
            time.sleep(0.05)
        raise AssertionError(f"waited {SECONDS} s for {what}; status {self.status!r}")

    def click(self, selector: str) -> None:
        (element, *_) = self.all(selector)
        self.browser.execute_script("arguments[0].click()", element)

    def type(self, selector: str, text: str) -> None:
        (element, *_) = self.all(selector)
        element.send_keys("\ue009a\ue000", text, "\ue004")  # control-A, the text, tab

    @property
    def status(self) -> str:
        return str(self.all("#status textarea")[0].get_attribute("value"))

    def shows(self, text: str) -> str:
        return str(self.wait(lambda: text in self.status and self.status, repr(text)))

    def without_previews(self) -> None:
        """Draw more quickly from now on."""
        self.click("#settings > button")
        self.wait(lambda: self.all("#previews input"), "the settings")
        self.click("#previews input")

    def upload(self, file: Path) -> None:
        """Put an image into the editor, which is not ready at once."""
        inputs, canvas = "#canvas input[type=file]", "#canvas canvas"
        self.wait(lambda: self.all(inputs) and self.all(canvas), "the editor")
        time.sleep(0.5)
        self.all(inputs)[0].send_keys(str(file))
        time.sleep(0.5)

    def downloads(self) -> list[bytes]:
        links = self.wait(lambda: self.all("#files a[href]"), "the downloads")
        return [urllib.request.urlopen(link.get_attribute("href"), timeout=10).read() for link in links]


def test_draw(page: Page, golden_bundle: Path, tmp_path: Path) -> None:
    page.type("#label input", "golden retriever")
    page.type("#seed textarea, #seed input", "3")
    page.click("#draw")
    page.shows("scale 2 of 10")
    page.wait(lambda: page.all("#images img"), "a preview")
    page.shows("1 image(s) in")
    (png,) = page.downloads()
    (tmp_path / "a.png").write_bytes(png)
    record = Record.read(tmp_path / "a.png")
    assert (record.labels, record.seeds, record.batch) == ((207,), ("3",), 1)
    with Pipeline(golden_bundle) as pipeline:
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), pipeline.generate(**record.settings).images[0])
    assert len(page.all("#seconds .stage")) == 10 + 2


def test_stop(page: Page) -> None:
    page.type("#count input[type=number]", "4")
    page.click("#draw")
    page.shows("scale 2 of 10")
    page.click("#stop")
    page.shows("stopped")
    page.type("#count input[type=number]", "1")
    page.without_previews()
    page.click("#draw")  # the server goes on
    page.shows("1 image(s) in")


@pytest.fixture
def two_pages(browser: Any, url: str) -> Iterator[tuple[Page, Callable[[], None]]]:
    """A page, and what changes between two windows of it: each is a visitor."""
    first = browser.current_window_handle
    page = Page(browser, url)
    browser.switch_to.new_window("window")
    Page(browser, url)

    def change() -> None:
        browser.switch_to.window(next(each for each in browser.window_handles if each != browser.current_window_handle))

    yield page, change
    for window in browser.window_handles:
        browser.switch_to.window(window)
        if window != first:
            browser.close()
    browser.switch_to.window(first)


def test_stop_while_another_visitor_draws(two_pages: tuple[Page, Callable[[], None]]) -> None:
    page, change = two_pages
    page.type("#count input[type=number]", "4")
    page.click("#draw")
    page.shows("scale 2 of 10")
    change()
    page.click("#draw")
    page.shows("waiting for a turn")
    page.click("#stop")
    page.shows("stopped")
    change()
    assert page.status.startswith("scale ")  # not stopped
    page.click("#stop")
    page.shows("stopped")
    page.type("#count input[type=number]", "1")
    page.click("#draw")  # after what waited before
    page.shows("1 image(s) in")
    change()
    assert page.status == "stopped"
    assert not page.all("#images img")


def test_too_many_who_wait_are_told(page: Page, url: str) -> None:
    page.click("#edit > button")
    page.type("#count input[type=number]", "4")
    page.click("#draw")
    page.shows("scale 2 of 10")
    wrong = {"data": ["no such class", "0", 1, 4, 900, 0.9, 10, "full", False, False]}
    for _ in range(MOST_WAITING):
        urllib.request.urlopen(posted(f"{url}/gradio_api/call/on_draw", wrong), timeout=10)
    page.wait(lambda: page.all("#start-edit"), "the button")
    page.click("#start-edit")
    page.shows("Error: not started; the notice says why")
    page.wait(lambda: "currently busy" in page.all("body")[0].text, "the notice")
    page.click("#stop")


def test_edit(page: Page, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    Image.fromarray(np.full((300, 256, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    page.without_previews()
    page.click("#edit > button")
    page.upload(tmp_path / "photo.png")

    def asks_for_the_mask() -> bool:
        page.click("#start-edit")
        time.sleep(0.5)
        return "Error: mask: expected one; draw it on the image" in page.status

    page.wait(asks_for_the_mask, "the image")
    canvas = page.all("#canvas canvas")[0]
    page.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    stroke = ActionChains(page.browser, duration=50).move_to_element(canvas).click_and_hold()
    for x, y in ((30, 0), (0, 30), (-60, 0), (0, -30), (40, 0)):
        stroke.move_by_offset(x, y)
    stroke.release().perform()
    page.type("#label input", "volcano")
    page.click("#start-edit")
    page.shows("1 image(s) in")
    (png,) = page.downloads()
    (tmp_path / "edit.png").write_bytes(png)
    assert Record.read(tmp_path / "edit.png").edit == "inpaint"
    page.click("#region input[value=box]")  # without a mask
    page.click("#start-edit")
    page.wait(lambda: page.downloads() != [png], "another image")


def test_wrong_input(page: Page, tmp_path: Path) -> None:
    page.type("#label input", "gold fish")
    page.click("#draw")
    page.shows("Error: label 'gold fish': no class has this name; did you mean 1 (goldfish), 11 (goldfinch)")
    page.type("#label input", "1")
    page.type("#seed textarea, #seed input", "-1")
    page.click("#draw")
    page.shows("Error: seed: expected an integer of 0 to")
    page.click("#edit > button")
    page.click("#start-edit")
    page.shows("Error: seed")
    (tmp_path / "photo.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    page.upload(tmp_path / "photo.png")
    page.type("#seed textarea, #seed input", "1")
    page.click("#start-edit")
    page.shows("Error: image: expected one")


def posted(url: str, document: Any) -> urllib.request.Request:
    return urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})


def asked(url: str, action: str, data: list[Any]) -> str:
    """What the server answers to a request that the page itself would not send."""
    request = posted(f"{url}/gradio_api/call/{action}", {"data": data})
    event = json.loads(urllib.request.urlopen(request, timeout=10).read())["event_id"]
    return str(urllib.request.urlopen(f"{url}/gradio_api/call/{action}/{event}", timeout=20).read().decode())


def test_a_request_that_names_a_url_loads_nothing(url: str) -> None:
    image = {"path": "http://no-such-host.invalid/x.png", "meta": {"_type": "gradio.FileData"}}
    drawing = {"background": image, "layers": [], "composite": None}
    answer = asked(
        url, "on_edit", [drawing, "inpaint", "box", 0, 0, 1, 1, "1", "0", 1, 4, 9, 0.9, 10, "full", False, False]
    )
    assert "expected a file, found a URL" in answer


def test_only_the_formats_of_the_commands_are_opened(python: Path, tmp_path: Path) -> None:
    """Also where no format is asked for, as Gradio opens an upload."""
    files = [tmp_path / f"image.{kind}" for kind in ("png", "jpeg", "webp", "gif", "eps")]
    for file in files:
        Image.new("RGB", (8, 8)).save(file)
    code = (
        "import sys; from PIL import Image, UnidentifiedImageError; from runtime.web.__main__ import _restrict_images\n"
        "_restrict_images()\n"
        "for path in sys.argv[1:]:\n"
        "    try: print(Image.open(path).format)\n"
        "    except UnidentifiedImageError: print('refused')\n"
    )
    result = subprocess.run([python, "-c", code, *files], capture_output=True, text=True, cwd=web_environment.ROOT)
    assert result.stdout.split() == ["PNG", "JPEG", "WEBP", "GIF", "refused"], result.stderr


def test_absurd_counts_end_in_an_error_and_the_server_lives_on(page: Page, url: str) -> None:
    values = ["1", "0", 10**9, 4, 900, 0.9, 10, "full", False, False]
    assert "Value 1000000000 is greater than maximum value 16." in asked(url, "on_draw", values)
    for data in ([None] * 10, [], [[]] * 10):
        answer = asked(url, "on_draw", data)
        assert "event: error" in answer or "Error: " in answer
        assert "image(s) in" not in answer
    page.without_previews()
    page.click("#draw")
    page.shows("1 image(s) in")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_fits_the_screen_and_loads_nothing_from_elsewhere(browser: Any, url: str, size: tuple[int, int]) -> None:
    browser.get_log("performance")
    page = Page(browser, url, size)
    page.click("#edit > button")
    page.without_previews()
    page.click("#draw")
    page.shows("1 image(s) in")
    page.wait(lambda: page.all("#images img"), "the image")
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= size[0]
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    answered = {m["params"]["response"]["url"] for m in messages if m["method"] == "Network.responseReceived"}
    ours = (f"{url}/", "data:", f"blob:{url}")
    assert len(answered) > 5
    assert [address for address in answered if not address.startswith(ours)] == []
    assert [address for address in asked if not address.startswith(ours)] == []
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]  # whatever Gradio's next release loads


def test_a_second_server_on_the_same_port(python: Path, url: str, golden_bundle: Path) -> None:
    port = url.rpartition(":")[2]
    command = [python, "-m", "runtime.web", "--bundle", golden_bundle, "--port", port]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=web_environment.ROOT)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: cannot listen at '127.0.0.1', port {port}: Address already in use; give another --port or --host\n"
    )


def test_a_port_that_is_taken_while_the_bundle_loads(python: Path, url: str, golden_bundle: Path) -> None:
    port = url.rpartition(":")[2]
    code = "import runtime.web.__main__ as web; web._check_free = lambda *_: None; web.main()"
    command = [python, "-c", code, "--bundle", golden_bundle, "--port", port]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=web_environment.ROOT)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1), result.stderr
    assert result.stderr.startswith(f"Error: cannot listen at '127.0.0.1', port {port}: ")
    assert result.stderr.endswith("; give another --port or --host\n")
