-- The journal and the two small tables beside it. Nothing else holds the state of a run: what people read as
-- tables are views over these, so they cannot disagree with them.

-- One row for each life of a node: a server process from its start to the end of its lease. Its number is the
-- fence. Whoever writes to a run locks the row of its own life (for key share) in the same statement; whoever
-- ends another's life locks that row for update first, and so waits for what is being written under it.
create table nodes (
    epoch       bigint generated always as identity primary key,
    -- A database that was rewound could grant a number twice; the token tells the two lives apart.
    token       uuid        not null,
    name        text        not null,
    activities  text[]      not null,
    started_at  timestamptz not null default clock_timestamp(),
    lease_until timestamptz not null,
    ended_at    timestamptz,
    ended_why   text check (ended_why in ('stopped', 'lost', 'superseded')),
    check ((ended_at is null) = (ended_why is null))
);
comment on table nodes is 'One row for each life of a node; its epoch fences everything that life writes.';
create index nodes_alive on nodes (lease_until) where ended_at is null;

-- The index of runs, for listing, claiming and uniqueness. Everything in it follows from the journal.
create table runs (
    run_id        uuid        primary key,
    workflow      text        not null,
    status        text        not null,
    plan_hash     text        not null,
    -- The activities that a node must have to claim the run.
    activities    text[]      not null,
    -- 0 low, 1 normal, 2 high.
    priority      smallint    not null default 1 check (priority between 0 and 2),
    labels        jsonb       not null default '{}',
    -- The client's key for this submission, and what was asked under it.
    client_key    text,
    request_hash  text        not null,
    -- At most one live run holds it: one failover for each machine.
    exclusive_key text,
    -- The life that drives the run, while one does.
    owner         bigint,
    -- How many times it was claimed: the journal's rows carry the number of their claim.
    claim         int         not null default 0,
    -- When a node may claim it, while nobody has it.
    due_at        timestamptz,
    -- Leases lost in a row while they held this run, without one outcome in between.
    crashes       smallint    not null default 0,
    -- Why it waits for people.
    note          text,
    submitted_at  timestamptz not null,
    finished_at   timestamptz,
    -- A live run has exactly one reason to move: an owner, a time, or people. A silent run cannot be stored.
    constraint runs_wake_reason check (
        case
            when status in ('succeeded', 'rolled_back') then num_nonnulls(owner, due_at) = 0 and finished_at is not null
            when status in ('held', 'stuck', 'quarantined') then num_nonnulls(owner, due_at) = 0 and finished_at is null
            when status in ('pending', 'running', 'waiting', 'rolling_back') then num_nonnulls(owner, due_at) = 1 and finished_at is null
            else false
        end)
) with (fillfactor = 80);
comment on table runs is 'The index of runs: for listing, claiming and uniqueness. The truth is in the journal.';
create unique index runs_client_key on runs (client_key) where client_key is not null;
create unique index runs_exclusive_key on runs (exclusive_key) where exclusive_key is not null and finished_at is null;
create index runs_due on runs (priority, due_at) where due_at is not null;
create index runs_owner on runs (owner) where owner is not null;
create index runs_waiting_for_people on runs (status) where status in ('held', 'stuck', 'quarantined');

-- What did happen. Append-only: the primary key refuses two histories of one run.
create table journal (
    run_id     uuid        not null,
    seq        bigint      not null,
    claim      int         not null,
    epoch      bigint      not null,
    -- By the database's clock, as the writing node knew it.
    at         timestamptz not null,
    kind       text        not null,
    step       text,
    undo       boolean     not null,
    generation int         not null,
    attempt    int         not null,
    -- The idempotency key that the activity is given.
    key        uuid,
    -- The plan, an input, an output, an error: verbatim, hence json and not jsonb.
    body       json,
    primary key (run_id, seq)
-- A plan of some kilobytes stays in its row: it is read once, as a whole, and compressing it costs more than it saves.
) with (toast_tuple_target = 8160);
comment on table journal is 'The events of all runs, in the order they happened within each run.';

-- What a node hands to the journal in one statement: arrays of these. One array of rows costs Postgres a third of
-- an array for each column. They are not the tables' own row types, so that a table can get a column while nodes of
-- an earlier release still write.
create type new_run as (
    run_id uuid, workflow text, plan_hash text, activities text, priority smallint, labels text, client_key text,
    request_hash text, exclusive_key text, at timestamptz);
create type run_change as (
    run_id uuid, status text, release boolean, due_at timestamptz, note text, finished_at timestamptz);
create type new_event as (
    run_id uuid, seq bigint, claim int, epoch bigint, at timestamptz, kind text, step text, undo boolean,
    generation int, attempt int, key uuid, body text,
    -- Of a run that is new in the same write, and may be refused.
    fresh boolean);

-- For people: a line for each step and each undo that was begun.
create view steps as
select
    run_id,
    step,
    undo,
    max(generation) as generation,
    count(*) filter (where kind = 'started') as attempts,
    (array_agg(kind order by seq desc) filter (where kind not in ('checkpointed', 'progressed')))[1] as last_event,
    min(at) filter (where kind = 'started') as started_at,
    max(at) as last_at,
    (array_agg(body order by seq desc) filter (where kind = 'started' and body is not null))[1] as input,
    (array_agg(body order by seq desc) filter (where kind = 'succeeded'))[1] as output,
    (array_agg(body -> 'error' order by seq desc) filter (where kind = 'failed'))[1] as last_error
from journal
where step is not null
group by run_id, step, undo;
comment on view steps is 'A line for each step and each undo that was begun.';

-- For people: where each run is, who drives it and what it waits for.
create view run_status as
select
    r.run_id,
    r.workflow,
    r.status,
    case
        when r.finished_at is not null then 'it is over'
        when r.owner is not null and n.ended_at is not null then 'its node is gone; the next free node claims it'
        when r.owner is not null and n.lease_until < clock_timestamp() then 'its node has not renewed its lease'
        when r.owner is not null then 'node ' || n.name || ' drives it'
        when r.due_at is not null and r.due_at > clock_timestamp() then 'it goes on at ' || r.due_at
        when r.due_at is not null then 'it waits for a node that has its activities'
        else 'an operator must decide'
    end as explanation,
    r.note,
    r.labels,
    r.submitted_at,
    r.finished_at,
    (select count(*) from journal j where j.run_id = r.run_id) as events
from runs r
left join nodes n on n.epoch = r.owner;
comment on view run_status is 'Where each run is, who drives it and what it waits for.';
