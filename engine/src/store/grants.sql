-- What may be done in this database, and by whom. Run by its owner, after "backstay db migrate"; it can be run again.
-- Everything that is not listed is taken away.
begin;

do $$
declare
    it record;
begin
    -- One at a time: two who write the same rights at once are an error.
    perform pg_advisory_xact_lock(hashtextextended('backstay roles', 0));
    for it in select oid::regclass as name from pg_class
        where relnamespace = current_schema()::regnamespace and relkind in ('r', 'v', 'S') and pg_has_role(relowner, 'usage')
    loop
        execute format('revoke all on %s from public, {server}, {reader}', it.name);
    end loop;
    execute format('grant usage on schema %I to {server}, {reader}', current_schema());
end $$;

-- The server reads everything.
grant select on
    runs, journal, inbox, nodes, pools, pool_shares, retired_keys, principals, tokens, audit, audit_head, answers, secrets,
    facts, database_roles, _sqlx_migrations, events, steps, resources, run_status, silent_runs, node_status, pool_status
to {server};

-- It adds to the journal, and never changes what stands there. Of a run's row it changes where the run is, not what it is.
grant insert on runs, journal, inbox, nodes, pools, pool_shares, principals, tokens, answers, secrets, facts to {server};
grant update (status, owner, claim, due_at, crashes, note, finished_at, mail, told, failing) on runs to {server};
grant update (lease_until, ended_at, ended_why) on nodes to {server};
grant update (value, version, changed_by, changed_at) on facts to {server};
grant update (at_once, per_second, version, failures, down_since, why, declarer, tries, next_try, trier, back_since)
    on pools to {server};
grant update (slots, rate, busy, waiting, at) on pool_shares to {server};
grant update (roles, disabled_at, version) on principals to {server};
grant update (revoked_at, used_at) on tokens to {server};
grant update (key_id, sealed_key, sealed, origins, programs, version, changed_at, changed_by) on secrets to {server};
grant usage on sequence secret_versions to {server};
-- To lock the row, and no more: this column has one possible value.
grant update (one) on audit_head to {server};
grant delete on inbox, nodes, pool_shares, answers, secrets to {server};

-- Runs that are over are removed whole, and the audit trail grows at its end: by functions that run as the owner.
grant execute on function tell, audit_write, purge to {server};

-- People and dashboards read views, and facts: no tokens, no secrets, no answers, no audit trail.
grant select on steps, resources, run_status, silent_runs, node_status, pool_status, facts to {reader};

-- "backstay db migrate" tells them again about what is new.
insert into database_roles (server, reader) values ('{server}', '{reader}') on conflict do nothing;

commit;
