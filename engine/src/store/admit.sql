-- A run that nobody has yet, with its first event. Claim 0 and epoch 0: it was not a node that wrote this.
with admitted as (
    insert into runs (run_id, workflow, status, plan_hash, activities, priority, labels, client_key, request_hash,
                      exclusive_key, due_at, submitted_at, note)
    select $1::uuid, $2::text, case when $12::boolean then 'queued' else 'pending' end, $3::text,
           string_to_array($4::text, ','), $5::smallint, $6::text::jsonb, $7::text, $8::text, $9::text,
           case when not $12 then statement_timestamp() end, statement_timestamp(),
           case when $12 then 'another run has its exclusive key' end
    -- What a run was submitted under is kept for a while after the run.
    where ($7 is null or not exists (
              select from retired_keys k where k.client_key = $7 and k.until > statement_timestamp()))
      -- Nobody overtakes those who stand in line.
      and ($9 is null or $12 or not exists (
              select from runs q where q.exclusive_key = $9 and q.status = 'queued'))
    on conflict do nothing
    returning run_id, submitted_at
),
written as (
    insert into journal (run_id, seq, claim, epoch, at, kind, undo, generation, attempt, body)
    select run_id, 1, 0, 0, submitted_at, 'submitted', false, 0, 0, $10::text::json from admitted
),
woken as materialized (
    select pg_notify($11, '') from admitted
)
select exists (select from admitted) as "admitted!", (select count(*) from woken) as woken
