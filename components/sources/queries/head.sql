-- Non-contrast head CT, after FM-CT (arXiv 2502.02779), which chose by an allow-list of a hospital's own protocols. The
-- IDC has no such list: body part and descriptions stand in for it, and leave few series. A site's own PACS is the
-- source that the recipe means.
--
-- Columns and $idc_version as in ct_fm.sql.
SELECT
    idc.*,
    coalesce(idc.BodyPartExamined IN ('HEAD', 'BRAIN', 'SKULL'), FALSE)
        OR regexp_matches(lower(concat_ws(' ', idc.StudyDescription, idc.SeriesDescription)), '\b(head|brain|skull)\b')
        AS "keep: head, brain or skull by body part or description",
    NOT regexp_matches(
        lower(concat_ws(' ', idc.StudyDescription, idc.SeriesDescription)),
        'neck|angio|cta|perfusion|venogra|contrast|\bpost\b|\bpet\b|attenuation'
    ) AS "keep: no contrast, angiography, perfusion or attenuation correction by description",
    idc.instanceCount >= 12 AS "keep: at least 12 instances",
    coalesce(idc.series_init_idc_version <= $idc_version, TRUE) AS "keep: released by the IDC version",
    ct.SliceThickness BETWEEN 0.4 AND 6 AS "keep: slice thickness 0.4 to 6 mm",
    NOT contains(upper(ct.ImageType), 'LOCALIZER') AS "keep: no localizer",
    abs(coalesce(ct.GantryDetectorTilt, 0)) <= 1 OR NULL AS "keep: no gantry tilt"
FROM idc_index AS idc
LEFT JOIN ct_index AS ct USING (SeriesInstanceUID)
WHERE idc.Modality = 'CT'
