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
    on conflict do nothing
    returning run_id
),
changed as (
    update runs
    set status = c.status,
        owner = case when c.release then null else runs.owner end,
        due_at = c.due_at,
        note = c.note,
        crashes = 0,
        finished_at = c.finished_at
    from fence, unnest($4::run_change[]) as c
    where runs.run_id = c.run_id and runs.owner = $1
    returning 1
),
written as (
    insert into journal (run_id, seq, claim, epoch, at, kind, step, undo, generation, attempt, key, body)
    select e.run_id, e.seq, e.claim, e.epoch, e.at, e.kind, e.step, e.undo, e.generation, e.attempt, e.key, e.body::json
    from fence, unnest($5::new_event[]) as e
    -- The events of a run that was refused go with it.
    where not e.fresh or e.run_id in (select run_id from admitted)
)
select (select count(*) from fence) as "fenced!",
       (select count(*) from changed) as "changed!",
       array(select run_id from admitted) as "admitted!"
