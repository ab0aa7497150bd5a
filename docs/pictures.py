"""Makes the README's pictures from a run: python docs/pictures.py RUN_FOLDER LADDER_FOLDER."""

import argparse
import base64
import shutil
import subprocess
import sys
import tempfile
from contextlib import chdir
from pathlib import Path

from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))  # where tests lies

from tests.browser import Browser, browser, tensorboard  # noqa: E402

LARGEST = 250_000  # bytes
SURPRISING = "phone"  # its first letter gets the tooltip
LOGS = Path("lightning_logs")


def main() -> None:
    """Write all pictures beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run: lightning_logs/version_N")
    parser.add_argument("ladder", type=Path, help="the folder of a ladder, with ladder.png in it")
    folders = parser.parse_args()
    shutil.copyfile(folders.run / "curves.png", DOCS / "curves.png")
    shutil.copyfile(folders.ladder / "ladder.png", DOCS / "ladder.png")
    (DOCS / "attention.png").write_bytes(attention(folders.run))
    run = folders.run.resolve()
    with tempfile.TemporaryDirectory() as home, chdir(home), browser() as chromium:
        LOGS.mkdir()  # with nothing in it but what the pictures should show
        (LOGS / "version_0").symlink_to(run)
        (LOGS / "reference").symlink_to(ROOT / LOGS / "reference")
        (DOCS / "tensorboard.png").write_bytes(losses(chromium))
        (DOCS / "score.png").write_bytes(scene(chromium))
    for name in ("curves", "ladder", "attention", "tensorboard", "score"):
        size = (DOCS / f"{name}.png").stat().st_size
        print(f"docs/{name}.png  {size:,} bytes{'  TOO LARGE' if size > LARGEST else ''}")


def attention(run: Path) -> bytes:
    """Return the picture of the first layer's attention, as the run has recorded it."""
    events = EventAccumulator(str(run)).Reload()
    picture: bytes = events.Images("attention/layer_1")[-1].encoded_image_string
    return picture


def losses(chromium: Browser) -> bytes:
    """Return TensorBoard's custom charts, with every run's train and val loss on the first."""
    chart = "everywhere('tf-custom-scalar-multi-line-chart-card')[0].shadowRoot"
    lines = f"everywhere('.line-plot:not(.ghost) path.line', {chart})"
    with tensorboard(LOGS) as address:
        chromium.resize(1200, 640)
        chromium.get(f"{address}#custom_scalars&_smoothingWeight=0")
        chromium.wait_for(f"{lines}.length > 5")
        chromium.refresh()  # the first list of tabs lacks the projector
        chromium.wait_for(f"{lines}.length > 5")
        narrow = chromium.ask(f"{lines}[0].getTotalLength()")
        chromium.ask(f"{chart}.querySelector('paper-icon-button').click()")  # make it large
        chromium.wait_for(f"{lines}[0].getTotalLength() > 1.5 * arguments[0]", narrow)
        return chromium.get_screenshot_as_png()


def scene(chromium: Browser) -> bytes:
    """Return the page of a scene, with a tooltip, and nothing below it."""
    shutil.copyfile(DOCS / "scene.txt", "scene.txt")
    checkpoint = LOGS / "version_0" / "checkpoints" / "best.ckpt"
    options = ["--text=scene.txt", "--html=page.html", f"--ckpt_path={checkpoint}"]
    subprocess.run([sys.executable, ROOT / "cli.py", "score", *options], check=True)
    chromium.resize(820, 1200, scale=1.5)
    chromium.get(Path("page.html").absolute().as_uri())
    place = Path("scene.txt").read_text(encoding="utf-8").index(SURPRISING)
    letter = chromium.find_elements(By.CSS_SELECTOR, "#text .c")[place]
    ActionChains(chromium).move_to_element(letter).perform()
    chromium.wait_for("shown(document.getElementById('tip'))")
    width, height = chromium.ask(
        "[innerWidth, 24 + Math.max(...['text', 'tip'].map((id) => "
        "document.getElementById(id).getBoundingClientRect().bottom))]"
    )
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = chromium.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "clip": clip})
    return base64.b64decode(shot["data"])


if __name__ == "__main__":
    main()
