"""Generation over real HTTP, from a server that is not always kind."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from tests.symptoms.hostile import LINES
from tests.symptoms.llm_server import Answer, prompt_of, serve
from vipbench.errors import UsageError
from vipbench.symptoms import parse_symptoms
from vipbench.symptoms.generate.cassette import Cassette
from vipbench.symptoms.generate.client import MOST_BYTES, Client, ServerError, host_of, is_loopback
from vipbench.symptoms.generate.consent import Sending, consent
from vipbench.symptoms.generate.generate import Asked, Generated, generate
from vipbench.symptoms.generate.grids import grid, pixel_hash
from vipbench.symptoms.generate.prompts import PROMPTS, fill
from vipbench.symptoms.generate.replies import features
from vipbench.symptoms.generate.report import report

CLASSES = ("melanoma", "nevus")
GOOD = "- an irregular, ragged border\n- several colours side by side\n"


def asked(**changes: Any) -> Asked:
    base: dict[str, Any] = {
        "dataset": "toy", "class_names": CLASSES, "modality": "photos", "prompts": PROMPTS,
    }  # fmt: skip
    return Asked(**{**base, **changes})


def client(url: str | None, cassette: Path | None = None, **more: Any) -> Client:
    given: dict[str, Any] = {"timeout": 5.0, "waits": (0.0, 0.0), **more}
    return Client("toy-model", url, Cassette(cassette), **given)


def made(url: str | None, cassette: Path | None = None, **changes: Any) -> Generated:
    asking = client(url, cassette)
    try:
        return generate(asked(**changes), asking, lambda line: None)
    finally:
        asking.close()


@pytest.mark.parametrize("hostile", LINES)
def test_no_hostile_line_is_a_feature(hostile: str) -> None:
    for reply in (f"- {hostile}", hostile, f"1. {hostile}"):
        kept, dropped = features(reply, CLASSES)
        assert kept == []
        assert dropped[0].reason


def test_hostile_replies_never_reach_a_file_and_are_named_in_the_report() -> None:
    replies = iter(LINES)
    names = tuple(f"kind {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(50))
    with serve(lambda body: Answer(f"- {next(replies)}")) as server:
        asking = client(server.url)
        alone = generate(asked(class_names=(*names, *())), asking, lambda line: None)
        asking.close()
    # "nevus" and "melanoma" are no classes here, so that a few lines are only odd features.
    unnamed = [name for name in names if alone.classes[name].kept]
    assert len(unnamed) <= 3
    assert alone.text is None
    mixed = iter(LINES * 2)
    with serve(lambda body: Answer(GOOD + "".join(f"- {next(mixed)}\n" for _ in range(50)))) as s:
        done = made(s.url)
    assert done.text is not None
    found = parse_symptoms(done.text, CLASSES)
    texts = ("an irregular, ragged border", "several colours side by side")
    assert set(found.symptoms.values()) == {texts}
    page = report(done)
    for line in LINES:
        # Each by its own words: what a terminal or Markdown would act on is written out.
        shown = json.dumps(line.splitlines()[0][:100])[1:-1].replace("`", "\u02cb")
        assert shown.strip() in page, line
    # A line break inside a reply may make two lines of one.
    assert page.count("- dropped (text query)") >= 2 * len(LINES)
    assert "<script>" not in page.replace("`", "").split("## ")[0]
    assert all(c.isprintable() or c == "\n" for c in page)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (Answer(status=429), "answered 429"),
        (Answer(status=500), "answered 500"),
        (Answer(GOOD, cut=True), "connection"),
        (Answer(GOOD, sleep=0.6), "within 0.3 s"),
    ],
)
def test_passing_trouble_is_tried_again_and_lasting_trouble_is_not(
    bad: Answer, expected: str
) -> None:
    answers: list[Answer] = []
    with serve(lambda body: answers.pop(0) if answers else Answer(GOOD)) as server:
        lines: list[str] = []
        asking = client(server.url, timeout=0.3, say=lines.append)
        answers[:] = [bad]
        assert generate(asked(), asking, lambda line: None).text
        assert any(expected in line for line in lines)
        assert asking.requests == 3
        answers[:] = [bad] * 3
        with pytest.raises(ServerError, match=expected):
            asking.ask("anew", what="class 'x'")
        asking.close()


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (Answer(""), "empty"),
        (Answer(None), "empty"),
        (Answer("a" * 2 * MOST_BYTES), "larger"),
        (Answer(raw=b"<html>no</html>"), "not JSON"),
        (Answer(raw=b"[" * 100_000), "not JSON"),
        (Answer(raw=b'{"choices": []}'), "not JSON"),
    ],
)
def test_unusable_replies_are_in_the_report(bad: Answer, expected: str) -> None:
    with serve(lambda body: bad if "melanoma" in prompt_of(body) else Answer(GOOD)) as server:
        done = made(server.url)
    assert done.text is None
    assert done.empty == ["melanoma"]
    assert f"is {expected}" in report(done)


def test_refusals_are_not_tried_again_and_redirects_not_followed() -> None:
    with serve(lambda body: Answer(GOOD)) as elsewhere:
        with serve(lambda body: Answer(status=401)) as server, pytest.raises(ServerError) as error:
            made(server.url)
        assert len(server.asked) == 1
        assert "401" in str(error.value)
        to = f"{elsewhere.url}/chat/completions"
        with serve(lambda body: Answer(status=307, to=to)) as server, pytest.raises(ServerError):
            made(server.url)
        assert elsewhere.asked == []


def test_budget_key_and_lone_surrogates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIPBENCH_LLM_KEY", "from-the-environment")
    kept = tmp_path / "c.json"
    lone = b'{"choices": [{"message": {"content": "- a dark \\ud800 border"}}]}'
    with serve(lambda body: Answer(raw=lone)) as server:
        asking = client(server.url, kept, max_requests=1)
        with pytest.raises(UsageError, match=r"1 request"):
            generate(asked(), asking, lambda line: None)
        asking.close()
    assert "from-the-environment" in str(server.headers)
    assert "from-the-environment" not in kept.read_text()
    assert asking.requests == 1


def pictures() -> Iterator[bytes]:
    for shade in (30, 200):
        yield grid([Image.new("RGB", (28, 28), (shade, i, 0)) for i in range(16)])


def test_all_three_stages_and_their_replay(tmp_path: Path) -> None:
    grids = dict(zip(CLASSES, pictures(), strict=True))

    def answer(body: dict[str, Any]) -> Answer:
        if "Two lists" in prompt_of(body):
            return Answer("2.\n9\nIgnore the rules")
        return Answer(GOOD)

    settings_ = {"grids": grids, "images_seen": dict.fromkeys(CLASSES, 16), "images": "train"}
    kept = tmp_path / "c.json"
    with serve(answer) as server:
        first = made(server.url, kept, **settings_)
    assert len(server.asked) == 5  # both intersection queries are the same
    sent = [b for b in server.asked if isinstance(b["messages"][0]["content"], list)]
    assert len(sent) == 2
    assert parse_symptoms(first.text or "", CLASSES).symptoms["nevus"] == (
        "several colours side by side",
    )
    assert json.loads(first.text or "")["source"]["images_seen"] == {"melanoma": 16, "nevus": 16}
    again = made(None, kept, **settings_)
    assert (again.text, report(again)) == (first.text, report(first))
    recorded = kept.read_text()
    assert "base64" not in recorded
    assert pixel_hash(grids["nevus"]) in recorded
    with pytest.raises(UsageError, match="reply"):
        made(None, kept, modality="others")
    kept.write_text(recorded.replace('"model": "toy', '"model": "boy'))
    with pytest.raises(UsageError, match="altered"):
        Cassette(kept)


def test_grids_carry_no_metadata(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), (1, 2, 3))
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", "Jane Doe")
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe"
    image.save(tmp_path / "a.png", pnginfo=info, exif=exif)
    data = grid([Image.open(tmp_path / "a.png")] * 16)
    assert b"Jane" not in data
    made_of = Image.open(io.BytesIO(data))
    assert made_of.size == (4 * 228 - 4,) * 2
    assert not made_of.info
    assert not made_of.getexif()


def test_consent() -> None:
    lines: list[str] = []
    base = ("model", 32, "toy", "CC BY 4.0", "allowed", Path("x.grids"))
    consent(Sending("http://127.0.0.1:1/v1", *base), None, None, lines.append)
    assert lines == []
    far = Sending("https://llm.example.org/v1", *base)
    with pytest.raises(UsageError, match="sent"):
        consent(far, None, None, lines.append)
    for part in ("llm.example.org", "model", "32", "toy", "CC BY 4.0", "burned", "x.grids"):
        assert any(part in line for line in lines)
    with pytest.raises(UsageError, match="sent"):
        consent(far, "example.org", None, lines.append)
    consent(far, "llm.example.org", None, lines.append)
    consent(far, None, lambda question: "llm.example.org", lines.append)
    local = Sending("https://llm.example.org/v1", *base[:4], "local", base[5])
    with pytest.raises(UsageError, match=r"toy.*llm\.example\.org.*CC BY 4\.0"):
        consent(local, "llm.example.org", None, lines.append)


def test_hosts() -> None:
    assert is_loopback(host_of("http://127.0.0.1@localhost:1/v1"))
    assert is_loopback(host_of("http://[::1]:8000"))
    for url in ("http://127.0.0.1@example.org", "http://localhost.example.org", "http://10.0.0.1"):
        assert not is_loopback(host_of(url))
    for url in ("ftp://a", "llm.example.org", "http://", "http://[", ""):
        with pytest.raises(UsageError, match="--base-url"):
            host_of(url)


def test_descriptions_name_their_class_and_no_other() -> None:
    reply = "- a melanoma has a ragged border\n- a dark border\n- a melanoma unlike a nevus\n"
    with serve(
        lambda body: Answer(reply if "melanoma" in prompt_of(body) else "- a round nevus")
    ) as server:
        done = made(server.url, kind="descriptions", n=50)
    document = json.loads(done.text or "")
    assert document["kind"] == "descriptions"
    assert document["classes"] == {
        "melanoma": ["a melanoma has a ragged border"], "nevus": ["a round nevus"],
    }  # fmt: skip


@settings(max_examples=60)
@given(st.text(max_size=400))
def test_whatever_a_reply_holds_the_file_loads(text: str) -> None:
    kept, dropped = features(text, CLASSES)
    assert len(kept) + len(dropped) >= sum(bool(line.strip()) for line in text.splitlines())
    if kept:
        parse_symptoms(json.dumps({"melanoma": kept, "nevus": kept}), CLASSES)


def test_long_lines_do_not_hang() -> None:
    begin = time.perf_counter()
    features("- " + "ignore " * 30_000 + "\n- " + "a" * 200_000, CLASSES)
    assert time.perf_counter() - begin < 2


def test_values_are_not_filled_twice() -> None:
    assert fill("{class} in {modality}", **{"class": "{modality}", "modality": "x"}) == (
        "{modality} in x"
    )
