-- Limits of the targets that calls go to, runs that stand in line for an exclusive key, and what is kept of runs that
-- are removed. Locks on large tables are short here; what has to look at every row is in the next migration.

-- Targets whose calls are limited, over all nodes. Whoever first calls into a pool that has no limits puts it here.
create table pools (
    name       text primary key,
    -- Calls at once. Null: as many as there are.
    at_once    int check (at_once > 0),
    -- Calls that begin in a second. Null: as many as there are.
    per_second double precision check (per_second > 0),
    -- Calls in a row, anywhere, that found the target down; how many of them make an outage is for the nodes to say.
    failures   int         not null default 0,
    -- While it is in outage: since when, why, who declared it (nobody: the nodes found it down), how often it was tried
    -- since, when it is tried next, and by which life. What a person has declared, a person ends: it is not tried.
    down_since timestamptz,
    why        text,
    declarer   text,
    tries      int         not null default 0,
    next_try   timestamptz,
    trier      bigint,
    -- When the last outage ended: from then on its limit grows from one call at once.
    back_since timestamptz,
    check (num_nonnulls(down_since, why) in (0, 2)),
    check (num_nonnulls(declarer, next_try) = num_nonnulls(down_since)),
    check (trier is null or next_try is not null)
) with (fillfactor = 50);
comment on table pools is 'Targets whose calls are limited over all nodes, and whether they are down.';

-- What each life holds of each pool. It counts while that life does: nobody has to clear up after a node that died.
-- Whoever changes a share holds the row of its pool, and reads the others in a later statement: so the sum over all
-- lives that go on never exceeds the limit.
create table pool_shares (
    pool    text not null references pools on delete cascade,
    epoch   bigint not null,
    -- Calls that it may have under way. Null: as many as it has.
    slots   int check (slots >= 0),
    -- Calls a second that it may begin. Null: as many as it has.
    rate    double precision check (rate >= 0),
    -- What it had under way, and what waited there, when it said so last.
    busy    int not null,
    waiting int not null,
    at      timestamptz not null default clock_timestamp(),
    primary key (pool, epoch)
) with (fillfactor = 50);
comment on table pool_shares is 'What each life of a node holds of each pool.';

-- Keys of submissions whose runs have been removed: for a while they mean the same run.
create table retired_keys (
    client_key   text        primary key,
    request_hash text        not null,
    run_id       uuid        not null,
    until        timestamptz not null
);
comment on table retired_keys is 'Client keys of runs that were removed, until they may mean another run.';
create index retired_keys_until on retired_keys (until);

-- A key is looked up before its run is stored. But a removal may be under way: then the new row waits for its end, and
-- what was looked up before that is out of date. This looks again, in a statement of its own, after the wait.
create function refuse_retired_key() returns trigger language plpgsql as $$
begin
    if exists (select from retired_keys k where k.client_key = new.client_key and k.until > clock_timestamp()) then
        raise unique_violation using message = 'the key of this run was another run''s until a moment ago',
            constraint = 'retired_keys_pkey', table = 'retired_keys';
    end if;
    return null;
end $$;
create trigger runs_retired_key after insert on runs
    for each row when (new.client_key is not null) execute function refuse_retired_key();

-- A run that stands in line has what wakes it in the index: the end of the run that holds its key.
alter table runs drop constraint runs_wake_reason;
alter table runs add constraint runs_wake_reason check (
    case
        when finished_at is not null then
            status in ('succeeded', 'committed', 'rolled_back', 'closed') and num_nonnulls(owner, due_at) = 0 and mail <= told
        when status in ('pending', 'running', 'rolling_back', 'committing') then num_nonnulls(owner, due_at) = 1
        when status in ('committed', 'rolled_back', 'closed') then num_nonnulls(owner, due_at) = 1
        when status in ('waiting', 'held', 'paused', 'stuck', 'quarantined', 'succeeded') then
            num_nonnulls(owner, due_at) = 1 or (num_nonnulls(owner, due_at) = 0 and note is not null and mail <= told)
        -- Somebody may have spoken to it; it answers, and stands where it stood.
        when status = 'queued' then exclusive_key is not null
            and (num_nonnulls(owner, due_at) = 1 or (num_nonnulls(owner, due_at) = 0 and note is not null and mail <= told))
        else false
    end) not valid;

-- Who looks for the run that holds a key passes over those that stand in line for it.
do $$
declare
    said text := pg_get_functiondef('tell'::regproc);
    mine text := replace(said, 'h.exclusive_key = r.exclusive_key and h.finished_at is null',
        'h.exclusive_key = r.exclusive_key and h.finished_at is null'
        ' and h.status not in (''queued'', ''committed'', ''rolled_back'', ''closed'') limit 1');
begin
    if said = mine then
        raise exception 'the function "tell" is not as it was: it has to pass over runs that stand in line';
    end if;
    execute mine;
end $$;
