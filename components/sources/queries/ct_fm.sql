-- CT-FM's selection (arXiv 2501.09001): every public CT series that passes a handful of header criteria.
--
-- One row per candidate series. Every column called "keep: ..." is a criterion, applied in this order: TRUE keeps the
-- series, FALSE drops it, NULL means that the tables on this machine cannot tell, and header screening must.
-- $idc_version: newest IDC version whose series are taken; NULL takes all.
SELECT
    idc.*,
    idc.instanceCount > 50 AS "keep: more than 50 instances",
    coalesce(idc.series_init_idc_version <= $idc_version, TRUE) AS "keep: released by the IDC version",
    ct.SliceThickness BETWEEN 1 AND 5 AS "keep: slice thickness 1 to 5 mm",
    NOT contains(upper(ct.ImageType), 'LOCALIZER') AS "keep: no localizer",
    geometry.unique_slice_positions AS "keep: every instance at a position of its own"
FROM idc_index AS idc
LEFT JOIN ct_index AS ct USING (SeriesInstanceUID)
LEFT JOIN volume_geometry_index AS geometry USING (SeriesInstanceUID)
WHERE idc.Modality = 'CT'
