-- The chain of hashes over each run's journal, so that a row that was changed, removed or added by hand shows.
alter table journal
    -- SHA-256 over this row and the seal of the chain before it; on rows of the run as a whole.
    add column seal bytea;

-- In place of new_event, which nodes of the earlier release still use: their rows carry no seal, and the next one that
-- does covers them.
create type journal_row as (
    run_id uuid, seq bigint, claim int, epoch bigint, at timestamptz, kind text, step text, undo boolean,
    generation int, attempt int, key uuid, body text, fresh boolean, seal bytea);
