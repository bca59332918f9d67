-- What has to look at every row. The check takes no lock that hurts.
alter table runs validate constraint runs_wake_reason;
