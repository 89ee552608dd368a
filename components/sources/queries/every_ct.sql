-- Every CT series of the collections that the line's options name, for sets whose scans a table lists one by one: what is
-- no volume, such as a localiser, has few instances. All else is left to header screening.
--
-- Columns and $idc_version as in ct_fm.sql.
SELECT
    idc.*,
    idc.instanceCount >= 12 AS "keep: at least 12 instances",
    coalesce(idc.series_init_idc_version <= $idc_version, TRUE) AS "keep: released by the IDC version"
FROM idc_index AS idc
WHERE idc.Modality = 'CT'
