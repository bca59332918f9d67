-- What has to look at every row. The check takes no lock that hurts. The indexes hold off writes while they are built:
-- whoever has many millions of runs builds them beforehand, concurrently, under these names, and they are found here.
alter table runs validate constraint runs_wake_reason;

-- At most one live run has a key. Those that stand in line do not have it yet; those that have come to their end and
-- only have to answer somebody do not have it any more.
create unique index if not exists runs_exclusive on runs (exclusive_key)
    where exclusive_key is not null and finished_at is null
      and status not in ('queued', 'committed', 'rolled_back', 'closed');
drop index runs_exclusive_key;
create index if not exists runs_queued on runs (exclusive_key, submitted_at, run_id) where status = 'queued';

-- For removing what is over for long.
create index if not exists runs_finished on runs (finished_at) where finished_at is not null;
