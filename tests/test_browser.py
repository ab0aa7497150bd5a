"""TensorBoard on a run, and the page of ``score``, in a browser."""

from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nanogpt.commands.main import main
from nanogpt.generation.checkpoint import read_checkpoint
from nanogpt.insight.html_report import DIGITS
from nanogpt.insight.printable import printable
from nanogpt.text.pastiche import pastiche
from tests.browser import Browser, browser, needs_browser, tensorboard
from tests.command_lines import CONFIGS, TINY

pytestmark = needs_browser

HOSTILE = "<i>\nHe </div><script>document.title='bad'</script>\n"
NAME = "<img src=x onerror=document.title='bad'>.txt"
CUSTOM = {"train and val": 2, "compared with n-gram counts": 8, "by position in the context": 1}
VERSION = Path("lightning_logs/version_0")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and a text to score."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "text.txt").write_text(pastiche()[:5000] + HOSTILE, encoding="utf-8")
    (folder / NAME).write_text(HOSTILE, encoding="utf-8")
    steps = ["--trainer.max_steps=60", "--trainer.val_check_interval=30"]
    options = [*TINY, *steps, "--data.corpus=text.txt", "--card=true"]
    with chdir(folder):
        assert main(["fit", "--config", str(CONFIGS / "quickstart.yaml"), *options]) == 0
    return folder


@pytest.fixture(scope="module")
def events(home: Path) -> EventAccumulator:
    """The events of the run."""
    return EventAccumulator(str(home / VERSION)).Reload()


