-- Who uses this database. Run once, by whoever runs the Postgres server, with psql; it asks for the passwords.
--   {owner}: brings the schema up to date, and does nothing else
--   {server}: what "backstay serve" and "backstay node" connect as
--   {reader}: people and dashboards
create role {owner} login;
create role {server} login;
create role {reader} login connection limit 20;
create database {database} owner {owner} template template0 encoding 'UTF8';
revoke all on database {database} from public;
grant connect on database {database} to {server}, {reader};
alter role {reader} in database {database} set default_transaction_read_only = on;
alter role {reader} in database {database} set statement_timeout = '30s';
