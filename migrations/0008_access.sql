-- Who may speak to this installation, and what they did that no run's journal holds. What is done to a run stands in
-- its journal, with who and why; everything else that is changed, and every attempt that was refused, stands here.

-- People and programs. Roles are read when they are used: taking one away works at once, whoever holds which token.
create table principals (
    name        text        primary key check (name ~ '^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$'),
    roles       text[]      not null,
    created_at  timestamptz not null default clock_timestamp(),
    disabled_at timestamptz,
    -- Counts its changes: whoever changes it says which state he saw.
    version     int         not null default 1
);
comment on table principals is 'Who may speak to this installation.';

-- What a principal shows. The text of a token is known to its owner alone.
create table tokens (
    token_id   uuid        primary key,
    principal  text        not null references principals,
    hash       bytea       not null unique check (octet_length(hash) = 32),
    label      text        not null,
    -- At most these rights, and only about runs of these workflows; null: whatever the principal may.
    rights     text[],
    workflows  text[],
    created_at timestamptz not null default clock_timestamp(),
    created_by text        not null,
    expires_at timestamptz not null,
    revoked_at timestamptz,
    used_at    timestamptz
);
comment on table tokens is 'What principals show. Only hashes: a copy of this table opens nothing.';
create index tokens_of on tokens (principal);

-- Append-only, and chained: each row's hash is over the row before it.
create table audit (
    nr    bigint      primary key,
    at    timestamptz not null,
    -- Verbatim, since the hash is over the text.
    entry json        not null,
    hash  bytea       not null check (octet_length(hash) = 32)
);
comment on table audit is 'Changes that no journal holds, and refused attempts; each row is chained to the one before.';
create table audit_head (
    one  boolean primary key default true check (one),
    nr   bigint  not null,
    hash bytea   not null
);
comment on table audit_head is 'The end of the chain. Whoever writes to it waits for the one before.';
insert into audit_head (nr, hash) values (0, sha256('backstay audit'::bytea));

-- Appends to the chain, in the commit of whatever it is about. Called last, and where a change was made at all, which
-- is why it stands in a `where` over the change: from here to the commit others wait.
create function audit_write(entries text[]) returns bigint
language plpgsql volatile as $$
declare
    head    audit_head%rowtype;
    line    text;
    written timestamptz;
begin
    select * into strict head from audit_head for update;
    foreach line in array entries loop
        written := clock_timestamp();
        head.nr := head.nr + 1;
        head.hash := sha256(head.hash || convert_to(
            head.nr || E'\n' || (extract(epoch from written) * 1000000)::bigint || E'\n' || line, 'UTF8'));
        insert into audit (nr, at, entry, hash) values (head.nr, written, line::json, head.hash);
    end loop;
    update audit_head set nr = head.nr, hash = head.hash;
    return head.nr;
end $$;

-- What was answered to changes that are no run's: whoever asks the same again under the same key gets it again.
create table answers (
    principal text        not null,
    key       text        not null,
    -- A digest of what was asked.
    asked     bytea       not null,
    status    smallint    not null,
    -- Sealed: some answers can be given once only.
    answer    bytea       not null,
    at        timestamptz not null default clock_timestamp(),
    primary key (principal, key)
);
comment on table answers is 'Answers to changes, for those who ask again because the first answer was lost.';
create index answers_old on answers (at);

-- Secrets, sealed: each under a key of its own, and that key under the installation's.
create table secrets (
    name       text        primary key check (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$'),
    -- Which of the installation's keys seals its own.
    key_id     text        not null,
    sealed_key bytea       not null,
    sealed     bytea       not null,
    -- Where it may be sent.
    origins    text[]      not null default '{}',
    version    int         not null default 1,
    changed_at timestamptz not null default clock_timestamp()
);
comment on table secrets is 'Secrets that activities name. Sealed: a copy of this table shows nothing.';