@pytest.fixture(scope="module")
def page(home: Path) -> str:
    """The address of the page of the scored text."""
    with chdir(home):
        assert main(["score", f"--text={NAME}", "--html=page.html"]) == 0
    return (home / "page.html").as_uri()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for all tests, tall enough to draw every card."""
    with browser(1400, 3000) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def board(home: Path) -> Iterator[str]:
    """The address of TensorBoard with the run."""
    with tensorboard(home / "lightning_logs") as address:
        yield address


def test_every_scalar_has_a_card_with_its_last_value(
    chromium: Browser, board: str, events: EventAccumulator
) -> None:
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("loss", "ngrams"))]
    assert {"loss/train", "loss/val", "loss_by_position/val", "ngrams/bigram_held_out"} <= set(tags)
    chromium.get(f"{board}?tagFilter=^(loss|ngrams)#timeseries")
    cells = "[...card.querySelectorAll('tb-data-table-content-cell')].map(text)"
    cards = (
        "Object.fromEntries(everywhere('scalar-card').filter(shown).map((card) => "
        f"[text(card.querySelector('tb-truncated-path')), {cells}]))"
    )
    chromium.wait_for(f"arguments[0].every((tag) => ({cards})[tag].length > 4)", tags)
    shown = chromium.evaluate(cards)
    assert shown.keys() == set(tags)
    for tag in tags:
        last = events.Scalars(tag)[-1]
        _, run, _, value, step = shown[tag][:5]
        assert (run, int(step)) == ("version_0", last.step)
        assert float(value) == pytest.approx(last.value, rel=1e-3)


def test_custom_charts_are_drawn(chromium: Browser, board: str) -> None:
    chromium.get(f"{board}#custom_scalars")
    charts = "everywhere('tf-custom-scalar-multi-line-chart-card').filter(shown)"
    lines = "everywhere('.line-plot:not(.ghost) path.line', card.shadowRoot)"
    long = f"{lines}.filter((line) => line.getTotalLength() > 100).length"  # pixels
    drawn = f"{charts}.map((card) => [card._titleDisplayString, {long}])"
    chromium.wait_for(
        f"{drawn}.reduce((sum, [_, count]) => sum + count, 0) >= {sum(CUSTOM.values())}"
    )
    assert dict(chromium.evaluate(drawn)) == CUSTOM


def test_samples_are_shown_unchanged(
    chromium: Browser, board: str, events: EventAccumulator
) -> None:
    chromium.get(f"{board}#text")
    samples = "everywhere('pre code').filter(shown).map((e) => e.textContent)"
    recorded = [
        event.tensor_proto.string_val[0].decode() for event in events.Tensors("sample/text_summary")
    ]
    assert len(recorded) == 3
    chromium.wait_for(f"{samples}.length >= 3")
    assert [sample.split() for sample in chromium.evaluate(samples)] == [
        text.split() for text in reversed(recorded)
    ]
    assert "sample/text_summary" in chromium.evaluate("visibleTexts()")


def test_attention_maps_are_shown(chromium: Browser, board: str) -> None:
    chromium.get(f"{board}#images")
    images = "everywhere('#main-image-container img').filter(shown)"
    chromium.wait_for(f"{images}.some((image) => image.complete && image.naturalWidth > 300)")
    assert chromium.evaluate(f"{images}.length") == 1
    assert "attention/layer_1" in chromium.evaluate("visibleTexts()")


def test_projector_shows_the_characters(chromium: Browser, board: str) -> None:
    vocabulary = sorted(set(pastiche()[:5000] + HOSTILE))
    chromium.get(f"{board}#projector")
    for _ in range(2):  # nested frames
        frame = chromium.wait_for("everywhere('iframe').find(shown)")
        chromium.switch_to.frame(frame)
    chromium.wait_for(
        "visibleTexts().join(' ').includes(arguments[0])", f"Points: {len(vocabulary)}"
    )
    chromium.wait_for("everywhere('input').some((e) => e.value.startsWith('characters'))")
    panel = "everywhere('vz-projector-inspector-panel')[0].shadowRoot"
    search = f"everywhere('input', everywhere('vz-projector-input', {panel})[0].shadowRoot)[0]"
    chromium.wait_for(search).send_keys("?")
    nearest = f"everywhere('.nn-list .label', {panel}).map(text)"
    chromium.wait_for(f"{nearest}.length >= {len(vocabulary) - 1}")
    assert sorted([*chromium.evaluate(nearest), "?"]) == sorted(map(printable, vocabulary))


def test_hparams_show_the_loss(chromium: Browser, board: str, events: EventAccumulator) -> None:
    chromium.get(f"{board}#hparams")
    cells = "everywhere('vaadin-grid-cell-content').map(text)"
    expected = ["version_0", "loss/val", f"{events.Scalars('loss/val')[-1].value:#.5g}"]
    chromium.wait_for(f"arguments[0].every((cell) => {cells}.includes(cell))", expected)


def thousandths(code: str) -> int:
    return sum(DIGITS.index(digit) * 64**power for power, digit in enumerate(reversed(code)))


def percent(cell: str) -> float:
    return float(cell.removesuffix(" %"))


def test_tooltip_shows_the_predictions_of_the_model(
    chromium: Browser, home: Path, page: str
) -> None:
    trained = read_checkpoint(home / VERSION / "checkpoints" / "best.safetensors")
    model, tokenizer = trained.model, trained.tokenizer
    ids = tokenizer.encode("\n" + HOSTILE[: model.block_size]).long()
    with torch.no_grad():
        probabilities = model(ids[None, :-1])[0].softmax(-1)
    chromium.get(page)
    characters = chromium.find_elements(By.CSS_SELECTOR, "#text .c")
    tip = chromium.find_element(By.ID, "tip")
    rows = "[...arguments[0].children].map((row) => [...row.childNodes].map((n) => n.textContent))"
    assert not tip.is_displayed()
    for i in (0, 3, 5, 6):  # a bracket, a line break, a letter and a space
        ActionChains(chromium).move_to_element(characters[i]).perform()
        name, target = printable(HOSTILE[i]), ids[i + 1]
        chromium.wait_for(
            "shown(arguments[0]) && text(arguments[0])[0] === arguments[1]", tip, name
        )
        (shown_name, bits, probability), *others = chromium.evaluate(rows, tip)
        in_page = thousandths(characters[i].get_attribute("data-t")[:3]) / 1000
        assert in_page == pytest.approx(-probabilities[i, target].log2().item(), abs=6e-4)
        assert (shown_name, bits) == (name, f"{in_page:.2f} bits")
        assert percent(probability) == pytest.approx(
            100 * probabilities[i, target].item(), abs=0.06
        )
        top, likely = probabilities[i].topk(5)
        assert [row[0] for row in others] == [printable(tokenizer.vocabulary[j]) for j in likely]
        assert [percent(row[2]) for row in others] == pytest.approx((100 * top).tolist(), abs=0.07)
    ActionChains(chromium).move_to_element(chromium.find_element(By.TAG_NAME, "h1")).perform()
    chromium.wait_for("!shown(arguments[0])", tip)


def test_hostile_text_is_inert(chromium: Browser, page: str) -> None:
    chromium.get(page)
    assert chromium.evaluate("document.getElementById('text').textContent") == HOSTILE
    assert chromium.evaluate("everywhere('h1')[0].textContent") == NAME
    assert chromium.evaluate("everywhere('#text > :not(.c), .c > *, img').length") == 0
    assert chromium.evaluate("document.scripts.length") == 1  # that of the page
    assert chromium.title == f"{NAME}: surprisal"
