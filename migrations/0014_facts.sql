-- Facts: named values that steps change by compare-and-set, in the very commit that journals their success. So what stands
-- here and what the journals say can never differ, and of two runs that want the same change one is told of the other.
create table facts (
    name       text primary key check (length(name) between 1 and 200),
    value      text        not null check (length(value) <= 1000),
    -- Counts its changes. Whoever changes it names the version that he has seen.
    version    bigint      not null check (version > 0),
    -- The run whose step changed it last. That run may have been removed since; what it said stands until another says
    -- something else, so this is no foreign key, and removing runs removes no fact.
    changed_by uuid        not null,
    changed_at timestamptz not null default clock_timestamp()
) with (fillfactor = 70);
comment on table facts is 'Named values that steps change by compare-and-set, in the commit of their success.';
