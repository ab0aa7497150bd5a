"""What a user sees in a browser: TensorBoard on a run, and the page of ``score``."""

from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nanogpt.commands.main import main
from nanogpt.generation.checkpoint import load_model
from nanogpt.insight.printable import visible
from nanogpt.insight.html_report import DIGITS
from nanogpt.text.pastiche import pastiche
from tests.browser import Browser, browser, needs_browser, tensorboard
from tests.command_lines import CONFIGS, TINY

pytestmark = needs_browser

HOSTILE = "<i>\nHe </div><script>document.title='bad'</script>\n"
NAME = "<img src=x onerror=document.title='bad'>.txt"
CUSTOM = {"train and val": 2, "beside n-gram counts": 8, "by position in the context": 1}
VERSION = Path("lightning_logs/version_0")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in it, and a text to score."""
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
    """What the run has recorded."""
    return EventAccumulator(str(home / VERSION)).Reload()


@pytest.fixture(scope="module")
def page(home: Path) -> str:
    """The address of the page on which the text is scored."""
    with chdir(home):
        assert main(["score", f"--text={NAME}", "--html=page.html"]) == 0
    return (home / "page.html").as_uri()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all tests, tall enough to draw every card."""
    with browser(1400, 3000) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def board(home: Path) -> Iterator[str]:
    """The address of TensorBoard on the run."""
    with tensorboard(home / "lightning_logs") as address:
        yield address


def test_every_curve_has_a_card_with_its_last_value(
    chromium: Browser, board: str, events: EventAccumulator
) -> None:
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("loss", "ngrams"))]
    assert {"loss/train", "loss/val", "loss_by_position/val", "ngrams/bigram_held_out"} <= set(tags)
    chromium.get(f"{board}?tagFilter=^(loss|ngrams)#timeseries")
    cells = "[...card.querySelectorAll('tb-data-table-content-cell')].map(plain)"
    cards = (
        "Object.fromEntries(everywhere('scalar-card').filter(shown).map((card) => "
        f"[plain(card.querySelector('tb-truncated-path')), {cells}]))"
    )
    chromium.wait_for(f"arguments[0].every((tag) => ({cards})[tag].length > 4)", tags)
    shown = chromium.ask(cards)
    assert shown.keys() == set(tags)
    for tag in tags:
        last = events.Scalars(tag)[-1]
        _, run, _, value, step = shown[tag][:5]
        assert (run, int(step)) == ("version_0", last.step)
        assert float(value) == pytest.approx(last.value, rel=1e-3)


def test_the_custom_charts_are_drawn(chromium: Browser, board: str) -> None:
    chromium.get(f"{board}#custom_scalars")
    charts = "everywhere('tf-custom-scalar-multi-line-chart-card').filter(shown)"
    lines = "everywhere('.line-plot:not(.ghost) path.line', card.shadowRoot)"
    long = f"{lines}.filter((line) => line.getTotalLength() > 100).length"  # pixels
    drawn = f"{charts}.map((card) => [card._titleDisplayString, {long}])"
    chromium.wait_for(
        f"{drawn}.reduce((sum, [_, count]) => sum + count, 0) >= {sum(CUSTOM.values())}"
    )
    assert dict(chromium.ask(drawn)) == CUSTOM


def test_the_samples_are_shown_to_the_letter(
    chromium: Browser, board: str, events: EventAccumulator
) -> None:
    chromium.get(f"{board}#text")
    samples = "everywhere('pre code').filter(shown).map((e) => e.textContent)"
    recorded = [
        event.tensor_proto.string_val[0].decode() for event in events.Tensors("sample/text_summary")
    ]
    assert len(recorded) == 3
    chromium.wait_for(f"{samples}.length >= 3")
    assert [sample.split() for sample in chromium.ask(samples)] == [
        text.split() for text in reversed(recorded)
    ]
    assert "sample/text_summary" in chromium.ask("said()")


def test_the_attention_maps_are_shown(chromium: Browser, board: str) -> None:
    chromium.get(f"{board}#images")
    images = "everywhere('#main-image-container img').filter(shown)"
    chromium.wait_for(f"{images}.some((image) => image.complete && image.naturalWidth > 300)")
    assert chromium.ask(f"{images}.length") == 1
    assert "attention/layer_1" in chromium.ask("said()")


