-- Run as superuser on the primary, in each database that a pool leads to:
--   psql -d app -f roles.sql
-- and then, once, give the role a password. psql asks for it, and sends no more than its SCRAM secret:
--   psql -d app -c "SET password_encryption = 'scram-sha-256'" -c '\password pgbouncer_auth'
SELECT 'CREATE ROLE pgbouncer_auth LOGIN'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pgbouncer_auth') \gexec

CREATE SCHEMA IF NOT EXISTS pgbouncer;
REVOKE ALL ON SCHEMA pgbouncer FROM PUBLIC;
GRANT USAGE ON SCHEMA pgbouncer TO pgbouncer_auth;

-- The SCRAM secret of an ordinary role, and no other's.
CREATE OR REPLACE FUNCTION pgbouncer.secret(INOUT usename name, OUT passwd text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT rolname, rolpassword FROM pg_authid
    WHERE rolname = usename AND rolcanlogin AND NOT rolsuper AND NOT rolreplication
      AND (rolvaliduntil IS NULL OR rolvaliduntil > now())
$$;
REVOKE ALL ON FUNCTION pgbouncer.secret(name) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pgbouncer.secret(name) TO pgbouncer_auth;
