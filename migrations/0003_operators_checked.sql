-- What has to look at every row. The check takes no lock that hurts. The two indexes hold off writes while they are
-- built: whoever has a journal of many millions of events builds them beforehand, concurrently, under these names, and
-- they are found here.
alter table runs validate constraint runs_wake_reason;

-- A message is answered once.
create unique index if not exists journal_answers on journal (key) where kind in ('acted', 'refused');

-- Live runs that wait for people, or for a signal: those that no other index of live runs has.
create index if not exists runs_at_rest on runs (status) where owner is null and due_at is null and finished_at is null;
drop index runs_waiting_for_people;
