-- The exporter's role: it may read what queries.yml asks for and nothing else. As an administrator, in that database:
-- psql -v password="'...'" -f exporter.sql
CREATE ROLE exporter LOGIN PASSWORD :password;
GRANT SELECT ON flow, flow_run, deployment, deployment_schedule, work_pool, worker TO exporter;
