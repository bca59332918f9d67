-- The short form of append.sql, for a write that has only events: most writes of a lone run. Half the cost.
with fence as materialized (
    select 1 from nodes where epoch = $1 and token = $2 and ended_at is null for key share
),
written as (
    insert into journal (run_id, seq, claim, epoch, at, kind, step, undo, generation, attempt, key, body, seal)
    select e.run_id, e.seq, e.claim, e.epoch, e.at, e.kind, e.step, e.undo, e.generation, e.attempt, e.key, e.body::json, e.seal
    from fence, unnest($3::journal_row[]) as e
)
select count(*) as "fenced!",
       -- Heard by those elsewhere who watch these runs, once this is committed.
       (select count(pg_notify('backstay_moved', told)) from unnest($4::text[]) as told) as "told!"
from fence
