"""The scorer function: a user's own, in a child process that must not be able to disturb the run."""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tailrace.errors import TailraceError
from tailrace.evaluation import suite
from tailrace.evaluation.scorers import Scorer, make
from tailrace.evaluation.shapes import Score
from tests.evaluation.scorers.answers import answer, score, value

MODULE = """
import os, signal, subprocess, sys, threading, time

print("imported")
started = []

def same(answer, target, item):
    return answer == target

def told(answer, target, item):
    return {"value": 0.5, "answer": answer.upper(), "explanation": f"{target} {item['unit']}"}

def returns(answer, target, item):
    return eval(answer)

def acts(answer, target, item):
    exec(answer, {"sys": sys, "os": os, "time": time, "signal": signal, "subprocess": subprocess, "item": item})
    return 1

def pid(answer, target, item):
    return {"value": 1, "answer": str(os.getpid())}

def spawns(answer, target, item):
    child = subprocess.Popen(["sleep", "1000"])
    return {"value": 1, "answer": str(child.pid)}

def holds(answer, target, item):
    sys.stdout.flush()
    spawned = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    open(item["file"], "w").write(f"{os.getpid()} {spawned.pid}")
    os.rename(item["file"], item["file"] + ".ready")
    if answer == "busy":
        import re
        re.match("(a+)+$", "a" * 60 + "b")
    time.sleep(1000)

async def coroutine(answer, target, item):
    return 1

def generator(answer, target, item):
    yield 1

def two(answer, target):
    return 1

any_arguments = lambda *arguments: 1

class Callable:
    def __call__(self, answer, target, item):
        return 1

instance = Callable()
number = 5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


@pytest.fixture
def made(folder: Path) -> Iterator[Callable[..., Scorer]]:
    """``made("same")``: the scorer of one of the module's functions, closed in the end."""
    scorers: list[Scorer] = []

    def make_one(name: str, timeout: float = 60.0) -> Scorer:
        scorers.append(make(suite.Function(function=f"mine:{name}", timeout=timeout), folder))
        return scorers[-1]

    yield make_one
    for scorer in scorers:
        scorer.close()


@pytest.fixture(scope="module")
def returning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scorer]:
    """A function that returns what the answer's text says: one process for many tests."""
    folder = tmp_path_factory.mktemp("returning")
    (folder / "mine.py").write_text(MODULE)
    scorer = make(suite.Function(function="mine:returns"), folder)
    yield scorer
    scorer.close()


def one(scorer: Scorer, text: str, *targets: str, **columns: Any) -> Score:
    (found,) = scorer.score([answer(text, *targets, **columns)])
    return found


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_a_function_is_called_with_answer_target_and_item(made: Callable[..., Scorer]) -> None:
    assert one(made("same"), "x", "x") == Score(1.0)
    assert one(made("same"), "x", "y") == Score(0.0)
    assert one(made("told"), "five", "5", unit="km") == Score(0.5, answer="FIVE", explanation="5 km")
    assert one(made("told"), "five", unit="km").explanation == "None km"
    assert one(made("told"), "five", "5", "6", unit="km").explanation == "['5', '6'] km"


def test_scores_are_in_the_order_of_the_answers(made: Callable[..., Scorer]) -> None:
    answers = [answer(str(number), "7") for number in range(50)]
    assert [found.value for found in made("same").score(answers)] == [
        float(number == 7) for number in range(50)
    ]


def test_texts_of_any_kind_and_length_arrive_whole(made: Callable[..., Scorer]) -> None:
    scorer = made("same")
    for text in ("", "\n", "é\u2028\x00\t😀", '"}\n{', "x" * 1_000_000):
        assert one(scorer, text, text).value == 1
        assert one(scorer, text, text + "!").value == 0


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("True", 1.0),
        ("False", 0.0),
        ("1", 1.0),
        ("0.25", 0.25),
        ("0", 0.0),
        ("{'value': True}", 1.0),
        ("{'value': 0.5, 'answer': None}", 0.5),
        ("__import__('numpy').float32(0.5)", 0.5),
        ("__import__('numpy').bool_(1)", 1.0),
    ],
)
def test_values_that_a_function_may_return(returning: Scorer, returned: str, expected: float) -> None:
    assert one(returning, returned).value == expected


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        ("None", "returned None; it must be a bool, a number from 0 to 1, or a dict with 'value'"),
        ("'yes'", "returned 'yes'; it must be"),
        ("[1]", "returned [1]; it must be"),
        ("1j", "returned 1j; it must be"),
        ("2", "returned 2, which is not from 0 to 1"),
        ("-0.1", "returned -0.1, which is not from 0 to 1"),
        ("float('nan')", "returned nan, which is not from 0 to 1"),
        ("float('inf')", "returned inf, which is not from 0 to 1"),
        ("10**400", "returned 1000"),
        ("{}", "returned a dict without 'value'"),
        ("{'value': 1, 'reason': 'x'}", "returned a dict with 'reason'"),
        ("{'value': None}", "returned None; it must be"),
        ("1/0", "ZeroDivisionError: division by zero"),
        ("type('Odd', (), {'__repr__': lambda self: 1 / 0})()", "returned a Odd; it must be"),
    ],
)
def test_what_is_no_score_is_an_error_of_that_answer_alone(
    returning: Scorer, returned: str, error: str
) -> None:
    found = one(returning, returned)
    assert found.value is None
    assert (found.error or "").startswith(error)
    assert one(returning, "1").value == 1


