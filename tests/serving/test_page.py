"""The page of the server, and the page of a replay, in a browser."""

import importlib.util
import re
import shutil

import pytest

from didi.serving.page import replay_page
from didi.serving.replay import Lane, Replay, ReplayMove

from .fake_server import LENGTH, events, fake_server, id_of, tokens_of

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "needs Playwright: pip install playwright" if importlib.util.find_spec("playwright") is None else (
    "needs Debian's chromium: apt-get install chromium" if BROWSER is None else ""
)  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running():
    with fake_server() as server:
        yield server


@pytest.fixture
def server(running):
    running.requests.clear()
    return running


@pytest.fixture
def open_page(browser):
    """Open an address; at its end the test fails if a script raised an error."""
    contexts, errors = [], []

    def call(address, viewport=DESKTOP, **options):
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        return page

    yield call
    for context in contexts:
        context.close()
    assert not errors


def raced(page):
    """Run the race and wait for its end."""
    page.get_by_role("button", name="Run").click()
    page.get_by_role("button", name="Run").wait_for()
    page.wait_for_function("document.querySelector('.time b')?.textContent !== undefined")
    return page


def show_end(page):
    """Show the texts at the end of the race."""
    page.locator("body").press("End")


def lane(page, role):
    return page.locator(".lane").filter(has=page.locator("h2", has_text=re.compile(role, re.I)))


def num_masks(page):
    return page.locator(".token.masked").count()


def sampled(**request):
    """The finished text of a request to ``fake_server``."""
    return list(events(request))[-1][1]["text"]


def test_the_page_begins_with_a_race_of_all_networks(server, open_page):
    page = open_page(server.address)
    shown = page.locator(".setting")
    shown.first.wait_for()
    assert shown.count() == 3
    page.get_by_label("Prompt").fill("The minister")
    raced(page)
    assert [(request["role"], request.get("nfe")) for request in server.requests] == [
        ("student", 4), ("teacher", LENGTH), ("autoregressive", None),
    ]  # fmt: skip
    assert {request["prompt"] for request in server.requests} == {"The minister"}
    show_end(page)
    assert num_masks(page) == 0
    for request in server.requests:
        text = lane(page, request["role"]).locator(".text").text_content()
        assert text == sampled(**request)
    figures = lane(page, "autoregressive").locator("dd").all_text_contents()
    assert figures == ["22", "88 ms", "250"]


def test_a_prompt_that_is_typed_before_the_networks_are_known_is_kept(server, open_page):
    page = open_page("about:blank")

    def type_before_the_answer(route):
        page.get_by_label("Prompt").fill("The minister")
        page.get_by_label("Seed").fill("5")
        route.continue_()

    page.route("**/v1/models", type_before_the_answer)
    page.goto(server.address)
    raced(page)
    assert {(request["prompt"], request["seed"]) for request in server.requests} == {("The minister", 5)}


def test_the_clock_goes_back_and_forth(server, open_page):
    page = raced(open_page(server.address))
    page.locator("body").press("Home")
    assert num_masks(page) == 3 * LENGTH
    times = []
    for _ in range(3):
        page.locator("body").press("ArrowRight")
        times.append(page.locator(".time b").text_content())
    assert times == ["4.0 ms", "8.0 ms", "12 ms"]  # moves of the autoregressive network
    page.locator("body").press("ArrowRight")
    assert page.locator(".time b").text_content() == "13 ms"  # 12.5 ms: the first move of student and teacher
    assert lane(page, "student").locator(".token[data-move='1']").count() == LENGTH // 4
    assert num_masks(page) == 3 * LENGTH - 3 - LENGTH // 4 - 1
    page.locator("body").press("ArrowLeft")
    assert page.locator(".time b").text_content() == "12 ms"
    assert num_masks(page) == 3 * LENGTH - 3
    page.locator(".scrub").evaluate("slider => { slider.value = 50; slider.dispatchEvent(new Event('input')); }")
    assert lane(page, "student").locator(".masked").count() == 0
    assert page.locator(".time b").text_content() == "50 ms"


def test_playing_reaches_the_end_and_can_be_paused(server, open_page):
    page = raced(open_page(server.address))
    page.get_by_label("Speed").select_option("1")
    page.get_by_role("button", name="Play again").wait_for(timeout=5000)
    assert num_masks(page) == 0
    page.get_by_label("Speed").select_option("0.01")
    page.get_by_role("button", name="Play again").click()
    button = page.get_by_role("button", name="Pause")
    button.wait_for()
    page.evaluate("icon = document.querySelector('button[aria-label=Pause]').firstChild")
    page.wait_for_timeout(300)
    assert page.evaluate("icon.isConnected")  # a click can be lost if the icon is replaced between press and release
    button.click()
    page.get_by_role("button", name="Play", exact=True).wait_for()
    paused = page.locator(".time b").text_content()
    page.wait_for_timeout(200)
    assert page.locator(".time b").text_content() == paused
    assert num_masks(page) > 0


