-- The first in line of each exclusive key that is free. One that is being spoken to is not passed over: its key waits.
with recursive keys as (
    (select exclusive_key from runs where status = 'queued' order by exclusive_key limit 1)
    union all
    select (select q.exclusive_key from runs q
            where q.status = 'queued' and q.exclusive_key > keys.exclusive_key order by q.exclusive_key limit 1)
    from keys where keys.exclusive_key is not null
),
free as materialized (
    select r.run_id
    from keys,
         lateral (
             select q.run_id from runs q
             where q.status = 'queued' and q.exclusive_key = keys.exclusive_key
             order by q.submitted_at, q.run_id limit 1
         ) as first,
         runs r
    where r.run_id = first.run_id and r.status = 'queued' and r.owner is null
      and not exists (
          select from runs h
          where h.exclusive_key = keys.exclusive_key and h.finished_at is null
            and h.status not in ('queued', 'committed', 'rolled_back', 'closed'))
    limit 100
    for update of r skip locked
)
update runs set status = 'pending', due_at = clock_timestamp(), note = null
from free where runs.run_id = free.run_id
returning runs.run_id
