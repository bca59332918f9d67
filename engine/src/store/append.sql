-- Everything that a node has ready, in one statement and one commit. Nothing is written unless this life goes on:
-- the lock on its row (for key share) holds off a takeover until the commit, and a takeover that was first makes
-- the fence empty. A lease renewal is a plain update of that row and waits for none of this.
with fence as materialized (
    select 1 from nodes where epoch = $1 and token = $2 and ended_at is null for key share
),
admitted as (
    insert into runs (run_id, workflow, status, plan_hash, activities, priority, labels, client_key, request_hash,
                      exclusive_key, owner, submitted_at)
    select a.run_id, a.workflow, 'running', a.plan_hash, string_to_array(a.activities, ','), a.priority,
           a.labels::jsonb, a.client_key, a.request_hash, a.exclusive_key, $1, a.at
    from fence, unnest($3::new_run[]) as a
    -- What a run was submitted under is kept for a while after the run.
    where (a.client_key is null or not exists (
              select from retired_keys k where k.client_key = a.client_key and k.until > statement_timestamp()))
      -- Nobody overtakes those who stand in line.
      and (a.exclusive_key is null or not exists (
              select from runs q where q.exclusive_key = a.exclusive_key and q.status = 'queued'))
    on conflict do nothing
    returning run_id
),
changed as (
    update runs
    set status = c.status,
        owner = case when c.release then null else runs.owner end,
        -- Somebody has spoken to the run since its owner looked into the inbox: it is not over and not put aside, but
        -- there for whoever claims it, and answers. Only this row may be asked: it is read again after a wait for it.
        due_at = case when c.release and runs.mail > c.told then least(c.due_at, statement_timestamp()) else c.due_at end,
        finished_at = case when runs.mail > c.told then null else c.finished_at end,
        note = c.note,
        told = greatest(runs.told, c.told),
        crashes = case when c.clears then 0 else runs.crashes end,
        failing = coalesce(c.failing, runs.failing)
    from fence, unnest($4::run_update[]) as c
    -- Not "owner = $1": the planner would go by the index of owners, and look at all runs of this life for each one.
    where runs.run_id = c.run_id and runs.claim = c.claim and runs.owner is not distinct from $1
    -- Or somebody may be next in line.
    returning runs.owner is null
              and (runs.mail > runs.told or (runs.finished_at is not null and runs.exclusive_key is not null)) as spoken_to
),
written as (
    insert into journal (run_id, seq, claim, epoch, at, kind, step, undo, generation, attempt, key, body, seal,
                         more)
    select e.run_id, e.seq, e.claim, e.epoch, e.at, e.kind, e.step, e.undo, e.generation, e.attempt, e.key, e.body::json, e.seal,
           e.more::json
    from fence, unnest($5::journal_entry[]) as e
    -- The events of a run that was refused go with it.
    where not e.fresh or e.run_id in (select run_id from admitted)
)
select (select count(*) from fence) as "fenced!",
       (select count(*) from changed) as "changed!",
       (select count(*) from changed where spoken_to) as "spoken_to!",
       array(select run_id from admitted) as "admitted!",
       -- Heard by those elsewhere who watch these runs, once this is committed.
       (select count(pg_notify('backstay_moved', told)) from fence, unnest($6::text[]) as told) as "told!"
