"""Great Expectations' own vocabulary, extended by the geometry of CT: registered expectations with a text of their own.

Importing this module imports Great Expectations; :mod:`components.quality.judge` does so where it judges.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pandas as pd
from great_expectations.execution_engine.pandas_execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnMapExpectation, MulticolumnMapExpectation
from great_expectations.expectations.metrics.map_metric_provider.column_condition_partial import (
    column_condition_partial,
)
from great_expectations.expectations.metrics.map_metric_provider.column_map_metric_provider import (
    ColumnMapMetricProvider,
)
from great_expectations.expectations.metrics.map_metric_provider.multicolumn_condition_partial import (
    multicolumn_condition_partial,
)
from great_expectations.expectations.metrics.map_metric_provider.multicolumn_map_metric_provider import (
    MulticolumnMapMetricProvider,
)
from great_expectations.render.components import LegacyRendererType, RenderedStringTemplateContent
from great_expectations.render.renderer.renderer import renderer

from components.quality.geometry import even_stack, orthonormal


class ColumnValuesOrthonormal(ColumnMapMetricProvider):  # type: ignore[misc]
    """Map metric: the value is an orientation of two unit vectors at a right angle."""

    condition_metric_name = "column_values.ct_orthonormal"
    condition_value_keys = ("tolerance",)

    @column_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
    def _pandas(cls, column: pd.Series[str], tolerance: float, **kwargs: Any) -> pd.Series[bool]:  # noqa: N805
        sound = {text: orthonormal(str(text), tolerance) for text in column.unique()}  # most scans share a few
        return column.map(sound).astype(bool)


class ExpectColumnValuesToBeOrthonormalOrientation(ColumnMapExpectation):  # type: ignore[misc]
    """Every orientation is two unit vectors at a right angle (DICOM PS3.3 C.7.6.2.1.1)."""

    tolerance: float
    map_metric: ClassVar[str] = "column_values.ct_orthonormal"
    success_keys: ClassVar[tuple[str, ...]] = ("tolerance", "mostly")
    args_keys: ClassVar[tuple[str, ...]] = ("column", "tolerance")

    @classmethod
    @renderer(renderer_type=LegacyRendererType.PRESCRIPTIVE)  # type: ignore[untyped-decorator]
    def _prescriptive_renderer(
        cls, configuration: Any = None, result: Any = None, runtime_configuration: Any = None, **kwargs: Any
    ) -> list[RenderedStringTemplateContent]:
        text = "$column must be two unit vectors at a right angle, to within $tolerance of a direction cosine."
        return _text(text, configuration.kwargs if configuration else {}, runtime_configuration)


class SlicesEvenStack(MulticolumnMapMetricProvider):  # type: ignore[misc]
    """Map metric: the row's slices lie on one straight line at even steps."""

    condition_metric_name = "multicolumn_values.ct_even_stack"
    condition_domain_keys = ("batch_id", "table", "column_list", "row_condition", "condition_parser", "ignore_row_if")
    condition_value_keys = ("max_gap_ratio", "max_off_line_mm")

    @multicolumn_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
    def _pandas(
        cls,  # noqa: N805
        column_list: pd.DataFrame,
        max_gap_ratio: float,
        max_off_line_mm: float,
        **kwargs: Any,
    ) -> pd.Series[bool]:
        return even_stack(column_list, max_gap_ratio, max_off_line_mm)


class ExpectSlicesToFormAnEvenStack(MulticolumnMapExpectation):  # type: ignore[misc]
    """Positions form an evenly spaced, straight stack; ``column_list``: gap_ratio, gap_min_ratio, off_line_mm."""

    max_gap_ratio: float
    max_off_line_mm: float
    map_metric: ClassVar[str] = "multicolumn_values.ct_even_stack"
    success_keys: ClassVar[tuple[str, ...]] = ("max_gap_ratio", "max_off_line_mm", "mostly")
    args_keys: ClassVar[tuple[str, ...]] = ("column_list", "max_gap_ratio", "max_off_line_mm")

    @classmethod
    @renderer(renderer_type=LegacyRendererType.PRESCRIPTIVE)  # type: ignore[untyped-decorator]
    def _prescriptive_renderer(
        cls, configuration: Any = None, result: Any = None, runtime_configuration: Any = None, **kwargs: Any
    ) -> list[RenderedStringTemplateContent]:
        text = (
            "Slice positions must form an evenly spaced, straight stack: no gap more than $max_gap_ratio times longer "
            "or shorter than the median gap, no slice more than $max_off_line_mm mm off the line."
        )
        return _text(text, configuration.kwargs if configuration else {}, runtime_configuration)


def _text(template: str, parameters: dict[str, Any], runtime: Any) -> list[RenderedStringTemplateContent]:
    """One sentence of Data Docs; parameters are set in bold by the pages' style."""
    named = {key: value for key, value in parameters.items() if f"${key}" in template}
    if runtime and runtime.get("include_column_name") is False:  # below a heading that names the column
        template = template.replace("$column must", "must")
    content = {"template": template, "params": named, "styling": (runtime or {}).get("styling")}
    return [RenderedStringTemplateContent(content_block_type="string_template", string_template=content)]
