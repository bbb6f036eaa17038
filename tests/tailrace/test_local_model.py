"""``--local-model``, alone and beside the providers of a file that ``TAILRACE_PROVIDERS`` names."""

from __future__ import annotations

import datetime as dt
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.providers import Providers, Target, load_providers
from tailrace.embedded import providers, toml
from tailrace.embedded.options import StackError
from tests.tailrace.command import run

PORT = 41_000
TAPE = """
[providers.tape]
kind = "replay"
file = "tapes/one.jsonl"
speed = 0
prices = { "*" = { input = 0.5, cached_input = 0.25, output = 2 } }
"""

_PLAIN = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.dates(),
    st.times(),
    st.datetimes(timezones=st.none() | st.just(dt.UTC)),
)
_KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_VALUES = st.recursive(
    _PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """The user's file, in a folder of its own."""
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "models.toml"
    path.write_text(TAPE)
    return path


def loaded(path: Path) -> Providers:
    return load_providers(path.read_text("utf-8"), source=str(path))


class TestToml:
    @given(st.dictionaries(_KEYS, _VALUES, max_size=4))
    def test_what_is_written_is_read_again(self, document: dict[str, Any]) -> None:
        assert tomllib.loads(toml.text(document)) == document


class TestAlone:
    def test_it_is_the_default_and_costs_nothing(self, home: Path) -> None:
        """So "smollm2" is enough to name it."""
        found = loaded(providers.choose(home, None, PORT))
        assert found.resolve("smollm2").targets == found.resolve("local:smollm2").targets
        assert found.providers["local"].base_url == f"http://127.0.0.1:{PORT}/v1"
        price = found.providers["local"].price("smollm2")
        assert price is not None
        assert (price.input, price.output) == (0, 0)

    def test_the_file_is_the_user_s_once_its_first_line_is_gone(self, home: Path) -> None:
        path = providers.choose(home, None, PORT)
        kept = (
            path.read_text()
            .removeprefix(providers.MARK)
            .replace("max_concurrency = 4", "max_concurrency = 3")
        )
        path.write_text(kept)
        assert providers.choose(home, None, PORT + 1).read_text() == kept
        assert providers.choose(home, str(path), PORT + 1).read_text() == kept


class TestBeside:
    """A named file's providers, and the local model as one more."""

    def test_both_are_there(self, home: Path, named: Path) -> None:
        """The file's own default stays, and its paths go on counting from its folder."""
        before = named.read_text()
        merged = providers.choose(home, str(named), PORT)
        found = loaded(merged)
        assert merged.parent == home
        assert named.read_text() == before
        assert found.resolve("anything").provider == "tape"
        assert found.resolve("local:smollm2").targets == (Target("local", "smollm2"),)
        assert found.providers["tape"] == loaded(named).providers["tape"]
        assert found.providers["tape"].file == str(named.parent / "tapes" / "one.jsonl")

    def test_a_relative_name_counts_from_the_caller_s_folder(
        self, home: Path, named: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(named.parent.parent)
        found = loaded(providers.choose(home, "mine/models.toml", PORT))
        assert found.providers["tape"].file == str(named.parent / "tapes" / "one.jsonl")

    def test_its_aliases_may_name_the_local_model(self, home: Path, named: Path) -> None:
        named.write_text(TAPE + '[aliases]\nauto = ["local:smollm2", "tape:any"]\n')
        found = loaded(providers.choose(home, str(named), PORT))
        assert [str(target) for target in found.resolve("auto").targets] == ["local:smollm2", "tape:any"]

    def test_the_curl_line_of_up_names_a_model_that_is_there(self, home: Path, named: Path) -> None:
        """Of the default provider, else an alias, else whichever is listed."""
        assert providers.example_model(providers.choose(home, str(named), PORT)) == "local:smollm2"
        named.write_text(TAPE + '[aliases]\nauto = ["tape:any"]\n')
        assert providers.example_model(providers.choose(home, str(named), PORT)) == "auto"
        named.write_text(TAPE + 'models = ["first"]\n')
        assert providers.example_model(providers.choose(home, str(named), PORT)) == "first"
        assert providers.example_model(providers.choose(home, None, PORT)) == "smollm2"

    def test_it_is_made_anew_at_each_start(self, home: Path, named: Path) -> None:
        providers.choose(home, str(named), PORT)
        assert providers.local_port(home) == PORT
        named.write_text(TAPE.replace("speed = 0", "speed = 2"))
        found = loaded(providers.choose(home, str(named), PORT + 1))
        assert found.providers["tape"].speed == 2
        assert providers.local_port(home) == PORT + 1

    def test_without_the_model_the_file_is_used_as_it_is(self, home: Path, named: Path) -> None:
        providers.choose(home, str(named), PORT)
        assert providers.choose(home, str(named), None) == named
        with pytest.raises(StackError, match="--local-model"):
            providers.choose(home, None, None)

    def test_a_named_file_that_was_written_for_the_model_is_no_other(self, home: Path) -> None:
        own = providers.choose(home, None, PORT)
        again = providers.choose(home, str(own), PORT + 1)
        assert again == own
        assert list(loaded(again).providers) == ["local"]
        assert providers.local_port(home) == PORT + 1

    def test_a_provider_of_that_name_is_refused(self, home: Path, named: Path) -> None:
        named.write_text('[providers.local]\nbase_url = "http://127.0.0.1:8081/v1"\n')
        with pytest.raises(StackError, match="'local' of its own") as caught:
            providers.choose(home, str(named), PORT)
        assert str(named) in str(caught.value)
        assert "--local-model" in str(caught.value)
        assert not list(home.iterdir())

    @pytest.mark.parametrize(
        ("text", "word"),
        [
            ("providers = []", "providers"),
            ("providers = 7", "providers"),
            ("[providers.tape", "TOML"),
            ("x = " + "[" * 5000, "nested"),
            (TAPE.replace("speed = 0", "speed = 'fast'"), "speed"),
            (TAPE + "made = 2026-11-01\n", "made"),
            ("default = 'nobody'\n" + TAPE, "nobody|default"),
            (TAPE + TAPE.replace("tape]", "other]"), "default"),
        ],
    )
    def test_what_is_wrong_is_said_of_the_named_file(
        self, home: Path, named: Path, text: str, word: str
    ) -> None:
        named.write_text(text)
        with pytest.raises(StackError, match=word) as caught:
            providers.choose(home, str(named), PORT)
        assert str(named) in str(caught.value)
        assert not list(home.iterdir())

    def test_a_file_that_is_not_there(self, home: Path, named: Path) -> None:
        with pytest.raises(StackError, match=r"TAILRACE_PROVIDERS names .*gone\.toml"):
            providers.choose(home, str(named.with_name("gone.toml")), PORT)


class TestForeseen:
    """What a stack would know, for estimates before there is one."""

    def test_it_is_what_is_chosen(self, home: Path, named: Path) -> None:
        for file_named in (None, str(named)):
            foreseen = providers.foresee(home, file_named, local_model=True)
            assert not list(home.iterdir())
            chosen = loaded(providers.choose(home, file_named, PORT))
            assert foreseen.resolve("smollm2") == chosen.resolve("smollm2")
            assert list(foreseen.providers) == list(chosen.providers)
            for file in home.iterdir():
                file.unlink()
        assert list(providers.foresee(home, str(named), local_model=False).providers) == ["tape"]

    def test_a_dry_run_tells_the_prices_of_both(self, named: Path, tmp_path: Path) -> None:
        (tmp_path / "in.jsonl").write_text('{"prompt": "Hello"}\n')

        def cost(model: str) -> int:
            done = run(
                *("batch", "run", "in.jsonl", "--model", model, "--dry-run", "--json", "--local-model"),
                settings={"HOME": str(tmp_path / "home"), "PROVIDERS": str(named)},
                cwd=tmp_path,
            )
            assert done.returncode == 0, done.stderr
            return int(json.loads(done.stdout)["cost"])

        assert cost("local:smollm2") == 0
        assert cost("tape:any") > 0


@pytest.mark.timeout(300)
def test_a_command_s_own_stack_has_both(tmp_path: Path, named: Path) -> None:
    """``batch run --local-model`` with a named file: a real model and a recording answer side by side."""
    pytest.importorskip("xllamacpp")
    said = {"choices": [{"index": 0, "delta": {"content": "recorded"}, "finish_reason": "stop"}]}
    (named.parent / "tapes").mkdir()
    (named.parent / "tapes" / "one.jsonl").write_text(json.dumps({"chunks": [[0, said]]}) + "\n")
    rows = [
        {"id": "real", "model": "local:smollm2", "prompt": "What is the capital of France?"},
        {"id": "taped", "model": "tape:any", "prompt": "What is the capital of France?"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(
        *("batch", "run", "in.jsonl", "-o", "out.jsonl", "--local-model", "--param", "max_tokens=4"),
        settings={"HOME": str(tmp_path / "home"), "PROVIDERS": "mine/models.toml"},
        cwd=tmp_path,
        timeout=240,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    texts = {
        line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines
    }
    assert texts["taped"] == "recorded"
    assert texts["real"]
