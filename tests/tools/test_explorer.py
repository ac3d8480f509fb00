import base64
import contextlib
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import explorer
import explorer_layout as lay
import explorer_view as view
import numpy as np
import pytest
import torch
import yaml
from explorer_answers import FOLLOWS, OWN, Answers, build_start
from explorer_view import Numbers, Window
from matplotlib import colormaps
from matplotlib.colors import Normalize
from PIL import Image

from vmp.config import load_cfg
from vmp.data import VideoReader
from vmp.models import build_model
from vmp.prompts import POWER_NORMS, MotionPrompt
from vmp.prompts.power_norm import sigmoid
from vmp.visualization import motion_rows
from vmp.visualization.style import difference_map

TOOL = Path(explorer.__file__)
PAPER = view.constants(None)
SMALL = "MODEL: {NAME: x3d, NUM_CLASSES: 3}\n"
SMALL += "X3D: {WIDTH_FACTOR: 1.0, DEPTH_FACTOR: 0.2, DIM_C5: 64}\n"
MPII = Numbers("sigmoid", 0.257, 0.053, 0.0)


def write_video(path, count=30, height=64, width=96):
    """Write a video in which a bright square moves right."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height = width, height
        for number in range(count):
            picture = np.full((height, width, 3), 60, dtype=np.uint8)
            left = width * number // (count + 10)
            picture[height // 3 : height // 2, left : left + width // 6] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "moving.mp4")


@pytest.fixture
def started(video):
    """Return a function that makes the answers of a command line."""
    with contextlib.ExitStack() as stack:

        def start(*words, path=video):
            args = explorer.parse_args([str(path), *map(str, words)])
            return Answers(build_start(args, stack.enter_context(VideoReader(path))))

        yield start


def picture_in(told):
    """Return the picture (H, W, 3) of an address."""
    content = base64.b64decode(told.partition("base64,")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def beside(pictures):
    """Return (T, H, W, 3) as one picture."""
    return np.concatenate(list(np.asarray(pictures)), axis=1)


# ---------------------------------------------------------------- numbers


def test_the_presets_have_the_slopes_and_shifts_of_the_authors_site():
    told = {
        "FineGym": (11.07, -0.594),
        "HMDB-51": (23.11, -0.348),
        "MPII Cooking 2": (23.46, 0.032),
        "UCF-Crime": (11.89, -0.149),
        "FineGym, λ = 0": (9.61, -0.153),
        "FineGym, λ = 2.5": (11.02, -0.594),
        "FineGym, λ = 10": (10.30, -0.598),
    }
    found = view.presets()
    assert len([name for name in found if "λ" in name]) == 9
    for name, pair in told.items():
        assert view.slope_and_shift(*found[name], PAPER) == pytest.approx(pair, abs=0.011)


@pytest.mark.parametrize("fixed", [PAPER, {"alpha": 2.0, "beta": 0.3, "gamma": 0.9, "eps": 0.05}])
def test_m_and_n_are_found_back_from_a_and_b(fixed):
    for m, n in ((0.257, 0.053), (-0.8, -2.5), (2.5, 1.0)):
        a, b = view.slope_and_shift(m, n, fixed)
        assert view.m_of(a, fixed, near=m, reach=4) == pytest.approx(m, rel=1e-3)
        assert view.n_of(b, fixed, reach=4) == pytest.approx(n, rel=1e-3)


def test_an_a_or_b_past_the_sliders_gives_their_ends():
    assert view.m_of(1.0, PAPER, near=-0.1, reach=4) == pytest.approx(-4)
    assert view.m_of(99.0, PAPER, near=1.0, reach=4) == 0
    assert view.n_of(-0.7, PAPER, reach=4) == pytest.approx(-4)


@pytest.mark.parametrize("name", sorted(name for name, _ in POWER_NORMS))
def test_a_power_norm_is_made_with_its_number_over_the_whole_slider(name):
    for value in (*view.span_of(name), view.number_of(name)[1]):
        norm = view.make_norm(Numbers(name, 0.5, -0.3, value), PAPER)
        assert type(norm) is POWER_NORMS.get(name)
        found = view.numbers_of(norm)
        if view.number_of(name)[0]:
            assert found.value == pytest.approx(value, rel=1e-3)
        if name == "sigmoid":
            assert (found.m, found.n) == pytest.approx((0.5, -0.3))


# ---------------------------------------------------------------- frames and pictures


def test_frames_are_as_far_apart_as_both_strides_say():
    assert view.frames_of(Window(5, 2, 4, 3), 100) == [5, 13, 21, 29]


@pytest.mark.parametrize("window", [Window(99, 2, 1, 8), Window(0, 16, 8, 8), Window(3, 1, 1, 99)])
def test_the_first_two_frames_are_in_the_video_wherever_the_sliders_are(window):
    numbers = view.frames_of(window, 30)
    assert 0 <= numbers[0] < numbers[1] < 30
    assert len(numbers) <= explorer.MOST_FRAMES + 1


def test_the_pictures_are_those_that_the_layer_makes(started):
    answers = started("--start", 3, "--frames", 4)
    clip = answers.video.clip(Window(3, 2, 1, 4))
    parts = clip.parts | answers.video.make(clip, view.make_norm(MPII, PAPER)).parts
    layer = MotionPrompt(sigmoid(m=MPII.m, n=MPII.n, learnable=False))
    rows = {row.name: row for row in motion_rows([("", layer)], clip.frames)}
    for name, row in rows.items():
        shown = row.pictures.numpy()
        if row.colours:
            scale = Normalize(row.colours["vmin"], row.colours["vmax"])
            shown = colormaps.get_cmap(row.colours["cmap"])(scale(shown), bytes=True)[..., :3]
        elif shown.dtype != np.uint8:
            shown = shown * 255
        away = np.abs(picture_in(parts[name]) - beside(shown))
        assert away.mean() < 2, name  # JPEG
        assert np.percentile(away, 99) < 12, name


@pytest.mark.parametrize(
    ("limit", "colours"), [(1.8, colormaps["coolwarm"]), (0.3, difference_map())]
)
def test_colours_are_those_of_the_figures(limit, colours):
    values = torch.linspace(-limit, limit, 1000).view(1, 10, 100)
    wanted = colours(Normalize(-limit, limit)(values.numpy()), bytes=True)[..., :3]
    away = np.abs(view.coloured(values, limit, colours).numpy().astype(int) - wanted)
    assert away.max() <= 3  # a step of the table, where rounding decides


def test_the_histogram_counts_every_pixel_and_the_still_ones_in_the_middle(started):
    clip = started().video.clip(Window(0, 2, 1, 8))
    assert clip.histogram.sum() == clip.differences.numel()
    still = (clip.differences.abs() < 1 / view.BINS).sum()
    assert clip.histogram[view.BINS // 2] == pytest.approx(float(still), abs=2)
    assert 0 < clip.histogram[: view.BINS // 2].sum() < clip.histogram[view.BINS // 2]


def test_past_the_end_the_last_frame_is_held_and_the_page_says_so(started):
    answers = started()
    told = answers.look(MPII, Window(20, 3, 1, 8), moved=True)
    assert told["clip"]["labels"] == [23, 26, 29, 29, 29, 29, 29, 29]
    assert "20 to 29 of 30, the last one held" in told["parts"]["facts"]
    assert "held" not in answers.look(MPII, Window(0, 1, 1, 8))["parts"]["facts"]


def test_the_curve_marks_the_shift_and_the_still_pixels():
    norm = view.make_norm(MPII, PAPER)
    across = torch.linspace(-1, 1, 201)
    curve = torch.stack((across, norm(across)), dim=1).numpy()
    drawn = lay.curve_picture(curve, np.ones(101), {"b": 0.5, "f0": 0.25})
    assert f'x1="{lay.x(0.5):.1f}"' in drawn
    assert f'<circle cx="{lay.x(0)}" cy="{lay.y(0.25):.1f}"' in drawn
    (points,) = re.findall(r'points="([^"]*)"', drawn)
    pairs = np.array([pair.split(",") for pair in points.split()], dtype=float)
    assert pairs[0] == pytest.approx([lay.LEFT, lay.BOTTOM], abs=0.1)
    assert pairs[-1] == pytest.approx([lay.RIGHT, lay.TOP], abs=0.1)
    bars = re.findall(r"M([\d.]+) ", drawn)
    assert float(bars[0]) == lay.LEFT  # one axis for both
    assert "circle" not in lay.curve_picture(curve, np.ones(101), {})


def test_a_path_that_is_not_there_is_told_before_a_missing_extra(monkeypatch):
    monkeypatch.setattr(explorer, "check_extra", lambda: pytest.fail("asked first"))
    with pytest.raises(ValueError, match=r"absent\.mp4 does not exist; name a video"):
        explorer.main(["absent.mp4"])


# ---------------------------------------------------------------- answers


def test_a_and_b_follow_m_and_n_and_these_follow_them(started):
    answers, window = started(), Window(0, 2, 1, 4)
    a = answers.change("m", 1.05, MPII._replace(m=1.05), window)["a"]["value"]
    assert a == pytest.approx(11.07, abs=0.01)
    assert answers.change("a", a, MPII, window)["m"]["value"] == pytest.approx(1.05, abs=0.001)
    b = answers.change("n", -0.6615, MPII._replace(n=-0.6615), window)["b"]["value"]
    assert b == pytest.approx(-0.348, abs=0.001)
    assert answers.change("b", b, MPII, window)["n"]["value"] == pytest.approx(-0.6615, abs=0.001)


def test_a_preset_sets_every_number_and_own_ones_leave_it(started):
    answers, window = started(), Window(0, 2, 1, 4)
    news = answers.change("preset", "HMDB-51", MPII._replace(norm="gamma"), window)
    assert news["norm"] == {"value": "sigmoid"}
    assert (news["m"]["value"], news["n"]["value"]) == (0.2646, -0.6615)
    assert news["m"]["visible"]
    assert not news["value"]["visible"]
    assert answers.change("m", 0.3, MPII._replace(m=0.3), window)["preset"]["value"] == OWN


def test_another_power_norm_brings_its_own_slider(started):
    news = started().change("norm", "maxexp", MPII._replace(norm="maxexp"), Window(0, 2, 1, 4))
    assert news["value"]["label"] == "eta"
    assert news["value"]["value"] == pytest.approx(3.35)
    assert news["value"]["visible"]
    assert not any(news[name]["visible"] for name in "mnab")


def test_what_is_moved_is_not_moved_back_and_only_what_is_new_is_sent(started):
    answers, window = started(), Window(0, 2, 1, 4)
    for name, follows in FOLLOWS.items():
        to = {"preset": "FineGym", "norm": "sigmoid", "a": 20.0, "b": 0.1}.get(name, 1)
        news = answers.change(name, to, MPII, window)
        assert set(news) == {"view", *follows}
        assert name not in news
        assert ("frames" in news["view"]["parts"]) == (name in Window._fields)
        assert {"attention", "prompts", "curve", "facts"} <= set(news["view"]["parts"])


def test_a_page_is_not_changed_by_what_another_asks(started):
    answers, window = started(), Window(0, 2, 1, 4)
    first = answers.look(MPII, window, moved=True)
    answers.change("norm", "gamma", Numbers("gamma", 1, 1, 0.3), Window(9, 3, 2, 6))
    answers.change("preset", "FineGym", MPII, window)
    assert answers.look(MPII, window, moved=True) == first


@pytest.mark.parametrize("name", sorted(name for name, _ in POWER_NORMS))
def test_the_yaml_is_a_recipe_that_makes_this_prompt(started, tmp_path, name):
    base = tmp_path / "base recipe.yaml"
    base.write_text(f"{SMALL}OUTPUT_DIR: runs/precious\nPROMPT: {{PENALTY: 2.5}}\n")
    answers = started("--cfg", base)
    value = view.number_of(name)[1]
    saved = answers.save_recipe(Numbers(name, 0.4, -0.2, value), Window(0, 2, 1, 4), learn=True)
    text = base64.b64decode(saved["save"]["address"].partition(",")[2]).decode()
    path = tmp_path / "downloads" / saved["save"]["name"]
    path.parent.mkdir()
    path.write_text(text)
    cfg = load_cfg(path)
    assert cfg.PROMPT.ENABLE
    told = (cfg.PROMPT.POWER_NORM, cfg.PROMPT.PENALTY)
    assert told == (name, 2.5)  # the penalty is the base's
    assert cfg.OUTPUT_DIR != "runs/precious"
    (prompt,) = build_model(cfg).prompts.values()
    wanted = Numbers(name, 0.4, -0.2, value)
    differences = torch.linspace(-1, 1, 9)
    made = view.make_norm(wanted, PAPER)(differences)
    assert prompt.power_norm(differences).tolist() == pytest.approx(made.tolist(), abs=1e-6)
    assert all(each.requires_grad for each in prompt.parameters())


def test_an_m_of_0_is_written_as_fixed(tmp_path):
    text = view.recipe(tmp_path, MPII._replace(m=0.0), PAPER, learn=True, about="two\nlines")
    assert yaml.safe_load(text)["PROMPT"]["SIGMOID"]["LEARNABLE"] is False
    assert text.startswith("# two lines\n")


def test_the_saved_panel_is_a_picture(started):
    saved = started().save_panel(MPII, Window(0, 2, 1, 4))["save"]
    assert saved["name"] == "moving_prompt.png"
    assert picture_in(saved["address"]).std() > 10


def test_a_checkpoint_starts_the_page_with_what_it_has_learned(started, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    text = f"{SMALL}DATA: {{NUM_FRAMES: 4, SAMPLING_RATE: 3, TARGET_FPS: 0}}\nOUTPUT_DIR: kept\n"
    text += "PROMPT: {ENABLE: True, SIGMOID: {ALPHA: 4.0, M: 0.7, N: -4.4}}\n"
    (tmp_path / "run" / "config.yaml").write_text(text)
    model = build_model(load_cfg(tmp_path / "run" / "config.yaml"))
    torch.save({"model": model.state_dict()}, tmp_path / "run" / "checkpoints" / "epoch_00001.pth")
    answers = started("--checkpoint", tmp_path / "run")
    assert (answers.start.numbers.m, answers.start.numbers.n) == pytest.approx((0.7, -4.4))
    assert answers.fixed["alpha"] == 4.0
    assert answers.start.window == Window(0, 4, 1, 4)  # 5 frames over 5 * 3: 3.5 apart
    assert answers.reach == 5.0  # an n of -4.4 is on the slider
    assert answers.start.preset in answers.start.presets
    assert answers.start.base.name == "config.yaml"


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "70000"], "--port is 70000; it is from 0 to 65535"),
        (["--frames", "1"], "--frames is 1; it is from 2 to 16"),
        (["--stride", "0"], "--stride is 0; it is at least 1"),
    ],
)
def test_a_number_out_of_its_range_is_refused(words, told, capsys):
    with pytest.raises(SystemExit):
        explorer.parse_args(["video.mp4", *words])
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("found", "told"), [("3.36.1", "it is 3.36.1, 6.10 is needed"), ("", "not")]
)
def test_a_missing_or_old_gradio_is_told_with_the_way_out(monkeypatch, found, told):
    def version(_):
        if not found:
            raise explorer.PackageNotFoundError
        return found

    monkeypatch.setattr(explorer, "version", version)
    with pytest.raises(ValueError, match=told) as caught:
        explorer.check_extra()
    assert "pip install 'vmp[explorer]'" in str(caught.value)
    monkeypatch.setattr(explorer, "version", lambda _: "6.10.0")
    explorer.check_extra()


def test_a_taken_port_is_told_with_the_way_out():
    with explorer.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port}: .* in use; --port 0 takes a free one"):
            explorer.listen("127.0.0.1", port)


def test_the_page_is_for_this_machine_alone_unless_asked():
    args = explorer.parse_args(["video.mp4"])
    with explorer.listen(args.host, 0) as taken:
        assert taken.getsockname()[0] == "127.0.0.1"


def test_a_video_of_one_frame_is_refused(started, tmp_path):
    path = write_video(tmp_path / "still.mp4", count=1)
    with pytest.raises(ValueError, match="still.mp4: it has 1 frame; a difference takes two"):
        started(path=path)


# ---------------------------------------------------------------- in a browser


@contextlib.contextmanager
def serving(video):
    """Start the tool as a user does, and return where it says the page is."""
    command = [sys.executable, TOOL, video, "--port", "0", "--no-browser"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = running.stdout.readline()
    if not line:
        pytest.fail(running.communicate()[1])
    yield re.search(r"http://\S+", line).group()
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def address(video):
    pytest.importorskip("gradio", reason="the page needs the extra explorer")
    with serving(video) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Return a headless Chromium that saves files in `browser.folder`."""
    pytest.importorskip("gradio", reason="the page needs the extra explorer")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    wait = importlib.import_module("selenium.webdriver.support.wait")
    redrawn = importlib.import_module("selenium.common").StaleElementReferenceException
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if not all(programs):
        pytest.skip("there is no chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{word}")
    options.add_argument("--window-size=1400,1250")
    folder = tmp_path_factory.mktemp("downloads")
    # a click counts for some seconds, which a busy machine may take; then Chromium would ask
    several = "profile.default_content_setting_values.automatic_downloads"
    prefs = {"download.default_directory": str(folder), several: 1}
    options.add_experimental_option("prefs", prefs)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    driver.folder = folder
    driver.waiting = wait.WebDriverWait(driver, 120, 0.05, [redrawn])
    yield driver
    driver.quit()


