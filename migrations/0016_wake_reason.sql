-- Postgres reads the text of a check constraint anew in each statement that writes the table. The rule for what moves a run was
-- long enough to take a tenth of the time of a node that drives one run; as a function it is read once in a session. The rule
-- is the same: a live run has exactly one reason to move, which is a life, a time, or people who were told why.
create function runs_has_wake_reason(
    status text, owner bigint, due_at timestamptz, finished_at timestamptz, note text, mail int, told int, exclusive_key text
) returns boolean language plpgsql immutable parallel safe as $$
declare
    -- What moves it by itself: the life that drives it, or a time.
    moves boolean := owner is not null or due_at is not null;
begin
    if owner is not null and due_at is not null then
        return false;
    end if;
    if finished_at is not null then
        return status in ('succeeded', 'committed', 'rolled_back', 'closed') and not moves and mail <= told;
    end if;
    return case
        when status in (
            'pending', 'running', 'rolling_back', 'committing', 'committed', 'rolled_back', 'closed') then moves
        when status in ('waiting', 'held', 'paused', 'stuck', 'quarantined', 'succeeded') then
            moves or (note is not null and mail <= told)
        -- Somebody may have spoken to it; it answers, and stands where it stood.
        when status = 'queued' then exclusive_key is not null and (moves or (note is not null and mail <= told))
        else false
    end;
end $$;

alter table runs drop constraint runs_wake_reason;
alter table runs add constraint runs_wake_reason check (
    runs_has_wake_reason(status, owner, due_at, finished_at, note, mail, told, exclusive_key)) not valid;