def test_the_projector_knows_the_characters(chromium: Browser, board: str) -> None:
    vocabulary = sorted(set(pastiche()[:5000] + HOSTILE))
    chromium.get(f"{board}#projector")
    for _ in range(2):  # a frame in a frame
        frame = chromium.wait_for("everywhere('iframe').find(shown)")
        chromium.switch_to.frame(frame)
    chromium.wait_for("said().join(' ').includes(arguments[0])", f"Points: {len(vocabulary)}")
    chromium.wait_for("everywhere('input').some((e) => e.value.startsWith('characters'))")
    panel = "everywhere('vz-projector-inspector-panel')[0].shadowRoot"
    search = f"everywhere('input', everywhere('vz-projector-input', {panel})[0].shadowRoot)[0]"
    chromium.wait_for(search).send_keys("?")
    nearest = f"everywhere('.nn-list .label', {panel}).map(plain)"
    chromium.wait_for(f"{nearest}.length >= {len(vocabulary) - 1}")
    assert sorted([*chromium.ask(nearest), "?"]) == sorted(map(visible, vocabulary))


def test_runs_can_be_sorted_by_their_loss(
    chromium: Browser, board: str, events: EventAccumulator
) -> None:
    chromium.get(f"{board}#hparams")
    cells = "everywhere('vaadin-grid-cell-content').map(plain)"
    expected = ["version_0", "loss/val", f"{events.Scalars('loss/val')[-1].value:#.5g}"]
    chromium.wait_for(f"arguments[0].every((cell) => {cells}.includes(cell))", expected)


def thousandths(code: str) -> int:
    return sum(DIGITS.index(digit) * 64**power for power, digit in enumerate(reversed(code)))


def percent(cell: str) -> float:
    return float(cell.removesuffix(" %"))


def test_a_pointer_on_a_character_shows_what_the_model_expected(
    chromium: Browser, home: Path, page: str
) -> None:
    model, tokenizer = load_model(home / VERSION / "checkpoints" / "best.ckpt")
    ids = tokenizer.encode("\n" + HOSTILE[: model.block_size]).long()
    with torch.no_grad():
        chances = model(ids[None, :-1])[0].softmax(-1)
    chromium.get(page)
    characters = chromium.find_elements(By.CSS_SELECTOR, "#text .c")
    tip = chromium.find_element(By.ID, "tip")
    rows = "[...arguments[0].children].map((row) => [...row.childNodes].map((n) => n.textContent))"
    assert not tip.is_displayed()
    for place in (0, 3, 5, 6):  # a bracket, a line break, a letter and a space
        ActionChains(chromium).move_to_element(characters[place]).perform()
        name, target = visible(HOSTILE[place]), ids[place + 1]
        chromium.wait_for(
            "shown(arguments[0]) && plain(arguments[0])[0] === arguments[1]", tip, name
        )
        (shown_name, bits, chance), *others = chromium.ask(rows, tip)
        in_page = thousandths(characters[place].get_attribute("data-t")[:3]) / 1000
        assert in_page == pytest.approx(-chances[place, target].log2().item(), abs=6e-4)
        assert (shown_name, bits) == (name, f"{in_page:.2f} bits")
        assert percent(chance) == pytest.approx(100 * chances[place, target].item(), abs=0.06)
        most, likely = chances[place].topk(5)
        assert [row[0] for row in others] == [visible(tokenizer.vocabulary[i]) for i in likely]
        assert [percent(row[2]) for row in others] == pytest.approx((100 * most).tolist(), abs=0.07)
    ActionChains(chromium).move_to_element(chromium.find_element(By.TAG_NAME, "h1")).perform()
    chromium.wait_for("!shown(arguments[0])", tip)


def test_a_hostile_text_is_only_shown(chromium: Browser, page: str) -> None:
    chromium.get(page)
    assert chromium.ask("document.getElementById('text').textContent") == HOSTILE
    assert chromium.ask("everywhere('h1')[0].textContent") == NAME
    assert chromium.ask("everywhere('#text > :not(.c), .c > *, img').length") == 0
    assert chromium.ask("document.scripts.length") == 1  # the page's own
    assert chromium.title == f"{NAME}: surprisal"
