"""A headless Chromium and a TensorBoard server, for tests and screenshots."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import JavascriptException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

TIMEOUT = 90  # seconds; everything takes one or two on an idle machine
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CHROMEDRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER),
    reason="no Chromium on this machine: apt-get install chromium chromium-driver",
)
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"),
    *("--force-device-scale-factor=1", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
)
# much of TensorBoard is in nested shadow roots
JAVASCRIPT = """
function everywhere(selector, root = document) {
  const found = [...root.querySelectorAll(selector)];
  for (const element of root.querySelectorAll("*"))
    if (element.shadowRoot) found.push(...everywhere(selector, element.shadowRoot));
  return found;
}
const shown = (element) => element.checkVisibility({ visibilityProperty: true });
const text = (element) => element.textContent.replace(/\\s+/g, "");
function visibleTexts() {
  return everywhere("*:not(style, script, template)").filter(shown)
    .flatMap((e) => [...e.childNodes]).filter((n) => n.nodeType === Node.TEXT_NODE)
    .map((n) => n.data.trim()).filter(Boolean);
}
"""


class Browser(Chrome):
    """A Chromium that evaluates JavaScript and waits for conditions."""

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        """Set the size of the viewport in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def evaluate(self, expression: str, *arguments: object) -> Any:
        """Return the value of an expression, which may use the functions of ``JAVASCRIPT``."""
        return self.execute_script(f"{JAVASCRIPT} return {expression};", *arguments)

    def wait_for(self, expression: str, *arguments: object) -> Any:
        """Wait until the value of an expression is truthy, and return it.

        Raises:
            AssertionError: after a timeout, with the visible texts of the page.
        """
        deadline, reason = time.monotonic() + TIMEOUT, ""
        while time.monotonic() < deadline:
            try:
                if value := self.evaluate(expression, *arguments):
                    return value
            except JavascriptException as error:  # an element may not exist yet
                reason = f" ({error.msg})"
            time.sleep(0.1)
        texts = json.dumps(self.evaluate("visibleTexts()"), ensure_ascii=False)
        raise AssertionError(f"timeout: {expression}{reason}; {self.current_url} shows {texts}")


@contextmanager
def browser(width: int = 1400, height: int = 1000) -> Iterator[Browser]:
    """Start a headless Chromium, and quit it at exit."""
    assert CHROMIUM
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        with Browser(options, Service(CHROMEDRIVER)) as chromium:  # a path, so none is downloaded
            chromium.set_page_load_timeout(TIMEOUT)
            chromium.set_script_timeout(TIMEOUT)
            chromium.resize(width, height)
            yield chromium


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Start TensorBoard on a folder, yield its address when all events are loaded, and kill it."""
    options = [
        *("--logdir", str(logdir), "--host", "127.0.0.1", "--port", "0"),
        *("--load_fast", "false", "--reload_task", "blocking", "--reload_interval", "0"),
    ]
    command = [sys.executable, "-m", "tensorboard.main", *options]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        with log.open("w") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        with process:
            try:
                yield address_in(log.read_text, process)
            finally:
                process.kill()


def address_in(output: Callable[[], str], process: subprocess.Popen[bytes]) -> str:
    """Wait for the address that a server prints when it is ready."""
    deadline = time.monotonic() + TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        if address := re.search(r"http://127\.0\.0\.1:\d+/", output()):
            return address[0]
        time.sleep(0.1)
    raise AssertionError(f"TensorBoard did not start: {output()}")
