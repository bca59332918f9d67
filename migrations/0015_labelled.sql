-- Most runs have no labels, and each entry of an index is written twice in a run's life: at its start and at its end. The one
-- over labels took a tenth of all that a node could write.
drop index runs_by_label;
create index runs_by_label on runs using gin (labels jsonb_path_ops) where labels <> '{}';
