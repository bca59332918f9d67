-- Removes runs that are over for long, wholly, in one commit. The lock is on the run's row, which is read again if it
-- changed meanwhile: a run that somebody has brought back is not over any more. Who comes after finds no run.
with old as materialized (
    select run_id, client_key, request_hash, finished_at
    from runs
    where finished_at < clock_timestamp() - make_interval(secs => $1)
      -- The label is the engine's; whatever else somebody wrote there names no run.
      and not exists (
          select from runs parent
          where parent.run_id = case when runs.labels ->> 'parent' ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                                     then (runs.labels ->> 'parent')::uuid end)
    order by finished_at
    limit $2
    for update skip locked
),
sized as materialized (
    select old.*, sum(last.seq) over (order by finished_at, run_id) - last.seq as before
    from old,
         lateral (select coalesce(max(seq), 0) as seq from journal where journal.run_id = old.run_id) as last
),
chosen as materialized (
    select run_id, client_key, request_hash from sized where before < $3::bigint
),
retired as (
    insert into retired_keys (client_key, request_hash, run_id, until)
    select client_key, request_hash, run_id, clock_timestamp() + make_interval(secs => $4)
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
forgotten as (
    delete from retired_keys k using (
        select client_key from retired_keys where until < clock_timestamp() order by until limit 1000 for update skip locked
    ) as over
    -- Not those that this very statement has written anew.
    where k.client_key = over.client_key and not exists (select from chosen where chosen.client_key = k.client_key)
    returning 1
)
select (select count(*) from gone) as "runs!", (select count(*) from forgotten) as "keys!"
