-- What secrets need beside their text.
alter table secrets
    -- The programs, as the configuration names them, that may be given it.
    add column programs   text[] not null default '{}',
    -- Who set it last.
    add column changed_by text   not null default '';
