-- So that a node can do its work under a role that can change nothing that was written down: it cannot change or remove a
-- row of a journal or of the audit trail. The two things that it has to do there anyway are functions of the owner's.

-- Roles that were told what they may do (engine/src/store/grants.sql): a later migration tells them again.
create table database_roles (
    server text not null,
    reader text not null,
    primary key (server, reader)
);
comment on table database_roles is 'Roles that may serve and read this database.';

-- Removes runs that are over for long, wholly, in one commit: never a single event, and never a live run. The lock is on
-- the run's row, which is read again if it changed meanwhile: a run that somebody has brought back is not over any more.
-- Who comes after finds no run.
create function purge(
    older_than double precision, most_runs bigint, most_events bigint, keep_keys double precision)
returns table (removed bigint, forgotten bigint)
language sql volatile security definer as $$
with old as materialized (
    select run_id, client_key, request_hash, finished_at
    from runs
    where finished_at < clock_timestamp() - make_interval(secs => older_than)
      -- The label is the engine's; whatever else somebody wrote there names no run.
      and not exists (
          select from runs parent
          where parent.run_id = case when runs.labels ->> 'parent' ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                                     then (runs.labels ->> 'parent')::uuid end)
    order by finished_at
    limit most_runs
    for update skip locked
),
sized as materialized (
    select old.*, sum(last.seq) over (order by finished_at, run_id) - last.seq as before
    from old,
         lateral (select coalesce(max(seq), 0) as seq from journal where journal.run_id = old.run_id) as last
),
chosen as materialized (
    select run_id, client_key, request_hash from sized where before < most_events
),
retired as (
    insert into retired_keys (client_key, request_hash, run_id, until)
    select client_key, request_hash, run_id, clock_timestamp() + make_interval(secs => keep_keys)
    from chosen where client_key is not null
    -- The time of an earlier run under that key was over.
    on conflict (client_key) do update
    set request_hash = excluded.request_hash, run_id = excluded.run_id, until = excluded.until
    returning client_key
),
events as (
    delete from journal using chosen where journal.run_id = chosen.run_id
),
messages as (
    delete from inbox using chosen where inbox.run_id = chosen.run_id
),
gone as (
    delete from runs using chosen where runs.run_id = chosen.run_id returning 1
),
meaningless as (
    delete from retired_keys k using (
        select client_key from retired_keys where until < clock_timestamp() order by until limit 1000 for update skip locked
    ) as over
    -- Not those that this very statement has written anew.
    where k.client_key = over.client_key and not exists (select from chosen where chosen.client_key = k.client_key)
    returning 1
)
select (select count(*) from gone), (select count(*) from meaningless)
$$;

-- They run with the owner's rights, so nobody may choose for them which tables they mean: a temporary table would
-- otherwise come first.
do $$
declare
    path text := format('%I, pg_temp', current_schema());
begin
    execute format('alter function purge set search_path = %s', path);
    execute format('alter function audit_write security definer set search_path = %s', path);
end $$;
revoke execute on function purge, audit_write, tell from public;

-- For people and dashboards: nodes without the tokens of their lives, and pools with what is under way.
create view node_status as
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
    (select count(*) from runs where owner = epoch) as runs
from nodes;
comment on view node_status is 'The lives of nodes: alive, overdue, or how each ended, and the runs that it has.';

create view pool_status as
select
    p.name,
    p.at_once,
    p.per_second,
    coalesce(sum(s.busy) filter (where n.epoch is not null), 0) as busy,
    coalesce(sum(s.waiting) filter (where n.epoch is not null), 0) as waiting,
    p.down_since,
    p.why,
    p.declarer,
    p.next_try
from pools p
left join pool_shares s on s.pool = p.name
left join nodes n on n.epoch = s.epoch and n.ended_at is null
group by p.name;
comment on view pool_status is 'Targets whose calls are limited: what is under way there, what waits, and what is down.';
