-- The tables of mysqllock. Apply this file, or call mysqllock.Migrate.
--
-- election_records: one row per election, rewritten by every renewal. All times
-- are UTC. leader_name is empty when the election was released; leader_uid says
-- which instance holds it, so that two processes with one name stay two. ready
-- is 0 while the leader can't do its work; step_down_uid is the leader_uid of the
-- leader that was asked to step down.
--
-- If the tables are of an earlier version, add the columns that are new:
--
--   ALTER TABLE election_records
--     ADD COLUMN ready         TINYINT     NOT NULL DEFAULT 1,
--     ADD COLUMN step_down_uid VARCHAR(64) NOT NULL DEFAULT x'';
CREATE TABLE IF NOT EXISTS election_records (
  election_name          VARCHAR(255) NOT NULL,
  leader_name            VARCHAR(255) NOT NULL,
  last_update            DATETIME(6)  NOT NULL,
  leader_uid             VARCHAR(64)  NOT NULL,
  lease_duration_seconds INT          NOT NULL DEFAULT 60,
  acquire_time           DATETIME(6)  NULL,
  renew_time             DATETIME(6)  NULL,
  leader_transitions     INT          NOT NULL DEFAULT 0,
  strategy               VARCHAR(255) NOT NULL,
  preferred_holder       VARCHAR(255) NOT NULL,
  server                 VARCHAR(255) NOT NULL,
  version                BIGINT       NOT NULL DEFAULT 0,
  ready                  TINYINT      NOT NULL DEFAULT 1,
  step_down_uid          VARCHAR(64)  NOT NULL DEFAULT x'',
  PRIMARY KEY (election_name)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- election_fences: one row per election, written only when a term begins. Its
-- row is what a leader's transaction locks, so that no term can begin before
-- that transaction ends; renewals never wait for it. guards counts the guards of
-- multi-writer clusters, where locking is not enough.
CREATE TABLE IF NOT EXISTS election_fences (
  election_name VARCHAR(255) NOT NULL,
  fencing_token BIGINT       NOT NULL,
  leader_uid    VARCHAR(64)  NOT NULL,
  guards        BIGINT       NOT NULL DEFAULT 0,
  PRIMARY KEY (election_name)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
