-- Pages of runs, the newest first: by status, by workflow, by label, however many are over.
create index runs_by_status on runs (status, run_id desc);
create index runs_by_workflow on runs (workflow, run_id desc);
create index runs_by_label on runs using gin (labels jsonb_path_ops);
