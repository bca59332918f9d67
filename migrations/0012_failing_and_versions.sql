-- At which steps a run fails, in its row of the index: whoever looks for the runs that fail at a step reads no journal.
alter table runs
    -- The steps whose last word, or whose undo's, is that it failed or is held; null: there was never one.
    add column failing text[];

-- In place of index_change, which nodes of the earlier release still use: what they write leaves that column as it is.
create type run_update as (
    run_id uuid, claim int, status text, release boolean, due_at timestamptz, note text, finished_at timestamptz,
    told int, clears boolean,
    -- Null: as it was.
    failing text[]);

-- Secrets get their versions from here, so that one that is removed and set again never has a version that it had
-- before: whoever still holds the old one as If-Match is told that it has moved.
create sequence secret_versions as int;
select setval('secret_versions', coalesce((select max(version) from secrets), 0) + 1, false);
alter table secrets alter column version set default nextval('secret_versions');

-- The limits of a pool are changed by those who have seen them, if they say which they saw.
alter table pools
    -- Counts the changes of its limits.
    add column version int not null default 1;
