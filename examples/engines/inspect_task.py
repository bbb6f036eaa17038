"""An inspect_ai task, to be run against Tailrace: ``inspect eval examples/engines/inspect_task.py``."""

from __future__ import annotations

from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver, system_message
from scoring import says

QUESTIONS = Path(__file__).with_name("questions.jsonl")


@task
def questions(temperature: float = 0.0) -> Task:
    return Task(
        dataset=json_dataset(
            str(QUESTIONS), FieldSpec(input="question", target="answer", id="id", metadata=["category"])
        ),
        solver=[system_message("Answer in one short sentence."), answer_of_this_epoch()],
        scorer=says_the_answer(),
        config=GenerateConfig(temperature=temperature, max_tokens=64, stop_seqs=["\n"]),
    )


@solver
def answer_of_this_epoch() -> Solver:
    """``generate()``, but epochs are told apart: each has an answer of its own, which a rerun finds again."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        return await generate(state, extra_headers={"x-sample": str(state.epoch)})

    return solve


@scorer(metrics=[accuracy(), stderr()])
def says_the_answer() -> Scorer:
    async def score(state: TaskState, target: Target) -> Score:
        text = state.output.completion
        return Score(value=says(target.text, text), answer=text)

    return score
