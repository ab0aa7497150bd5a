"""Make the images of the documentation: python docs/pictures.py RUN_FOLDER LADDER_FOLDER."""

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
sys.path.insert(0, str(ROOT))  # for tests

from tests.browser import Browser, browser, tensorboard  # noqa: E402

MAX_BYTES = 250_000
TOOLTIP_ON = "phone"  # its first letter gets the tooltip
LOGS = Path("lightning_logs")


def main() -> None:
    """Write all images to the folder of this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run: lightning_logs/version_N")
    parser.add_argument(
        "ladder", type=Path, help="the folder of a ladder, which contains ladder.png"
    )
    folders = parser.parse_args()
    shutil.copyfile(folders.run / "curves.png", DOCS / "curves.png")
    shutil.copyfile(folders.ladder / "ladder.png", DOCS / "ladder.png")
    (DOCS / "attention.png").write_bytes(attention_maps(folders.run))
    run = folders.run.resolve()
    with tempfile.TemporaryDirectory() as home, chdir(home), browser() as chromium:
        LOGS.mkdir()  # contains only the runs that the images show
        (LOGS / "version_0").symlink_to(run)
        (LOGS / "reference").symlink_to(ROOT / LOGS / "reference")
        (DOCS / "tensorboard.png").write_bytes(tensorboard_charts(chromium))
        (DOCS / "score.png").write_bytes(scored_scene(chromium))
    for name in ("curves", "ladder", "attention", "tensorboard", "score"):
        size = (DOCS / f"{name}.png").stat().st_size
        print(f"docs/{name}.png  {size:,} bytes{'  TOO LARGE' if size > MAX_BYTES else ''}")


def attention_maps(run: Path) -> bytes:
    """Return the image of the first layer's attention maps from the events of a run."""
    events = EventAccumulator(str(run)).Reload()
    image: bytes = events.Images("attention/layer_1")[-1].encoded_image_string
    return image


def tensorboard_charts(chromium: Browser) -> bytes:
    """Return a screenshot of TensorBoard's custom charts, with the losses of all runs enlarged."""
    chart = "everywhere('tf-custom-scalar-multi-line-chart-card')[0].shadowRoot"
    lines = f"everywhere('.line-plot:not(.ghost) path.line', {chart})"
    with tensorboard(LOGS) as address:
        chromium.resize(1200, 640)
        chromium.get(f"{address}#custom_scalars&_smoothingWeight=0")
        chromium.wait_for(f"{lines}.length > 5")
        chromium.refresh()  # the projector is missing from the tabs at first
        chromium.wait_for(f"{lines}.length > 5")
        length = chromium.evaluate(f"{lines}[0].getTotalLength()")
        chromium.evaluate(f"{chart}.querySelector('paper-icon-button').click()")  # enlarge it
        chromium.wait_for(f"{lines}[0].getTotalLength() > 1.5 * arguments[0]", length)
        return chromium.get_screenshot_as_png()


def scored_scene(chromium: Browser) -> bytes:
    """Return a screenshot of the page of a scored scene, with a tooltip, cropped at the bottom."""
    shutil.copyfile(DOCS / "scene.txt", "scene.txt")
    checkpoint = LOGS / "version_0" / "checkpoints" / "best.safetensors"
    options = ["--text=scene.txt", "--html=page.html", f"--ckpt_path={checkpoint}"]
    subprocess.run([sys.executable, ROOT / "cli.py", "score", *options], check=True)
    chromium.resize(820, 1200, scale=1.5)
    chromium.get(Path("page.html").absolute().as_uri())
    position = Path("scene.txt").read_text(encoding="utf-8").index(TOOLTIP_ON)
    letter = chromium.find_elements(By.CSS_SELECTOR, "#text .c")[position]
    ActionChains(chromium).move_to_element(letter).perform()
    chromium.wait_for("shown(document.getElementById('tip'))")
    width, height = chromium.evaluate(
        "[innerWidth, 24 + Math.max(...['text', 'tip'].map((id) => "
        "document.getElementById(id).getBoundingClientRect().bottom))]"
    )
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    result = chromium.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "clip": clip})
    return base64.b64decode(result["data"])


if __name__ == "__main__":
    main()
