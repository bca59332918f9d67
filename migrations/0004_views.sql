-- For people: what runs made, and which runs nobody moves.

-- What each run made, moved, or was about to, and what became of it.
create view resources as
select distinct on (run_id, step, kind, name)
    run_id,
    step,
    kind,
    name,
    fate,
    -- That it is gone says nothing of what it was.
    first_value(details) over (partition by run_id, step, kind, name order by details is null, seq desc) as details,
    at
from (
    select run_id, seq, step, at, body ->> 'kind' as kind, body ->> 'name' as name, body ->> 'fate' as fate,
           nullif((body -> 'details')::text, 'null')::json::text as details
    from journal
    where kind = 'resource'
) as said
order by run_id, step, kind, name, seq desc;
comment on view resources is 'What each run made, moved, or was about to, and what became of it: planned, present, gone, kept, unproven.';

-- Live runs that nothing will move. There must be none: what cannot be stored is refused by runs_wake_reason, and what
-- is left is a node that is gone and was not succeeded, or a time that came and was not kept.
-- In three parts, so that each goes by an index of live runs, however many are over.
create view silent_runs as
select
    r.run_id,
    r.workflow,
    r.status,
    case
        when n.epoch is null then 'its owner, life ' || r.owner || ', is not known'
        else 'its node ' || n.name || ' is gone since ' || n.ended_at || ', and no other has claimed it'
    end as why,
    coalesce(n.ended_at, r.submitted_at) as since
from runs r
left join nodes n on n.epoch = r.owner
where r.owner is not null and (n.epoch is null or n.ended_at < clock_timestamp() - interval '1 minute')
union all
select run_id, workflow, status, 'it could go on since ' || due_at || ', and no node has claimed it', due_at
from runs
where due_at is not null and due_at < clock_timestamp() - interval '1 minute'
union all
select run_id, workflow, status, 'it has no owner, no time, and nobody knows what it waits for', submitted_at
from runs
where owner is null and due_at is null and finished_at is null and (note is null or mail > told);
comment on view silent_runs is 'Live runs that nothing will move: there must be none.';
