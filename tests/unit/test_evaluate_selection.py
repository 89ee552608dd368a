"""The encoder that is released is chosen on training cases alone."""

from pathlib import Path

import pandas as pd
import pytest

from components.errors import UserError
from components.evaluate.features import chosen
from components.evaluate.selection import draw_selection, selected_step, selection_figures
from components.models.embed import Embedder, candidate_file, untrained_embedder, write_weights
from components.settings import parse
from components.tasks.annotated import lesions, organs
from components.tasks.config import EvaluateConfig
from components.tasks.features import Volumes
from components.tasks.table import Inputs, task_table, usable
from tests.unit.test_evaluate_stage import tiny_embedder, tiny_line
from tests.unit.test_tasks_cases import EVALUATE

PATCH = (8, 16, 16)


def with_selection(inputs: Inputs, task: str = "organs") -> Inputs:
    config = parse(EvaluateConfig, EVALUATE | {"selection": {"task": task, "figure": "linear_auc"}}, "t")
    return Inputs(inputs.line, inputs.sees, inputs.curated, inputs.annotations, config, inputs.preprocess)


def classified(inputs: Inputs) -> pd.DataFrame:
    """The cases of all tasks that classify."""
    return task_table([usable(of(of.__name__, inputs), 2).table for of in (organs, lesions)])


def choose(inputs: Inputs, folder: Path, out: Path) -> Embedder:
    return chosen(inputs.line, inputs.config, inputs.preprocess, folder, classified(inputs), out)


def blind() -> Embedder:
    """One vector for everything."""
    embedder = tiny_embedder()
    for parameter in embedder.encoder.parameters():
        parameter.zero_()
    return embedder


def test_the_best_on_training_cases_is_chosen_and_test_cases_take_no_part(tmp_path: Path) -> None:
    inputs = with_selection(tiny_line(tmp_path))
    table, volumes = classified(inputs), Volumes(inputs.config, inputs.preprocess, PATCH)
    candidates = {5: blind(), 10: tiny_embedder(), 15: untrained_embedder(tiny_embedder().config, 3)}
    figures = selection_figures(table, candidates, volumes, inputs.config)
    assert figures["step"].tolist() == [5, 10, 15]
    assert figures["figure"][0] == 0.5
    assert figures["figure"].drop(0).min() > 0.5
    assert selected_step(figures) == 5 * (int(figures["figure"].argmax()) + 1)
    test = table["split"] == "test"
    shuffled = table.assign(label=table["label"].where(~test, table["label"].iloc[::-1].to_numpy()))
    assert not shuffled["label"].equals(table["label"])
    pd.testing.assert_frame_equal(selection_figures(shuffled, candidates, volumes, inputs.config), figures)


def test_of_equals_the_first() -> None:
    assert selected_step(pd.DataFrame({"step": [2, 4, 6], "figure": [0.5, 0.75, 0.75]})) == 4


def test_the_stage_takes_the_chosen_one_and_shows_why(tmp_path: Path) -> None:
    inputs, out = with_selection(tiny_line(tmp_path)), tmp_path / "out"
    tiny_embedder().save(tmp_path / "encoder")
    with pytest.raises(UserError, match=r"wholebody.evaluate.selection: the run kept its last encoder only; set "):
        choose(inputs, tmp_path / "encoder", out)
    for step, embedder in ((5, tiny_embedder()), (10, blind())):
        write_weights(tmp_path / "encoder" / candidate_file(step), embedder.encoder.state_dict())
    found = choose(inputs, tmp_path / "encoder", out)
    assert any(parameter.any() for parameter in found.encoder.parameters()), "not the last one, which is blind"
    assert pd.read_csv(out / "selection.csv")["step"].tolist() == [5, 10]
    assert (out / "selection.png").stat().st_size > 5_000
    found.save(tmp_path / "again")
    assert (tmp_path / "again" / "encoder.safetensors").read_bytes() == (
        tmp_path / "encoder" / candidate_file(5)
    ).read_bytes()


def test_a_task_that_cannot_choose_is_named(tmp_path: Path) -> None:
    inputs = with_selection(tiny_line(tmp_path), "lesions")
    for step in (5, 10):
        write_weights(tmp_path / "encoder" / candidate_file(step), tiny_embedder().encoder.state_dict())
    tiny_embedder().save(tmp_path / "encoder")
    with pytest.raises(UserError, match=r"evaluate.selection: task 'lesions' has no two classes of 2 patients in each"):
        choose(inputs, tmp_path / "encoder", tmp_path / "out")


def test_a_choice_is_drawn() -> None:
    inputs = parse(EvaluateConfig, EVALUATE | {"selection": {"task": "organs", "figure": "retrieval_map"}}, "t")
    assert inputs.selection is not None
    figure = draw_selection(pd.DataFrame({"step": [2, 4], "figure": [0.5, 0.75]}), inputs.selection)
    assert figure.axes[0].get_title(loc="left") == "organs, training cases"