def test_an_exception_is_told_with_its_place(made: Callable[..., Scorer]) -> None:
    assert one(made("told"), "five", "5").error == "KeyError: 'unit' (mine.py:11)"


@pytest.mark.parametrize(
    "act",
    [
        "print('x' * 100000)",
        'sys.stdout.write(\'{"id": 1, "value": 0}\\n\')',
        'os.write(1, b\'{"id": 1, "value": 0}\\n\')',
        "sys.stdin.read()",
        "os.system('echo {}; cat')",
        "subprocess.run(['cat'])",
        "print('\\ud800')",
        "sys.stdout.close()",
        "sys.stdin.close(); sys.stderr.close()",
        "os.fork() or sys.exit()",
        "os.fork() or os._exit(0)",
        "os.fork()",
        "os.chdir('/')",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
    ],
)
def test_what_a_function_does_disturbs_no_score(made: Callable[..., Scorer], act: str) -> None:
    scorer = made("acts")
    assert one(scorer, act) == Score(1.0)
    assert one(scorer, "pass") == Score(1.0)


def test_what_a_function_prints_goes_to_stderr(
    made: Callable[..., Scorer], capfd: pytest.CaptureFixture[str]
) -> None:
    one(made("acts"), "print('hello from the function')")
    printed = capfd.readouterr()
    assert "hello from the function" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("act", "error"),
    [
        ("raise ValueError('bad\\nthing')", "ValueError: bad thing"),
        ("sys.exit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f(): f()\nf()", "RecursionError: "),
        ("os._exit(7)", "the function: its process ended with status 7"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the function: its process was ended by signal 9 (Killed)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the function: its process was ended by signal 11"),
        ("os.fork() and os._exit(7) or time.sleep(1000)", "the function: its process ended with status 7"),
        ("subprocess.Popen(['sleep', '1000']); os._exit(7)", "the function: its process ended with status 7"),
    ],
)
def test_a_function_that_fails_or_dies_is_an_error_and_the_next_answer_is_scored(
    made: Callable[..., Scorer], act: str, error: str
) -> None:
    scorer = made("acts")
    first, failed, last = scorer.score([answer("pass"), answer(act), answer("pass")])
    assert (first.value, failed.value, last.value) == (1, None, 1)
    assert (failed.error or "").startswith(error)


@pytest.mark.parametrize(
    "act", ["time.sleep(1000)", "while True: pass", "os.kill(os.getpid(), signal.SIGSTOP)"]
)
def test_a_function_that_hangs_is_ended_with_its_process(made: Callable[..., Scorer], act: str) -> None:
    scorer = made("acts", timeout=0.4)
    hung = one(scorer, act)
    assert (hung.value, hung.error) == (None, "the function took more than 0.4 s")


def test_after_a_hang_a_new_process_goes_on(made: Callable[..., Scorer], folder: Path) -> None:
    scorer = made("holds", timeout=1.0)
    assert one(scorer, "busy", file=str(folder / "pids")).error == "the function took more than 1 s"
    own, spawned = map(int, (folder / "pids.ready").read_text().split())
    until(lambda: not is_alive(own) and not is_alive(spawned))
    assert one(scorer, "", file=str(folder / "again")).error == "the function took more than 1 s"
    assert int((folder / "again.ready").read_text().split()[0]) != own


def test_one_process_serves_all_answers(made: Callable[..., Scorer]) -> None:
    scorer = made("pid")
    assert len({found.answer for found in scorer.score([answer("")] * 20)}) == 1


def test_closing_ends_the_process_and_what_it_started(made: Callable[..., Scorer]) -> None:
    scorer = made("spawns")
    spawned = int(one(scorer, "").answer or "")
    assert is_alive(spawned)
    scorer.close()
    until(lambda: not is_alive(spawned))
    scorer.close()


def test_a_child_killed_between_calls_is_started_again(made: Callable[..., Scorer]) -> None:
    scorer = made("pid")
    first = int(one(scorer, "").answer or "")
    os.kill(first, signal.SIGKILL)
    second = one(scorer, "")
    assert second.value == 1 or (second.error or "").startswith(
        "the function: its process was ended by signal 9"
    )
    assert one(scorer, "").answer != str(first)


