-- How operators and clients speak to a run, whichever node they reach. A message goes into the inbox and is answered in
-- the journal: the owner of the run writes down that it was done, or why not, and takes the message out of the inbox
-- in the same commit. Locks on large tables are short here; what has to look at every row is in the next migration.

-- Messages that nobody has answered yet. It is empty nearly always.
create table inbox (
    -- Messages to one run are answered in the order in which they were committed: whoever sends holds the run's row.
    nr     bigint      generated always as identity primary key,
    -- Made by the sender. In the inbox and in the journal together there is one message of an id.
    id     uuid        not null unique,
    run_id uuid        not null,
    at     timestamptz not null default clock_timestamp(),
    body   json        not null
-- Every message is a dead row a moment later.
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
comment on table inbox is 'Messages to runs that nobody has answered yet.';
create index inbox_of_run on inbox (run_id, nr);

-- A run has mail while mail > told. The two numbers stand in its own row, because whoever gives a run up has to see a
-- message that was committed while he waited for that row: Postgres reads the row again after such a wait, and nothing
-- else.
alter table runs
    -- Messages ever sent to the run.
    add column mail int not null default 0,
    -- How many of them are answered.
    add column told int not null default 0;

-- What needs people says what for; earlier releases did not always write it down.
update runs set note = 'an operator must decide' where status in ('held', 'stuck', 'quarantined') and note is null;

-- A live run has exactly one reason to move: an owner, a time, or people who know what it waits for. One that somebody
-- has spoken to has to answer first: it cannot be put aside for people, nor be over, while it has mail. So a silent run
-- cannot be stored, and neither can a message that nobody will look at.
alter table runs drop constraint runs_wake_reason;
alter table runs add constraint runs_wake_reason check (
    case
        when finished_at is not null then
            status in ('succeeded', 'committed', 'rolled_back', 'closed') and num_nonnulls(owner, due_at) = 0 and mail <= told
        when status in ('pending', 'running', 'rolling_back', 'committing') then num_nonnulls(owner, due_at) = 1
        -- They were spoken to as they ended, and have to answer yet.
        when status in ('committed', 'rolled_back', 'closed') then num_nonnulls(owner, due_at) = 1
        when status in ('waiting', 'held', 'paused', 'stuck', 'quarantined', 'succeeded') then
            num_nonnulls(owner, due_at) = 1 or (num_nonnulls(owner, due_at) = 0 and note is not null and mail <= told)
        else false
    end) not valid;

-- In place of run_change, which nodes of the earlier release still use.
create type index_change as (
    run_id uuid, claim int, status text, release boolean, due_at timestamptz, note text, finished_at timestamptz,
    -- How many messages are answered, with those that this very write answers.
    told int,
    -- The run has outlived what its last owners died of.
    clears boolean);

-- Sends messages, each to its run, all in one commit. What became of each, in the order given:
--   told       it will be answered
--   known      it was sent before: to this run, with this body
--   missing    there is no such run
--   over       the run is over, and this would not bring it back
--   exclusive  it would bring the run back, but that one has its exclusive key now
-- Who sends locks the run first. The owner's answer locks it too: so what a later statement of this function sees of
-- the journal cannot change before the commit. Each statement has a snapshot of its own, which needs read committed.
create function tell(to_runs uuid[], ids uuid[], bodies text[], reopen boolean[])
returns table (place bigint, verdict text, about uuid, said text)
language plpgsql volatile as $$
#variable_conflict use_column
declare
    put    uuid[];
    old    uuid[];
    taken  uuid[] := '{}';
    one    record;
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'messages are sent under read committed';
    end if;
    -- In one order, so that two who send to the same runs do not wait for each other.
    perform from runs where run_id = any (to_runs) order by run_id for update;

    -- The unique index on ids holds off whoever sends the same id at the same time, be it to another run.
    with fresh as (
        insert into inbox (id, run_id, body)
        select m.id, m.run_id, m.body::json
        from unnest(to_runs, ids, bodies, reopen) with ordinality as m (run_id, id, body, reopens, place)
        join runs r on r.run_id = m.run_id
        where r.finished_at is null or (m.reopens and r.status = 'succeeded')
        order by m.place
        on conflict (id) do nothing
        returning id
    )
    select coalesce(array_agg(id), '{}') into put from fresh;

    -- After the insert, not before: what was answered a moment ago is in the journal by now.
    old := array(select key from journal where key = any (put) and kind in ('acted', 'refused'));
    if cardinality(old) > 0 then
        delete from inbox where id = any (old);
    end if;

    -- A run that was over comes back, and with it its claim to its key.
    for one in
        select i.id, r.run_id from inbox i join runs r on r.run_id = i.run_id
        where i.id = any (put) and r.finished_at is not null order by r.run_id
    loop
        begin
            update runs set finished_at = null, due_at = clock_timestamp() where run_id = one.run_id;
        exception when unique_violation then
            taken := taken || one.id;
            delete from inbox where id = one.id;
        end;
    end loop;

    update runs
    set mail = greatest(mail, told) + m.count,
        -- Nobody has it: whoever can may claim it at once.
        due_at = case when owner is null then least(due_at, clock_timestamp()) end
    from (select run_id, count(*)::int from inbox where id = any (put) group by run_id) as m (run_id, count)
    where runs.run_id = m.run_id;

    return query
    select m.place,
           case
               when p.id is not null and o.id is null and t.id is null then 'told'
               when i.id is not null or j.key is not null then 'known'
               when r.run_id is null then 'missing'
               when t.id is not null then 'exclusive'
               else 'over'
           end,
           case
               when i.id is not null then i.run_id
               when j.key is not null then j.run_id
               when t.id is not null then
                   (select h.run_id from runs h where h.exclusive_key = r.exclusive_key and h.finished_at is null)
           end,
           case
               when i.id is not null then i.body::text
               when j.key is not null then (case j.kind when 'acted' then j.body else j.body -> 'action' end)::text
               else r.status
           end
    from unnest(to_runs, ids) with ordinality as m (run_id, id, place)
    left join runs r on r.run_id = m.run_id
    left join unnest(put) as p (id) on p.id = m.id
    left join unnest(old) as o (id) on o.id = m.id
    left join unnest(taken) as t (id) on t.id = m.id
    -- What was told just now need not be said again.
    left join inbox i on i.id = m.id and p.id is null
    left join journal j on j.key = m.id and j.kind in ('acted', 'refused') and (p.id is null or o.id is not null)
    order by m.place;
end $$;

-- For people: where each run is, who drives it and what it waits for.
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
    (select count(*) from journal j where j.run_id = r.run_id) as events,
    r.mail - r.told as unanswered
from runs r
left join nodes n on n.epoch = r.owner;
