"""A real browser, and TensorBoard for it to look at."""

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

PATIENCE = 90  # seconds, for what takes one or two on a quiet machine
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CHROMEDRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER),
    reason="no Chromium here: apt-get install chromium chromium-driver",
)
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"),
    *("--force-device-scale-factor=1", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
)
# much of TensorBoard lies in shadow roots, within shadow roots
EVERYWHERE = """
function everywhere(selector, root = document) {
  const found = [...root.querySelectorAll(selector)];
  for (const element of root.querySelectorAll("*"))
    if (element.shadowRoot) found.push(...everywhere(selector, element.shadowRoot));
  return found;
}
const shown = (element) => element.checkVisibility({ visibilityProperty: true });
const plain = (element) => element.textContent.replace(/\\s+/g, "");
function said() {
  return everywhere("*:not(style, script, template)").filter(shown)
    .flatMap((e) => [...e.childNodes]).filter((n) => n.nodeType === Node.TEXT_NODE)
    .map((n) => n.data.trim()).filter(Boolean);
}
"""


class Browser(Chrome):
    """A Chromium that is asked in JavaScript, and waits for the answer."""

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        """Make the page, without a window's frame, so many CSS pixels large."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def ask(self, expression: str, *arguments: object) -> Any:
        """Return the value of an expression, which may look ``everywhere``."""
        return self.execute_script(f"{EVERYWHERE} return {expression};", *arguments)

    def wait_for(self, expression: str, *arguments: object) -> Any:
        """Return the value of an expression, once it is true.

        Raises:
            AssertionError: with what is on the page, if it never is.
        """
        deadline, reason = time.monotonic() + PATIENCE, ""
        while time.monotonic() < deadline:
            try:
                if found := self.ask(expression, *arguments):
                    return found
            except JavascriptException as error:  # of what is not there yet
                reason = f" ({error.msg})"
            time.sleep(0.1)
        page = json.dumps(self.ask("said()"), ensure_ascii=False)
        raise AssertionError(f"never: {expression}{reason}; {self.current_url} shows {page}")


@contextmanager
def browser(width: int = 1400, height: int = 1000) -> Iterator[Browser]:
    """Start a Chromium without a window, and end it."""
    assert CHROMIUM
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        with Browser(options, Service(CHROMEDRIVER)) as chromium:  # so that none is downloaded
            chromium.set_page_load_timeout(PATIENCE)
            chromium.set_script_timeout(PATIENCE)
            chromium.resize(width, height)
            yield chromium


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Start TensorBoard on a folder, hand out its address once all is read, and end it."""
    options = [
        *("--logdir", str(logdir), "--host", "127.0.0.1", "--port", "0"),
        *("--load_fast", "false", "--reload_task", "blocking", "--reload_interval", "0"),
    ]
    command = [sys.executable, "-m", "tensorboard.main", *options]
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said.txt"
        with said.open("w") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        with process:
            try:
                yield address_in(said.read_text, process)
            finally:
                process.kill()


def address_in(output: Callable[[], str], process: subprocess.Popen[bytes]) -> str:
    """Return the address that a server prints once it stands."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if address := re.search(r"http://127\.0\.0\.1:\d+/", output()):
            return address[0]
        time.sleep(0.1)
    raise AssertionError(f"TensorBoard does not start: {output()}")
