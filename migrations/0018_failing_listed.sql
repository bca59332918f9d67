-- The runs that fail, the newest first: a page of those that fail at a common step reads a few hundred entries of these, and
-- not the whole list of runs. The other index leads to what is rare. A run that never fails has an entry in neither.
create index runs_failing on runs (run_id desc) where failing is not null;
