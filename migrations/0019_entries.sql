-- A row of the journal holds what a run said about its steps at once: an event, and with it those that follow it in the same
-- write. What a row and its index entry cost was most of what a step cost, and a step needs one row now where it needed two.
--
-- Nodes of earlier releases read one event in a row. So this migration wants them stopped, all of them. What they write with
-- is gone. One that nobody saw, since it was cut off from the database, cannot come back: a life has to say now of which release
-- it is, and theirs do not.
do $$
declare
    up text;
begin
    -- Until all of this is committed, nobody begins a life.
    lock table nodes in share row exclusive mode;
    -- Each node holds this lock for as long as its process and its connection last.
    select string_agg(name, ', ' order by name) into up
    from (select distinct name from nodes where ended_at is null) as alive
    where not pg_try_advisory_xact_lock(hashtextextended('backstay node ' || name, 0));
    if up is not null then
        raise exception 'nodes of an earlier release are up, and could not read what those of this one write: stop %, and '
            'start this again', up;
    end if;
    update nodes set ended_at = clock_timestamp(), ended_why = 'superseded' where ended_at is null;
end $$;
alter table nodes add column release text not null default 'before 0.1.0';
alter table nodes alter column release drop default;
drop type journal_row, new_event, index_change, run_change;

alter table journal
    -- What follows in the same write, under the same claim and life: for each event an array, [[kind, step, undo, generation,
    -- attempt, key, microseconds since "at"], body]; without a body it ends before it. They have the next numbers.
    add column more json;

create type journal_entry as (
    run_id uuid, seq bigint, claim int, epoch bigint, at timestamptz, kind text, step text, undo boolean,
    generation int, attempt int, key uuid, body text, fresh boolean, seal bytea, more text);

-- A line for each event.
create view events as
select
    j.run_id,
    j.seq + e.place as seq,
    j.claim,
    j.epoch,
    j.at + e.later * interval '1 microsecond' as at,
    e.kind,
    e.step,
    e.undo,
    e.generation,
    e.attempt,
    e.key,
    e.body,
    case when e.place = 0 then j.seal end as seal
from journal j
cross join lateral (
    select 0 as place, 0 as later, j.kind, j.step, j.undo, j.generation, j.attempt, j.key, j.body
    union all
    select place, (head ->> 6)::bigint, head ->> 0, head ->> 1, (head ->> 2)::boolean, (head ->> 3)::int, (head ->> 4)::int,
           (head ->> 5)::uuid, said -> 1
    from json_array_elements(j.more) with ordinality as m (said, place), lateral (select said -> 0 as head) as h
) as e;
comment on view events is 'What did happen: a line for each event of each run.';

-- The views that people read, over it.
create or replace view steps as
select
    run_id,
    step,
    undo,
    max(generation) as generation,
    count(*) filter (where kind = 'started') as attempts,
    (array_agg(kind order by seq desc) filter (where kind not in ('checkpointed', 'progressed')))[1] as last_event,
    min(at) filter (where kind = 'started') as started_at,
    max(at) as last_at,
    (array_agg(body order by seq desc) filter (where kind = 'started' and body is not null))[1] as input,
    (array_agg(body order by seq desc) filter (where kind = 'succeeded'))[1] as output,
    (array_agg(body -> 'error' order by seq desc) filter (where kind = 'failed'))[1] as last_error
from events
where step is not null
group by run_id, step, undo;

create or replace view resources as
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
    from events
    where kind = 'resource'
) as said
order by run_id, step, kind, name, seq desc;

create or replace view run_status as
select
    r.run_id,
    r.workflow,
    r.status,
    case
        when r.finished_at is not null then 'it is over'
        when r.owner is not null and n.ended_at is not null then 'its node is gone; the next free node claims it'
        when r.owner is not null and n.lease_until < clock_timestamp() then 'its node has not renewed its lease'
        when r.owner is not null then 'node ' || n.name || ' drives it'
        when r.due_at is not null and r.due_at > clock_timestamp() then 'it goes on at ' || r.due_at
        when r.due_at is not null then 'it waits for a node that has its activities'
        else r.note
    end as explanation,
    r.note,
    r.labels,
    r.submitted_at,
    r.finished_at,
    -- They are numbered from one, without gaps.
    coalesce((select j.seq + case json_typeof(j.more) when 'array' then json_array_length(j.more) else 0 end
              from journal j where j.run_id = r.run_id order by j.seq desc limit 1), 0) as events,
    r.mail - r.told as unanswered
from runs r
left join nodes n on n.epoch = r.owner;

create or replace view node_status as
select
    epoch,
    name,
    case
        when ended_why is not null then ended_why
        when lease_until < clock_timestamp() then 'overdue'
        else 'alive'
    end as state,
    started_at,
    lease_until,
    ended_at,
    (select count(*) from runs where owner = epoch) as runs,
    release
from nodes;
