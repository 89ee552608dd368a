"""``params.yaml`` mistakes end in one line: key, value, what is allowed, nearest known key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from components.registry import check_file
from components.screen.config import ScreenConfig
from components.settings import ParamsError, load_stage

ROOT = Path(__file__).resolve().parents[2]


def changed(tmp_path: Path, keys: tuple[str, ...], value: object) -> Path:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    block = content
    for key in keys[:-1]:
        block = block[key]
    block[keys[-1]] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_file_in_the_repository_is_valid() -> None:
    check_file(ROOT / "params.yaml")


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("wholebody", "screen", "min_instance"), 3, "did you mean 'min_instances'?"),
        (("wholebody", "screen", "min_instances"), "many", "wholebody.screen.min_instances: 'many' is not allowed"),
        (("wholebody", "screen", "min_instances"), 1, "greater than or equal to 2"),
        (("wholebody", "preprocess", "orientation"), "XYZ", "one of R/L, one of A/P, one of S/I"),
        (("wholebody", "pretrain", "input", "windows"), [[0.0, 40_000.0]], "less than or equal to 32767"),
        (("wholebody", "pretrain", "input", "windows"), [], "should have at least 1 item"),
        (("wholebody", "preprocces"), {}, "did you mean 'preprocess'?"),
        (("wholebodi",), {}, "did you mean 'wholebody'?"),
        (("head", "cohort", "phantom", "fault_shar"), 0.1, "did you mean 'fault_share'?"),
        (("costs", "cpu_hour"), -0.1, "params.yaml: costs.cpu_hour: -0.1 is not allowed: "),
        (("costs", "currency"), "euro", "costs.currency: 'euro' is not allowed"),
        (("costs", "energy", "overhed"), 1.2, "did you mean 'overhead'?"),
        (("lines",), ["wholebody", "head", "costs"], "lines: 'costs' is not allowed"),
        (("shards",), [1, 2], "shards: [1, 2] is not allowed"),
        (("shards",), [False, True], "shards: [false, true] is not allowed"),
        (("shards",), [0.0, 1.0], "shards: [0.0, 1.0] is not allowed"),
        (("lines",), "wholebody", "lines: 'wholebody' is not allowed: a list of names, each once"),
        (("lines",), ["head", "head"], "lines: ['head', 'head'] is not allowed"),
        (
            ("lines",),
            ["head"],
            "wholebody: unknown key; add it to `lines`, or allowed here: lines, shards, tasks",
        ),
        (("lines",), ["wholebody", "Head"], "lines: ['wholebody', 'Head'] is not allowed"),
        (("lines",), ["wholebody", "head", "shards"], "is not allowed: a list of names"),
        (("lines",), ["wholebody", "head", True], "is not allowed: a list of names"),
        (("lines",), ["head", "wholebody", "chest"], "params.yaml: chest: missing; it needs one block per stage"),
        (("lines",), None, "lines: null is not allowed"),
        (
            ("head", "tasks", "findings"),
            {
                "kind": "classify",
                "set": "line",
                "label": "organ",
                "serve": False,
                "specificity": None,
                "few_shot": None,
            },
            "head.tasks.findings: not allowed with head.pretrain.input.sees 'scan': its cases are points",
        ),
        (("head", "evaluate", "random_seeds"), [1, 1], "is not allowed: each once"),
        (("head", "evaluate", "random_seeds"), [1], "should have at least 2 items"),
        (("head", "tasks", "findings", "kind"), "clasify", "findings.kind: 'clasify' is not allowed: one of classify,"),
        (("head", "evaluate", "lidc_nodules"), "0" * 64, "pinned, but no task of head.tasks is of set lidc_nodules"),
        (("tasks", "head-findings"), {"line": "head", "task": "x"}, "; `ctfoundry params --write` puts it right"),
        (("tasks", "head-more"), {"line": "head", "task": "more"}, "tasks: 'head-more' is no task of a line;"),
        (
            ("head", "published", "figures"),
            [{"task": "finding", "figure": "linear_auc", "value": 0.9, "model": "m", "source": "s"}],
            "head.published.figures: task 'finding' is not allowed, by its tasks and the labels: one of burden, ",
        ),
        (("head", "pretrain", "input", "sees"), "crop", "'crop' does not go with objective 'dino'"),
        (("wholebody", "pretrain", "input", "sees"), "scan", "'scan' does not go with objective 'within_volume'"),
        (("head", "cohort", "phantom", "anatomy"), "leg", "'trunk' or 'head'"),
        (("lines",), [], "lines: [] is not allowed"),
        (("head", "reproducible"), None, "head.reproducible: null is not allowed"),
        (("head", "screen", "min_instances"), [None, True], "min_instances: [null, true] is not allowed"),
        (("head", "screen", "min_instances"), 10**300, "00 ... is not allowed: Input should be less than or equal to"),
        (("head", "cohort", "dicomweb", "min_instances"), 10**6, "less than or equal to 100000"),
        (("head", "cohort", "dicomweb", "page"), 10**6, "less than or equal to 100000"),
        (("head", "screen", "min_matrix"), 10**6, "less than or equal to 65535"),
        (("head", "curate", "min_levels"), 10**6, "less than or equal to 65536"),
        (("wholebody", "screen", "kvp"), [140.0, 70.0], "screen.kvp: [140.0, 70.0] is not allowed: the lower first"),
        (("wholebody", "screen", "kvp"), [70.0, float("inf")], "a finite number"),
        (("wholebody", "screen", "body_parts"), [], "at least 1 item"),
        (("head", "curate", "noise_hu"), [200.0, 0.5], "noise_hu: [200.0, 0.5] is not allowed: the lower first"),
        (("head", "cohort", "quality", "file_kb"), [9.0, 1.0], "file_kb: [9.0, 1.0] is not allowed: the lower first"),
        (("head", "cohort", "quality", "file_kb"), [9.0, 9.0], "the lower first, and not equal"),
        (("head", "curate", "body_median_hu"), [40, 40], "the lower first, and not equal"),
        (("head", "curate", "brightest_hu"), [60, 40_000], "less than or equal to 32767"),
        (
            ("head", "curate", "max_extent_mm"),
            80.0,
            "min_extent_mm 90.0 is not allowed with max_extent_mm 80.0",
        ),
        (("head", "preprocess", "clip_hu"), [300, 300], "clip_hu: [300, 300] is not allowed: the lower first"),
        (("head", "preprocess", "clip_hu"), [-1024, 32_768], "less than or equal to 32767"),
        (("wholebody", "pretrain", "objective", "views", "scale"), [1.0, 0.7], "the lower first"),
        (("wholebody", "pretrain", "objective", "views", "smooth_sigma_vox"), [0.25, 1e6], "less than or equal to 64"),
        (("wholebody", "pretrain", "objective", "views", "crops_per_volume"), 10**6, "less than or equal to 1000"),
        (("wholebody", "pretrain", "objective", "hidden"), 10**9, "less than or equal to 262144"),
        (("wholebody", "pretrain", "objective", "temperature"), float("inf"), "a finite number"),
        (("wholebody", "pretrain", "steps"), 10**9, "less than or equal to 999999999"),
        (("head", "pretrain", "objective", "views", "local_size_vox"), [24, 5000, 24], "less than or equal to 512"),
        (("head", "pretrain", "objective", "mae", "decoder_depth"), 10**6, "less than or equal to 128"),
        (("head", "pretrain", "encoder", "depth"), 10**6, "less than or equal to 128"),
        (("head", "pretrain", "encoder", "registers"), 10**6, "less than or equal to 1024"),
        (("head", "cohort", "phantom", "seed"), 2**64, "less than"),
        (("head", "cohort", "idc", "seed"), 2**64, "less than"),
        (("head", "pretrain", "objective", "views", "gamma"), [2.0, 0.5], "the lower first"),
        (("wholebody", "pretrain", "optimiser", "learning_rate"), float("inf"), "a finite number"),
        (("wholebody", "pretrain", "seed"), 2**63, "less than"),
        (("wholebody", "evaluate", "random_seeds"), [2**63], "less than"),
        (("wholebody", "pretrain", "input", "size_vox"), [8, 5000, 32], "less than or equal to 512"),
        (("wholebody", "pretrain", "encoder", "blocks_down"), [1] * 9, "at most 7 items"),
        (
            ("wholebody", "pretrain", "input", "spacing_mm"),
            [1.0, 1.0, 1.0],
            "input.spacing_mm: [1.0, 1.0, 1.0] is not allowed with wholebody.preprocess.spacing_mm [3.0, 1.0, 1.0]",
        ),
        (
            ("wholebody", "pretrain", "input", "orientation"),
            "RAS",
            "is not allowed with wholebody.preprocess.orientation",
        ),
        (("wholebody", "reproducibel"), "machine", "allowed here: reproducible, sets, tasks, cohort"),
        (
            ("wholebody", "pretrain", "encoder", "init_filter"),
            8,
            "pretrain.encoder.init_filter: unknown key (value 8); allowed here: blocks_down, init_filters, kind; did "
            "you mean 'init_filters'?",
        ),
        (("head", "pretrain", "objective", "dino", "centre_momentu"), 0.9, "; did you mean 'centre_momentum'?"),
        (("head", "pretrain", "objective", "views", "shfit"), 0.1, "; did you mean 'shift'?"),
        (
            ("wholebody", "gate", "floors"),
            [{"task": "findings", "figure": "linear_auc", "minimum": 0.5}],
            "wholebody.gate.floors: task 'findings' is not allowed, by its tasks and the labels: one of clusters, "
            "lesions, locate, organs, organs_segmented, retrieve, saliency, stability/organs",
        ),
        (
            ("wholebody", "gate", "floors"),
            [{"task": "lidc_nodules/texture", "figure": "linear_auc", "minimum": 0.5}],
            "task 'lidc_nodules/texture' is not allowed, by its tasks and the labels",
        ),
        (
            ("wholebody", "gate", "floors"),
            [{"task": "stability/volume", "figure": "cosine", "minimum": 0.5}],
            "task 'stability/volume' is not allowed, by its tasks and the labels",
        ),
        (
            ("wholebody", "gate", "champion"),
            [{"task": "organs", "figure": "linear_acu", "tolerance": 0.5}],
            "wholebody.gate.champion: figure 'linear_acu' is not allowed: of organs, linear_auc",
        ),
        (
            ("wholebody", "gate", "better_than_random"),
            [{"task": "stability/organs", "figure": "linear_auc", "minimum_gain": 0.0}],
            "figure 'linear_auc' is not allowed: of stability/organs, identification, cosine",
        ),
        (
            ("wholebody", "gate", "floors"),
            [{"task": "organs", "figure": "linear_auc", "minimun": 0.5, "minimum": 0.5}],
            "gate.floors.0.minimun: unknown key (value 0.5); allowed here: figure, maximum, minimum, task; "
            "did you mean 'minimum'?",
        ),
        (
            ("wholebody", "gate", "floors"),
            [{"task": "locate", "figure": "distance_mm", "minimum": 1.0}],
            "gate.floors: minimum 1.0 is not allowed of locate distance_mm: lower is better, write maximum",
        ),
        (
            ("wholebody", "gate", "floors"),
            [{"task": "locate", "figure": "inside", "maximum": 1.0}],
            "gate.floors: maximum 1.0 is not allowed of locate inside: higher is better, write minimum",
        ),
        (
            ("wholebody", "gate", "floors"),
            [{"task": "locate", "figure": "inside"}],
            "wholebody.gate.floors.0: write minimum, or maximum where lower is better: one of them",
        ),
        (
            ("wholebody", "gate", "subgroup_gaps"),
            [{"task": "orgns", "attribute": "all", "maximum": 0.1}],
            "wholebody.gate.subgroup_gaps: task 'orgns' is not allowed, by its tasks and the labels: one of clusters,",
        ),
        (
            ("wholebody", "gate", "subgroup_gaps"),
            [{"task": "organs", "attribute": "ages", "maximum": 0.1}],
            "subgroup_gaps.0.attribute: 'ages' is not allowed: one of all, sex, age, vendor, kernel, slice_thickness, "
            "contrast, set; did you mean 'age'?",
        ),
        (
            ("wholebody", "gate", "external_falls"),
            [{"task": "organs", "set": "elsewhere", "figure": "linear_auc", "maximum": 0.1}],
            "set 'elsewhere' is not allowed: of wholebody.tasks.organs.external, of which there is none",
        ),
        (
            ("wholebody", "gate", "external_falls"),
            [{"task": "organs", "set": "elsewhere", "figure": "linear_acu", "maximum": 0.1}],
            "wholebody.gate.external_falls: figure 'linear_acu' is not allowed: of organs, linear_auc",
        ),
        (
            ("wholebody", "evaluate", "selection"),
            {"task": "organs", "figure": "linear_auc", "figur": 1},
            "evaluate.selection.figur: unknown key (value 1); allowed here: figure, task; did you mean 'figure'?",
        ),
        (
            ("wholebody", "evaluate", "selection"),
            {"task": "organs", "figure": "linear_auc"},
            "evaluate.selection: not allowed with wholebody.pretrain.candidates 1",
        ),
        (("head", "pretrain", "encoder", "heads"), 7, "head.pretrain.encoder: dim 96 must be divisible by heads 7"),
        (("head", "pretrain", "objective", "mae", "mask_ratio"), 7.0, "head.pretrain.objective.mae.mask_ratio: 7.0 is"),
        (
            ("wholebody", "tasks", "organs", "label"),
            "organs",
            "wholebody.tasks.organs.label: 'organs' is not allowed: of set line, organ, lesion, finding; did you mean "
            "'organ'?",
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, keys: tuple[str, ...], value: object, said: str) -> None:
    with pytest.raises(ParamsError) as caught:
        check_file(changed(tmp_path, keys, value))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_mistake_that_sets_take_over_is_told_once_and_their_own_each(tmp_path: Path) -> None:
    path = changed(tmp_path, ("head", "cohort", "dicomweb", "page"), 1_000_000)
    content = yaml.safe_load(path.read_text())
    for name in ("elsewhere", "followed"):
        content["head"]["sets"][name]["scans"]["phantom"]["seed"] = -1
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError) as caught:
        check_file(path)
    told = [line.split(": ")[1] for line in str(caught.value).splitlines()]
    own = [f"head.sets.{name}.scans.phantom.seed" for name in ("elsewhere", "followed")]
    assert sorted(told) == ["head.cohort.dicomweb.page", *own]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = changed(tmp_path, ("wholebody", "screen", "min_instances"), "many")
    content = yaml.safe_load(path.read_text())
    content["head"]["curate"]["no_such"] = 1
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError) as caught:
        check_file(path)
    assert len(str(caught.value).splitlines()) == 2


def test_no_mistake_hides_another(tmp_path: Path) -> None:
    path = changed(tmp_path, ("shards",), "four")
    content = yaml.safe_load(path.read_text())
    content["head"]["pretrain"]["input"]["orientation"] = "SPL"
    content["wholebody"]["screen"]["min_instances"] = "many"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError) as caught:
        check_file(path)
    told = str(caught.value).splitlines()
    assert len(told) == 3
    for said in ("shards: 'four'", "screen.min_instances: 'many'", "head.pretrain.input.orientation: 'SPL'"):
        assert any(said in line for line in told)


def test_configs_are_frozen(tmp_path: Path) -> None:
    config = load_stage(ScreenConfig, "wholebody", "screen", ROOT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        config.min_instances = 3  # type: ignore[misc]


def test_a_gate_on_what_the_scans_have_no_labels_for_is_told(tmp_path: Path) -> None:
    with pytest.raises(ParamsError) as caught:
        check_file(changed(tmp_path, ("head", "cohort", "phantom", "anatomy"), "trunk"))
    told = str(caught.value).splitlines()
    assert [line.partition(": task")[0] for line in told] == [
        f"params.yaml: head.gate.{key}" for key in ("better_than_random", "floors", "champion")
    ]


def test_a_selection_is_of_a_task_with_classes(tmp_path: Path) -> None:
    path = changed(tmp_path, ("wholebody", "pretrain", "candidates"), 3)
    content = yaml.safe_load(path.read_text())
    for task, allowed in (("organs", True), ("lesions", True), ("stability/organs", False), ("lidc_nodules", False)):
        content["wholebody"]["evaluate"]["selection"] = {"task": task, "figure": "linear_auc"}
        path.write_text(yaml.safe_dump(content))
        if allowed:
            check_file(path)
            continue
        with pytest.raises(
            ParamsError, match=r"evaluate.selection: task '.*' is not allowed, .* one of lesions, organs$"
        ):
            check_file(path)


def test_gates_on_nodules_want_them_pinned_or_to_come(tmp_path: Path) -> None:
    floor = {"task": "lidc_nodules/texture", "figure": "retrieval_p5", "minimum": 0.5}
    path = changed(tmp_path, ("wholebody", "gate", "floors"), [floor])
    check_file(path, nodules_to_come=True)
    content = yaml.safe_load(path.read_text())
    content["wholebody"]["evaluate"]["lidc_nodules"] = "0" * 64
    path.write_text(yaml.safe_dump(content))
    check_file(path)
