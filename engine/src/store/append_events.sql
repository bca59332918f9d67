-- The short form of append.sql, for a write that has only events, of which nobody elsewhere hears: most writes of a lone
-- run. It returns nothing, so that Postgres need not gather it: how many rows it wrote says whether the fence held.
with fence as materialized (
    select 1 from nodes where epoch = $1 and token = $2 and ended_at is null for key share
)
insert into journal (run_id, seq, claim, epoch, at, kind, step, undo, generation, attempt, key, body, seal, more)
select e.run_id, e.seq, e.claim, e.epoch, e.at, e.kind, e.step, e.undo, e.generation, e.attempt, e.key, e.body::json, e.seal,
       e.more::json
from fence, unnest($3::journal_entry[]) as e
