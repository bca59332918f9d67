-- One fact, if it still is as it was seen; a row that somebody else is changing is waited for, and looked at again. The
-- lock on the row of this life is that of append.sql: it holds off a takeover until the commit.
with fence as materialized (
    select 1 from nodes where epoch = $1 and token = $2 and ended_at is null for key share
),
made as (
    insert into facts (name, value, version, changed_by)
    select $3::text, $4::text, 1, $5::uuid from fence where $6::bigint = 1
    on conflict do nothing
    returning 1
),
moved as (
    update facts set value = $4, version = $6, changed_by = $5, changed_at = clock_timestamp()
    from fence where name = $3 and version = $6 - 1
    returning 1
)
select (select count(*) from fence) as "fenced!",
       (select count(*) from made) + (select count(*) from moved) as "changed!"