def test_controls_reach_the_server(server, open_page):
    page = open_page(server.address)
    row = page.locator(".setting").first
    row.get_by_label("Sampler").select_option("guided")
    row.get_by_label("Moves").fill("6")
    row.get_by_label("Guidance").fill("12.5")
    row.get_by_label("Temperature").fill("0.8")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Tokens").fill("10")
    raced(page)
    request = server.requests[0]
    assert request == {
        "model": "tiny", "role": "student", "sampler": "guided", "nfe": 6, "temperature": 0.8, "seed": 7, "length": 10,
        "guidance": {"guidance_scale": 12.5}, "stream": True,
    }  # fmt: skip
    assert [request["seed"] for request in server.requests] == [7, 7, 7]
    assert "guidance" not in server.requests[1]
    assert "6 moves, guided, guidance 12.5, temperature 0.8" in lane(page, "student").locator("h2").text_content()


def test_two_settings_of_one_network_are_compared(server, open_page):
    page = open_page(server.address)
    for _ in range(2):
        page.get_by_role("button", name="Remove this network").last.click()
    assert page.get_by_role("button", name="Remove this network").count() == 0
    page.get_by_role("button", name="Add a network").click()
    page.locator(".setting").last.get_by_label("Moves").fill("8")
    raced(page)
    assert [(request["role"], request["nfe"]) for request in server.requests] == [("student", 4), ("student", 8)]
    assert page.locator(".lane").count() == 2


def test_selected_tokens_are_sampled_again(server, open_page):
    page = open_page(server.address)
    page.get_by_label("Prompt").fill("The minister")
    raced(page)
    show_end(page)
    text = lane(page, "student").locator(".text")
    before = lane(page, "student").locator(".token").all_text_contents()
    shown = tokens_of(text.text_content())
    text.locator(".token").nth(5).click()
    text.locator(".token").nth(7).click(modifiers=["Shift"])
    assert "3 tokens selected" in lane(page, "student").text_content()
    server.requests.clear()
    page.get_by_role("button", name="Sample again").click()
    page.get_by_role("button", name="Run").wait_for()
    (request,) = server.requests
    kept = [None if position in (5, 6, 7) else id_of(token) for position, token in enumerate(shown)]
    assert request["token_ids"] == kept  # the tokens around the selection do not change
    assert (request["seed"], request["length"], "prompt" in request) == (1, LENGTH, False)
    show_end(page)
    after = lane(page, "student").locator(".token").all_text_contents()
    assert {position for position, pair in enumerate(zip(before, after, strict=True)) if len({*pair}) > 1} == {5, 6, 7}
    assert lane(page, "student").locator(".token[data-move]").count() == 3
    assert page.locator(".lane").count() == 3


def test_tokens_are_selected_by_keys_and_by_a_range(server, open_page):
    page = raced(open_page(server.address))
    show_end(page)
    text = lane(page, "student").locator(".text")
    text.focus()
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowRight"):
        page.keyboard.press(key)
    assert "2 tokens selected" in lane(page, "student").text_content()
    page.keyboard.press("Escape")
    assert not lane(page, "student").locator(".again").is_visible()
    text.evaluate("""text => {
        const tokens = text.querySelectorAll('.token');
        getSelection().setBaseAndExtent(tokens[3].firstChild, 1, tokens[6].firstChild, 1);
    }""")
    lane(page, "student").get_by_text("4 tokens selected").wait_for()
    server.requests.clear()
    text.focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Run").wait_for()
    assert server.requests[0]["token_ids"].count(None) == 4
    assert lane(page, "autoregressive").locator(".again").count() == 0  # an autoregressive network cannot infill


