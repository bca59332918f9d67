-- A run that nobody has yet, with its first event. Claim 0 and epoch 0: it was not a node that wrote this.
with admitted as (
    insert into runs (run_id, workflow, status, plan_hash, activities, priority, labels, client_key, request_hash,
                      exclusive_key, due_at, submitted_at)
    values ($1, $2, 'pending', $3, string_to_array($4, ','), $5, $6::text::jsonb, $7, $8, $9,
            statement_timestamp(), statement_timestamp())
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
