-- What has to look at every journal: at which steps the runs of earlier releases fail. One reading, in which the last word
-- of each step, and of each undo, counts. It changes the rows of those runs and of no others; the index, which has no more
-- than these, holds off writes to runs while they are read once.
with words as (
    select distinct on (run_id, step, undo) run_id, step, kind
    from journal
    where kind in ('failed', 'held', 'succeeded', 'skipped', 'retried', 'recalled') and step is not null
    order by run_id, step, undo, seq desc
),
failing as (
    select run_id, array_agg(distinct step order by step) as steps
    from words where kind in ('failed', 'held') group by run_id
)
update runs set failing = failing.steps from failing where runs.run_id = failing.run_id;

create index runs_by_failing on runs using gin (failing) where failing is not null;