FILLED = "const all = [...document.querySelectorAll('.vmp-view img')];"
FILLED += "return all.length === 8 && all.every((each) => each.complete && each.naturalWidth)"
MOVE = """
const at = document.querySelector(`#${arguments[0]} input[type=range]`);
Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(at, arguments[1]);
at.dispatchEvent(new Event('input', {bubbles: true}));
"""


class Page:
    """The page in a browser, as one who looks at it."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)
        self.until(lambda: browser.execute_script(FILLED))

    def until(self, holds):
        """Return what `holds` gives as soon as that is true; not while Gradio redraws the page."""
        return self.browser.waiting.until(lambda _: holds())

    def find(self, what):
        return self.browser.find_element("css selector", what)

    def move(self, name, to):
        self.browser.execute_script(MOVE, name, to)

    def number(self, name):
        """Return what stands in the field of a slider, NaN while there is none."""
        found = self.browser.find_elements("css selector", f"#{name} input[type=number]")
        return float(found[0].get_property("value")) if found else np.nan

    def seen(self, kind):
        """Return a strip as it is on the screen."""
        where = f".vmp-strip img[data-part={kind}]"
        return picture_in("base64," + self.find(where).screenshot_as_base64)

    def choose(self, name, text):
        def taken():
            for each in self.browser.find_elements("css selector", "ul[role=listbox] li"):
                if text in (each.get_attribute("aria-label"), each.text.strip("✓ \n")):
                    each.click()
                    return True
            return False

        self.find(f"#{name} input").click()
        self.until(taken)

    def saved(self, button):
        """Press a button and return the file that it saves."""
        before = set(self.browser.folder.iterdir())
        self.find(f"#{button}").click()

        def arrived():
            new = set(self.browser.folder.iterdir()) - before
            return [path for path in new if path.suffix in (".png", ".yaml")]

        return self.until(arrived)[0]


@pytest.fixture
def page(address, browser):
    return Page(browser, address)


@pytest.mark.slow
def test_moving_m_changes_attention_and_prompts_and_a_but_not_the_frames(page):
    before = {kind: page.seen(kind) for kind in lay.KINDS}
    page.move("m", 2.0)
    wanted = view.slope_and_shift(2.0, 0.0, PAPER)[0]
    page.until(lambda: page.number("a") == pytest.approx(wanted, abs=0.002))
    page.until(lambda: np.abs(page.seen("attention") - before["attention"]).mean() > 1)
    assert np.abs(page.seen("prompts") - before["prompts"]).mean() > 1
    for kind in ("frames", "differences"):
        assert np.abs(page.seen(kind) - before[kind]).mean() < 0.5
    assert f"{wanted:.4g}" in page.find(".vmp-facts").text


@pytest.mark.slow
def test_b_moves_n_and_the_curve(page):
    before = page.find(".vmp-curve polyline").get_attribute("points")
    page.move("b", -0.4)
    page.until(lambda: page.number("n") == pytest.approx(-0.8047, abs=0.001))
    assert page.find(".vmp-curve polyline").get_attribute("points") != before


@pytest.mark.slow
def test_a_preset_and_another_power_norm_set_the_controls(page):
    page.choose("preset", "HMDB-51")
    page.until(lambda: page.number("m") == pytest.approx(0.2646))
    assert page.number("n") == pytest.approx(-0.6615)
    assert page.number("b") == pytest.approx(-0.348, abs=0.001)
    page.choose("norm", "gamma")
    page.until(lambda: page.number("value") == pytest.approx(0.3))
    assert not page.browser.find_elements("css selector", "#m input[type=range]")
    assert page.find("#preset input").get_property("value") == OWN


@pytest.mark.slow
def test_of_many_moves_the_last_one_counts(page):
    for step in range(40):
        page.move("n", -2 + 0.05 * step)
    page.until(lambda: page.number("b") == pytest.approx(0.6 * np.tanh(-0.05), abs=0.002))
    wanted = view.slope_and_shift(0.257, -0.05, PAPER)[1]
    page.until(lambda: f"{wanted:.4g}" in page.find(".vmp-facts").text)


ANSWERED = """
const done = arguments[arguments.length - 1], at = document.querySelector('#m input[type=range]');
const shown = document.querySelector('.vmp-strip img[data-part=prompts]'), before = shown.src;
const begun = performance.now();
new MutationObserver(async (_, watching) => {
  if (shown.src === before) return;
  watching.disconnect();
  await shown.decode();
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - begun)));
}).observe(shown, {attributes: true});
Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(at, arguments[0]);
at.dispatchEvent(new Event('input', {bubbles: true}));
"""


@pytest.mark.slow
def test_every_move_of_a_slider_is_answered_on_the_screen(browser, tmp_path):
    """Says how fast with `-s`: docs/explorer.md has what came out."""
    with serving(write_video(tmp_path / "large.mp4", height=224, width=224)) as address:
        page = Page(browser, address)
        took = [browser.execute_async_script(ANSWERED, 0.3 + 0.1 * step) for step in range(15)]
        assert page.number("m") == pytest.approx(1.7)
    low, middle, high = np.percentile(took[1:], [25, 50, 75])
    load = os.getloadavg()[0]
    sys.stdout.write(
        f"\nslider to screen: {middle:.0f} ms ({low:.0f} to {high:.0f}), load {load:.1f}\n"
    )


@pytest.mark.slow
def test_play_moves_the_frames_and_pause_stops_them(page):
    def where():
        return page.find(".vmp-where").text

    assert where() == "frame 2"
    page.find(".vmp-play").click()
    assert page.find(".vmp-play").text == "pause"
    seen = set()
    page.until(lambda: seen.add(where()) or len(seen) > 3)
    page.find(".vmp-play").click()
    stopped = where()
    time.sleep(0.6)
    assert where() == stopped
    assert page.find(".vmp-play").text == "play"


@pytest.mark.slow
def test_other_frames_are_shown_where_the_sliders_say(page):
    page.move("start", 7)
    page.until(lambda: page.find(".vmp-labels").text.split()[0] == "9")
    page.move("pathway", 2)
    page.until(lambda: page.find(".vmp-labels").text.split()[:2] == ["11", "15"])
    page.move("steps", 3)
    page.until(lambda: len(page.find(".vmp-labels").text.split()) == 3)


@pytest.mark.slow
def test_what_the_page_saves_is_a_recipe_and_a_picture(page):
    page.move("m", 0.5)
    page.until(lambda: page.number("a") == pytest.approx(16.24, abs=0.01))
    cfg = load_cfg(page.saved("recipe"))
    assert (cfg.PROMPT.ENABLE, cfg.PROMPT.SIGMOID.M, cfg.PROMPT.SIGMOID.N) == (True, 0.5, 0.053)
    assert load_cfg(page.saved("recipe")).PROMPT.SIGMOID.M == 0.5  # once more
    picture = page.saved("panel")
    assert picture.suffix == ".png"
    assert np.asarray(Image.open(picture)).std() > 10


@pytest.mark.slow
def test_two_pages_do_not_disturb_each_other(page, address):
    page.move("m", 2.0)
    page.until(lambda: page.number("a") == pytest.approx(9.386, abs=0.02))
    first = page.browser.current_window_handle
    page.browser.switch_to.new_window("tab")
    try:
        other = Page(page.browser, address)
        assert other.number("m") == pytest.approx(0.257)
        other.move("n", 1.0)
        other.until(lambda: other.number("b") == pytest.approx(0.457, abs=0.001))
    finally:
        page.browser.close()
        page.browser.switch_to.window(first)
    assert page.number("m") == 2.0
    assert page.number("n") == pytest.approx(0.053)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 820, 500])
def test_the_page_fits_the_window_and_no_letters_are_cut_off(page, width):
    page.browser.set_window_size(width, 1250)
    try:
        time.sleep(0.5)
        inner, whole = page.browser.execute_script(
            "return [innerWidth, document.documentElement.scrollWidth]"
        )
        assert whole <= inner
        cut = page.browser.execute_script(
            "return [...document.querySelectorAll('label, .vmp-name, .vmp-facts td, figcaption,"
            " .vmp-labels span, button')].filter((each) => each.offsetWidth"
            " && each.scrollWidth > each.clientWidth + 1).map((each) => each.textContent)"
        )
        assert cut == []
    finally:
        page.browser.set_window_size(1400, 1250)


@pytest.mark.slow
def test_nothing_is_asked_of_other_machines_and_the_console_is_quiet(page, address):
    page.browser.get_log("performance")
    page.browser.get_log("browser")
    page = Page(page.browser, address)
    page.move("m", 1.0)
    page.saved("recipe")
    sent = [json.loads(each["message"])["message"] for each in page.browser.get_log("performance")]
    asked = [
        each["params"]["request"]["url"]
        for each in sent
        if each["method"] == "Network.requestWillBeSent"
    ]
    assert len([url for url in asked if url.startswith(address)]) > 5
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    errors = [each for each in page.browser.get_log("browser") if each["level"] == "SEVERE"]
    assert errors == []