def test_a_link_holds_the_settings(server, open_page):
    first = open_page(server.address)
    first.get_by_label("Prompt").fill("A prompt & more, 100%")
    first.locator(".setting").nth(1).get_by_label("Moves").fill("5")
    first.locator(".setting").nth(1).get_by_label("Temperature").fill("0.7")
    first.locator(".setting").first.get_by_label("Sampler").select_option("guided")
    first.locator(".setting").first.get_by_label("Guidance").fill("2.5")
    first.get_by_label("Seed").fill("3")
    raced(first)
    requests = list(server.requests)
    assert requests[0]["guidance"] == {"guidance_scale": 2.5}
    server.requests.clear()
    second = open_page(first.url)
    second.get_by_role("button", name="Play again").or_(second.get_by_role("button", name="Pause")).wait_for()
    second.get_by_role("button", name="Run").wait_for()
    assert server.requests == requests
    assert second.get_by_label("Prompt").input_value() == "A prompt & more, 100%"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("too long", "student: a prompt has at most 24 tokens here; this one has 30"),
        ("breaks", "student: logits are not finite"),
    ],
)
def test_an_error_is_one_line(server, open_page, prompt, message):
    page = open_page(server.address)
    page.get_by_label("Prompt").fill(prompt)
    raced(page)
    page.get_by_role("alert").get_by_text(message).wait_for()
    assert page.get_by_role("alert").text_content() == message
    page.get_by_label("Prompt").fill("well")
    raced(page)
    assert page.get_by_role("alert").text_content() == ""
    assert page.locator(".lane").count() == 3


def test_the_page_sends_the_access_token(open_page):
    with fake_server(token="secret") as server:
        page = open_page(server.address)
        field = page.get_by_label("Access token")
        page.get_by_role("alert").get_by_text("this server needs its access token: enter it above").wait_for()
        field.fill("wrong")
        field.press("Enter")
        page.get_by_role("alert").get_by_text("the access token is wrong: enter another one above").wait_for()
        field.fill("5€")
        field.press("Enter")
        page.get_by_role("alert").get_by_text("an access token has ASCII characters only").wait_for()
        assert not page.get_by_role("button", name="Run").is_enabled()
        field.fill("secret")
        field.press("Enter")
        page.locator(".setting").first.wait_for()
        raced(page)
        assert len(server.requests) == 3
        assert "secret" not in page.url
        server.token = "other"
        page.get_by_role("button", name="Run").click()
        page.get_by_role("alert").get_by_text("student: the access token is wrong").wait_for()


def test_a_server_without_token_asks_for_none(server, open_page):
    page = open_page(server.address)
    page.locator(".setting").first.wait_for()
    assert not page.get_by_label("Access token").is_visible()


def test_a_stopped_server_is_reported(open_page):
    with fake_server() as server:
        page = open_page(server.address)
        page.locator(".setting").first.wait_for()
    raced(page)
    assert "the server does not answer" in page.get_by_role("alert").text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_width_of_a_phone_in_both_colour_schemes(server, open_page, scheme):
    page = raced(open_page(server.address, PHONE, color_scheme=scheme, has_touch=True))
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    box = page.get_by_role("button", name=re.compile("Play|Pause")).bounding_box()
    assert min(box["width"], box["height"]) >= 44
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name={"light": "Dark", "dark": "Light"}[scheme]).click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background


def test_with_reduced_motion_the_finished_texts_are_shown_first(server, open_page):
    page = raced(open_page(server.address, reduced_motion="reduce"))
    assert num_masks(page) == 0
    assert page.get_by_role("button", name="Play again").is_visible()


def test_a_screen_reader_hears_the_state_and_no_masked_text(server, open_page):
    page = raced(open_page(server.address, reduced_motion="reduce"))
    assert (
        "Student, 4 moves, ancestral: 24 of 24 tokens after 4 passes and 50 ms"
        in page.get_by_role("status").text_content()
    )
    page.locator("body").press("Home")
    assert "0 of 24 tokens after 0 passes" in page.get_by_role("status").text_content()
    assert page.locator(".masked:not([aria-hidden])").count() == 0
    unnamed = "[...document.querySelectorAll('button, input, select, textarea')].filter(e => !e.hidden && " \
        "!e.textContent.trim() && !e.labels?.length && !e.getAttribute('aria-label')).length"  # fmt: skip
    assert page.evaluate(unnamed) == 0


def test_the_file_of_a_replay_plays_without_a_server(open_page, tmp_path):
    moves = tuple(ReplayMove(10.0 * n, 1 - n / 3, n, 0, (n,), (f" w{n}",)) for n in (1, 2, 3))
    settings = {"model": "m", "role": "student", "sampler": "ancestral", "nfe": 3}
    record = Replay(
        "Begin <b>", (Lane(settings, 0, ("Begin <b>", None, None, None), moves, "Begin <b> w1 w2 w3"),), "x"
    )
    file = tmp_path / "replay.html"
    file.write_text(replay_page(record))
    page = open_page(file.as_uri(), offline=True, reduced_motion="reduce")
    assert page.locator(".text").text_content() == "Begin <b> w1 w2 w3"
    assert page.locator("h1").text_content() == "Begin <b>"
    page.locator("body").press("Home")
    page.locator("body").press("ArrowRight")
    assert num_masks(page) == 2
    assert page.locator("dd").all_text_contents() == ["1", "10 ms", "100"]