def test_several_threads_may_share_a_scorer(made: Callable[..., Scorer]) -> None:
    scorer = made("same")
    found: dict[int, list[Score]] = {}

    def work(number: int) -> None:
        found[number] = scorer.score([answer(str(number), str(target)) for target in range(10)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert [score.value for score in found[number]] == [float(number == target) for target in range(10)]


@pytest.mark.parametrize("text", ["sleeping", "busy"])
def test_nothing_is_left_of_a_function_whose_parent_is_killed(folder: Path, text: str) -> None:
    """The child sees the end of its stdin; one that holds Python's lock ends itself when its time is over."""
    script = (
        "import sys; from pathlib import Path\n"
        "from tailrace.evaluation import suite\n"
        "from tailrace.evaluation.scorers import make\n"
        "from tailrace.evaluation.shapes import Answer, Item\n"
        "limit = 0.5 if sys.argv[3] == 'busy' else 500\n"
        "scorer = make(suite.Function(function='mine:holds', timeout=limit), Path(sys.argv[1]))\n"
        "if sys.argv[3] == 'busy':\n"
        "    ask = scorer._child._exchange  # the parent itself must not be the one that ends it\n"
        "    scorer._child._exchange = lambda process, id, line, timeout: ask(process, id, line, 500)\n"
        "scorer.score([Answer(Item('q', '', (), {}, {'file': sys.argv[2]}), sys.argv[3], [])])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder), str(folder / "pids"), text],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    ) as parent:
        try:
            until(lambda: (folder / "pids.ready").exists() or parent.poll() is not None)
            own, spawned = map(int, (folder / "pids.ready").read_text().split())
            assert is_alive(own)
        finally:
            parent.kill()
    until(lambda: not is_alive(own))
    if text == "sleeping":
        until(lambda: not is_alive(spawned))
    elif is_alive(spawned):
        os.kill(spawned, signal.SIGKILL)  # what a busy one started outlives it


@pytest.mark.parametrize("name", ["any_arguments", "instance", "same"])
def test_whatever_can_be_called_is_a_function(folder: Path, name: str) -> None:
    (found,) = score(suite.Function(function=f"mine:{name}"), answer("x", "x"), folder=folder)
    assert found.value == 1


@pytest.mark.parametrize(
    ("function", "what"),
    [
        ("absent:f", "ModuleNotFoundError: No module named 'absent'"),
        ("mine:absent", "module 'mine' has no 'absent'"),
        ("mine:number", "'number' is no function"),
        ("mine:two", r"'two' can't be called as two\(answer, target, item\): too many positional arguments"),
        ("mine:coroutine", "'coroutine' must be a plain function"),
        ("mine:generator", "'generator' must be a plain function"),
        ("broken:f", r"SyntaxError: .*"),
        ("raises:f", r"RuntimeError: at import \(raises.py:1\)"),
        ("exits:f", r"SystemExit: 2"),
        ("dies:f", "its process ended with status 9"),
    ],
)
def test_a_function_that_can_not_be_used_is_told_before_anything_is_asked(
    folder: Path, function: str, what: str
) -> None:
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "raises.py").write_text("raise RuntimeError('at import')\n")
    (folder / "exits.py").write_text("import sys; sys.exit(2)\n")
    (folder / "dies.py").write_text("import os; os._exit(9)\n")
    with pytest.raises(TailraceError, match=f"^function: function: {function} can't be used: {what}"):
        make(suite.Function(function=function), folder)


@pytest.mark.parametrize("name", ["schemas", "text", "numbers", "tailrace"])
def test_the_users_own_modules_come_first(tmp_path: Path, name: str) -> None:
    """Also before Tailrace's rooms and the modules beside the child's script."""
    (tmp_path / f"{name}_user.py").write_text(
        f"import sys\nimport {name}\ndef f(answer, target, item):\n    return {name}.OWN\n"
    )
    (tmp_path / f"{name}.py").write_text("OWN = 1\n")
    spec = suite.Function(function=f"{name}_user:f")
    (found,) = score(spec, answer("x"), folder=tmp_path)
    assert found.value == 1


def test_the_current_folder_is_looked_at_after_the_suites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suites, here = tmp_path / "suites", tmp_path / "here"
    for folder, own in ((suites, 1), (here, 0)):
        folder.mkdir()
        (folder / "both.py").write_text(f"def f(answer, target, item): return {own}\n")
    (here / "only.py").write_text("def f(answer, target, item): return 0.5\n")
    monkeypatch.chdir(here)
    assert score(suite.Function(function="both:f"), answer(""), folder=suites)[0].value == 1
    assert score(suite.Function(function="only:f"), answer(""), folder=suites)[0].value == 0.5


def test_the_child_needs_nothing_of_tailrace(folder: Path) -> None:
    (folder / "rooms.py").write_text(
        "import sys\ndef f(answer, target, item):\n"
        "    return {'value': 1, 'answer': ' '.join(m for m in sys.modules if m.startswith(('tailrace', 'schemas')))}\n"
    )
    (found,) = score(suite.Function(function="rooms:f"), answer("x"), folder=folder)
    assert found.answer == ""


def test_columns_that_json_has_no_word_for_arrive_as_texts(folder: Path) -> None:
    (folder / "columns.py").write_text("def f(answer, target, item): return item['day'] == '2024-05-01'\n")
    spec = suite.Function(function="columns:f")
    day = dt.date(2024, 5, 1)
    assert value(suite.Regex(pattern="{{ day }}"), "2024-05-01", day=day) == 1
    (found,) = score(spec, answer("x", day=day), folder=folder)
    assert found.value == 1
    (odd,) = score(spec, answer("x", day=object()), folder=folder)
    assert odd.value is None
    assert odd.error is not None
