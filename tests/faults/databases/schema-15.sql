-- Version 15 of the schema; its runner's token is ac4a5c8fba5ca783ece44039f95c022c7b37710c
PRAGMA application_id = 1835230057;
PRAGMA user_version = 15;
BEGIN TRANSACTION;
CREATE TABLE artifact (
    id          INTEGER PRIMARY KEY,
    job_id      INTEGER NOT NULL REFERENCES job ON DELETE CASCADE,
    file_type   TEXT NOT NULL,      -- 'archive', 'junit', 'dotenv', ...
    file_format TEXT NOT NULL,      -- 'zip', 'gzip' or 'raw'
    filename    TEXT NOT NULL,      -- what the runner called it; only ever displayed
    stored_as   TEXT NOT NULL,      -- its name in the data directory
    size        INTEGER NOT NULL,   -- bytes
    sha256      TEXT NOT NULL,
    created_at  REAL NOT NULL,
    expire_at   REAL,               -- NULL: kept
    UNIQUE (job_id, file_type)
);
CREATE TABLE environment (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    name        TEXT NOT NULL,
    job_id      INTEGER REFERENCES job ON DELETE SET NULL,  -- the last that succeeded
    created_at  REAL NOT NULL,
    updated_at  REAL NOT NULL,
    UNIQUE (project_id, name)
);
INSERT INTO "environment" VALUES(1,1,'prod',NULL,1700000000.005,1700000000.005);
CREATE TABLE event (                -- a job or pipeline changed its status: told to hooks, then removed
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    kind        TEXT NOT NULL CHECK (kind IN ('job', 'pipeline')),
    object_id   INTEGER NOT NULL,   -- of the job or pipeline
    status      TEXT NOT NULL,      -- what it changed to
    before      TEXT NOT NULL       -- what it was
);
INSERT INTO "event" VALUES(1,'job',1,'pending','created');
INSERT INTO "event" VALUES(2,'job',4,'pending','created');
INSERT INTO "event" VALUES(3,'pipeline',1,'pending','created');
INSERT INTO "event" VALUES(4,'job',7,'pending','created');
INSERT INTO "event" VALUES(5,'job',10,'pending','created');
INSERT INTO "event" VALUES(6,'pipeline',2,'pending','created');
INSERT INTO "event" VALUES(7,'job',13,'pending','created');
INSERT INTO "event" VALUES(8,'job',16,'pending','created');
INSERT INTO "event" VALUES(9,'pipeline',3,'pending','created');
INSERT INTO "event" VALUES(10,'job',1,'running','pending');
INSERT INTO "event" VALUES(11,'pipeline',1,'running','pending');
INSERT INTO "event" VALUES(12,'job',1,'success','running');
INSERT INTO "event" VALUES(13,'job',5,'scheduled','created');
INSERT INTO "event" VALUES(14,'job',2,'pending','created');
INSERT INTO "event" VALUES(15,'job',3,'pending','created');
INSERT INTO "event" VALUES(16,'job',2,'running','pending');
CREATE TABLE job (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    pipeline_id INTEGER NOT NULL REFERENCES pipeline ON DELETE CASCADE,
    name        TEXT NOT NULL,
    stage       TEXT NOT NULL,
    stage_idx   INTEGER NOT NULL,   -- its stage's place in the pipeline, from 0
    status      TEXT NOT NULL CHECK (status IN (
                    'created', 'pending', 'running', 'success', 'failed', 'canceled', 'skipped', 'manual',
                    'scheduled', 'canceling', 'preparing', 'waiting_for_resource')),
    when_       TEXT NOT NULL CHECK (when_ IN ('on_success', 'on_failure', 'always', 'manual', 'delayed')),
    allow_failure INTEGER NOT NULL,
    retried     INTEGER NOT NULL DEFAULT 0, -- 1: a newer job of the same name stands in for it
    tag_set_id  INTEGER NOT NULL REFERENCES tag_set,
    shared      INTEGER NOT NULL,   -- its project's shared_runners_enabled, here for the index below
    runner_id   INTEGER REFERENCES runner ON DELETE SET NULL,
    token_hash  TEXT,               -- SHA-256 of the token made at its claim; NULL: no token works
    attempts    INTEGER NOT NULL DEFAULT 0, -- claims so far
    system_id   TEXT,               -- which of the runner's machines has it
    needs       TEXT,               -- JSON list of the names it waits for; NULL: the stages before its own
    resource_group TEXT,            -- one job of a group is queued or running at a time
    interruptible INTEGER NOT NULL, -- whether a newer pipeline of the ref may cancel it while it runs
    timeout     INTEGER,            -- seconds; NULL: the project's
    failure_reason TEXT,
    exit_code   INTEGER,
    trace_state TEXT,               -- JSON: what the last PUT said of the trace, how often it was refused
    coverage    REAL,               -- per cent
    user_id     INTEGER REFERENCES user,    -- who started or last played it
    created_at  REAL NOT NULL,
    queued_at   REAL,               -- when it became pending
    scheduled_at REAL,              -- when a delayed job is due
    started_at  REAL,
    finished_at REAL,
    erased_at   REAL,
    variables   TEXT NOT NULL DEFAULT '[]', -- JSON list given when it was played
    dotenv      TEXT NOT NULL DEFAULT '[]', -- JSON list from its dotenv report, for the jobs after it
    spec        TEXT NOT NULL       -- JSON of its JobSpec
, claimed_at REAL, failure_message TEXT, protected INTEGER NOT NULL DEFAULT 0, kind TEXT NOT NULL DEFAULT 'build' CHECK (kind IN ('build', 'bridge')), environment TEXT);
INSERT INTO "job" VALUES(1,1,1,'compile','build',1,'success','on_success',0,0,1,1,1,'4887cdc30033acbc288c2e006d58d105340dc1bdf4ab807a54724ca0e5960dd6',1,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,1700000000.0,1700000000.0,NULL,1700000180.0,1700000180.0,NULL,'[]','[]','{"name":"compile","script":["make"],"stage":"build","after_script":["true"],"when":"on_success","allow_failure":false,"allow_failure_exit_codes":[],"tag_list":["linux"],"variables":{"A":"1"},"image":{"name":"alpine:3"},"services":[{"name":"redis:7"}],"artifacts":[{"untracked":false,"paths":["out/"],"when":"on_success","expire_in":"1 week","artifact_type":"archive","artifact_format":"zip"},{"name":"junit.xml","paths":["r.xml"],"when":"always","untracked":false,"artifact_type":"junit","artifact_format":"gzip","expire_in":"1 week"}],"cache":[{"key":"k","untracked":false,"paths":["c/"],"policy":"pull-push","when":"on_success"}],"dependencies":null,"needs":null,"timeout":null,"start_in":null,"retry":null,"interruptible":false,"resource_group":null,"coverage":null,"environment":null,"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',1700000180.0,NULL,1,'build',NULL);
INSERT INTO "job" VALUES(2,1,1,'unit 1/2','test',2,'running','on_success',0,0,2,1,1,'eeecb744818632dfbde10c0f8812b90e729efd55c642ea2441df8a626fb45ac6',1,NULL,'["compile"]',NULL,0,3600,NULL,NULL,NULL,NULL,NULL,1700000000.001,1700000180.0,NULL,1700000180.0,NULL,NULL,'[]','[]','{"name":"unit 1/2","script":["make check"],"stage":"test","after_script":[],"when":"on_success","allow_failure":false,"allow_failure_exit_codes":[],"tag_list":[],"variables":{"A":"1","CI_NODE_INDEX":"1","CI_NODE_TOTAL":"2"},"image":null,"services":[],"artifacts":[],"cache":[],"dependencies":null,"needs":[{"name":"compile","artifacts":true}],"timeout":3600,"start_in":null,"retry":{"max":2,"when":["always"],"exit_codes":[]},"interruptible":false,"resource_group":null,"coverage":"\\d+%","environment":null,"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',1700000180.0,NULL,1,'build',NULL);
INSERT INTO "job" VALUES(3,1,1,'unit 2/2','test',2,'pending','on_success',0,0,2,1,NULL,NULL,0,NULL,'["compile"]',NULL,0,3600,NULL,NULL,NULL,NULL,NULL,1700000000.002,1700000180.0,NULL,NULL,NULL,NULL,'[]','[]','{"name":"unit 2/2","script":["make check"],"stage":"test","after_script":[],"when":"on_success","allow_failure":false,"allow_failure_exit_codes":[],"tag_list":[],"variables":{"A":"1","CI_NODE_INDEX":"2","CI_NODE_TOTAL":"2"},"image":null,"services":[],"artifacts":[],"cache":[],"dependencies":null,"needs":[{"name":"compile","artifacts":true}],"timeout":3600,"start_in":null,"retry":{"max":2,"when":["always"],"exit_codes":[]},"interruptible":false,"resource_group":null,"coverage":"\\d+%","environment":null,"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',NULL,NULL,1,'build',NULL);
INSERT INTO "job" VALUES(4,1,1,'lint','test',2,'pending','on_success',1,0,2,1,NULL,NULL,0,NULL,'[]',NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,1700000000.003,1700000000.0,NULL,NULL,NULL,NULL,'[]','[]','{"name":"lint","script":["lint"],"stage":"test","after_script":[],"when":"on_success","allow_failure":true,"allow_failure_exit_codes":[],"tag_list":[],"variables":{"A":"1"},"image":null,"services":[],"artifacts":[],"cache":[],"dependencies":null,"needs":[],"timeout":null,"start_in":null,"retry":null,"interruptible":false,"resource_group":null,"coverage":null,"environment":null,"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',NULL,NULL,1,'build',NULL);
INSERT INTO "job" VALUES(5,1,1,'later','test',2,'scheduled','delayed',0,0,2,1,NULL,NULL,0,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,1700000000.004,NULL,1700000480.0,NULL,NULL,NULL,'[]','[]','{"name":"later","script":["x"],"stage":"test","after_script":[],"when":"delayed","allow_failure":false,"allow_failure_exit_codes":[],"tag_list":[],"variables":{"A":"1"},"image":null,"services":[],"artifacts":[],"cache":[],"dependencies":null,"needs":null,"timeout":null,"start_in":300,"retry":null,"interruptible":false,"resource_group":null,"coverage":null,"environment":null,"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',NULL,NULL,1,'build',NULL);
INSERT INTO "job" VALUES(6,1,1,'ship','deploy',3,'created','manual',1,0,2,1,NULL,NULL,0,NULL,NULL,'prod',0,NULL,NULL,NULL,NULL,NULL,NULL,1700000000.005,NULL,NULL,NULL,NULL,NULL,'[]','[]','{"name":"ship","script":["ship"],"stage":"deploy","after_script":[],"when":"manual","allow_failure":true,"allow_failure_exit_codes":[],"tag_list":[],"variables":{"A":"1"},"image":null,"services":[],"artifacts":[],"cache":[],"dependencies":null,"needs":null,"timeout":null,"start_in":null,"retry":null,"interruptible":false,"resource_group":"prod","coverage":null,"environment":{"name":"prod"},"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',NULL,NULL,1,'build','prod');
INSERT INTO "job" VALUES(7,1,2,'compile','build',1,'pending','on_success',0,0,1,1,NULL,NULL,0,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,1700000060.0,1700000060.0,NULL,NULL,NULL,NULL,'[]','[]','{"name":"compile","script":["make"],"stage":"build","after_script":["true"],"when":"on_success","allow_failure":false,"allow_failure_exit_codes":[],"tag_list":["linux"],"variables":{"A":"1"},"image":{"name":"alpine:3"},"services":[{"name":"redis:7"}],"artifacts":[{"untracked":false,"paths":["out/"],"when":"on_success","expire_in":"1 week","artifact_type":"archive","artifact_format":"zip"},{"name":"junit.xml","paths":["r.xml"],"when":"always","untracked":false,"artifact_type":"junit","artifact_format":"gzip","expire_in":"1 week"}],"cache":[{"key":"k","untracked":false,"paths":["c/"],"policy":"pull-push","when":"on_success"}],"dependencies":null,"needs":null,"timeout":null,"start_in":null,"retry":null,"interruptible":false,"resource_group":null,"coverage":null,"environment":null,"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',NULL,NULL,1,'build',NULL);
INSERT INTO "job" VALUES(8,1,2,'unit 1/2','test',2,'created','on_success',0,0,2,1,NULL,NULL,0,NULL,'["compile"]',NULL,0,3600,NULL,NULL,NULL,NULL,NULL,1700000060.001,NULL,NULL,NULL,NULL,NULL,'[]','[]','{"name":"unit 1/2","script":["make check"],"stage":"test","after_script":[],"when":"on_success","allow_failure":false,"allow_failure_exit_codes":[],"tag_list":[],"variables":{"A":"1","CI_NODE_INDEX":"1","CI_NODE_TOTAL":"2"},"image":null,"services":[],"artifacts":[],"cache":[],"dependencies":null,"needs":[{"name":"compile","artifacts":true}],"timeout":3600,"start_in":null,"retry":{"max":2,"when":["always"],"exit_codes":[]},"interruptible":false,"resource_group":null,"coverage":"\\d+%","environment":null,"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',NULL,NULL,1,'build',NULL);
INSERT INTO "job" VALUES(9,1,2,'unit 2/2','test',2,'created','on_success',0,0,2,1,NULL,NULL,0,NULL,'["compile"]',NULL,0,3600,NULL,NULL,NULL,NULL,NULL,1700000060.002,NULL,NULL,NULL,NULL,NULL,'[]','[]','{"name":"unit 2/2","script":["make check"],"stage":"test","after_script":[],"when":"on_success","allow_failure":false,"allow_failure_exit_codes":[],"tag_list":[],"variables":{"A":"1","CI_NODE_INDEX":"2","CI_NODE_TOTAL":"2"},"image":null,"services":[],"artifacts":[],"cache":[],"dependencies":null,"needs":[{"name":"compile","artifacts":true}],"timeout":3600,"start_in":null,"retry":{"max":2,"when":["always"],"exit_codes":[]},"interruptible":false,"resource_group":null,"coverage":"\\d+%","environment":null,"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',NULL,NULL,1,'build',NULL);
INSERT INTO "job" VALUES(10,1,2,'lint','test',2,'pending','on_success',1,0,2,1,NULL,NULL,0,NULL,'[]',NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,1700000060.003,1700000060.0,NULL,NULL,NULL,NULL,'[]','[]','{"name":"lint","script":["lint"],"stage":"test","after_script":[],"when":"on_success","allow_failure":true,"allow_failure_exit_codes":[],"tag_list":[],"variables":{"A":"1"},"image":null,"services":[],"artifacts":[],"cache":[],"dependencies":null,"needs":[],"timeout":null,"start_in":null,"retry":null,"interruptible":false,"resource_group":null,"coverage":null,"environment":null,"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',NULL,NULL,1,'build',NULL);
INSERT INTO "job" VALUES(11,1,2,'later','test',2,'created','delayed',0,0,2,1,NULL,NULL,0,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,1700000060.004,NULL,NULL,NULL,NULL,NULL,'[]','[]','{"name":"later","script":["x"],"stage":"test","after_script":[],"when":"delayed","allow_failure":false,"allow_failure_exit_codes":[],"tag_list":[],"variables":{"A":"1"},"image":null,"services":[],"artifacts":[],"cache":[],"dependencies":null,"needs":null,"timeout":null,"start_in":300,"retry":null,"interruptible":false,"resource_group":null,"coverage":null,"environment":null,"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',NULL,NULL,1,'build',NULL);
INSERT INTO "job" VALUES(12,1,2,'ship','deploy',3,'created','manual',1,0,2,1,NULL,NULL,0,NULL,NULL,'prod',0,NULL,NULL,NULL,NULL,NULL,NULL,1700000060.005,NULL,NULL,NULL,NULL,NULL,'[]','[]','{"name":"ship","script":["ship"],"stage":"deploy","after_script":[],"when":"manual","allow_failure":true,"allow_failure_exit_codes":[],"tag_list":[],"variables":{"A":"1"},"image":null,"services":[],"artifacts":[],"cache":[],"dependencies":null,"needs":null,"timeout":null,"start_in":null,"retry":null,"interruptible":false,"resource_group":"prod","coverage":null,"environment":{"name":"prod"},"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',NULL,NULL,1,'build','prod');
INSERT INTO "job" VALUES(13,1,3,'compile','build',1,'pending','on_success',0,0,1,1,NULL,NULL,0,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,1700000120.0,1700000120.0,NULL,NULL,NULL,NULL,'[]','[]','{"name":"compile","script":["make"],"stage":"build","after_script":["true"],"when":"on_success","allow_failure":false,"allow_failure_exit_codes":[],"tag_list":["linux"],"variables":{"A":"1"},"image":{"name":"alpine:3"},"services":[{"name":"redis:7"}],"artifacts":[{"untracked":false,"paths":["out/"],"when":"on_success","expire_in":"1 week","artifact_type":"archive","artifact_format":"zip"},{"name":"junit.xml","paths":["r.xml"],"when":"always","untracked":false,"artifact_type":"junit","artifact_format":"gzip","expire_in":"1 week"}],"cache":[{"key":"k","untracked":false,"paths":["c/"],"policy":"pull-push","when":"on_success"}],"dependencies":null,"needs":null,"timeout":null,"start_in":null,"retry":null,"interruptible":false,"resource_group":null,"coverage":null,"environment":null,"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',NULL,NULL,1,'build',NULL);
INSERT INTO "job" VALUES(14,1,3,'unit 1/2','test',2,'created','on_success',0,0,2,1,NULL,NULL,0,NULL,'["compile"]',NULL,0,3600,NULL,NULL,NULL,NULL,NULL,1700000120.001,NULL,NULL,NULL,NULL,NULL,'[]','[]','{"name":"unit 1/2","script":["make check"],"stage":"test","after_script":[],"when":"on_success","allow_failure":false,"allow_failure_exit_codes":[],"tag_list":[],"variables":{"A":"1","CI_NODE_INDEX":"1","CI_NODE_TOTAL":"2"},"image":null,"services":[],"artifacts":[],"cache":[],"dependencies":null,"needs":[{"name":"compile","artifacts":true}],"timeout":3600,"start_in":null,"retry":{"max":2,"when":["always"],"exit_codes":[]},"interruptible":false,"resource_group":null,"coverage":"\\d+%","environment":null,"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',NULL,NULL,1,'build',NULL);
INSERT INTO "job" VALUES(15,1,3,'unit 2/2','test',2,'created','on_success',0,0,2,1,NULL,NULL,0,NULL,'["compile"]',NULL,0,3600,NULL,NULL,NULL,NULL,NULL,1700000120.002,NULL,NULL,NULL,NULL,NULL,'[]','[]','{"name":"unit 2/2","script":["make check"],"stage":"test","after_script":[],"when":"on_success","allow_failure":false,"allow_failure_exit_codes":[],"tag_list":[],"variables":{"A":"1","CI_NODE_INDEX":"2","CI_NODE_TOTAL":"2"},"image":null,"services":[],"artifacts":[],"cache":[],"dependencies":null,"needs":[{"name":"compile","artifacts":true}],"timeout":3600,"start_in":null,"retry":{"max":2,"when":["always"],"exit_codes":[]},"interruptible":false,"resource_group":null,"coverage":"\\d+%","environment":null,"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',NULL,NULL,1,'build',NULL);
INSERT INTO "job" VALUES(16,1,3,'lint','test',2,'pending','on_success',1,0,2,1,NULL,NULL,0,NULL,'[]',NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,1700000120.003,1700000120.0,NULL,NULL,NULL,NULL,'[]','[]','{"name":"lint","script":["lint"],"stage":"test","after_script":[],"when":"on_success","allow_failure":true,"allow_failure_exit_codes":[],"tag_list":[],"variables":{"A":"1"},"image":null,"services":[],"artifacts":[],"cache":[],"dependencies":null,"needs":[],"timeout":null,"start_in":null,"retry":null,"interruptible":false,"resource_group":null,"coverage":null,"environment":null,"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',NULL,NULL,1,'build',NULL);
INSERT INTO "job" VALUES(17,1,3,'later','test',2,'created','delayed',0,0,2,1,NULL,NULL,0,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,1700000120.004,NULL,NULL,NULL,NULL,NULL,'[]','[]','{"name":"later","script":["x"],"stage":"test","after_script":[],"when":"delayed","allow_failure":false,"allow_failure_exit_codes":[],"tag_list":[],"variables":{"A":"1"},"image":null,"services":[],"artifacts":[],"cache":[],"dependencies":null,"needs":null,"timeout":null,"start_in":300,"retry":null,"interruptible":false,"resource_group":null,"coverage":null,"environment":null,"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',NULL,NULL,1,'build',NULL);
INSERT INTO "job" VALUES(18,1,3,'ship','deploy',3,'created','manual',1,0,2,1,NULL,NULL,0,NULL,NULL,'prod',0,NULL,NULL,NULL,NULL,NULL,NULL,1700000120.005,NULL,NULL,NULL,NULL,NULL,'[]','[]','{"name":"ship","script":["ship"],"stage":"deploy","after_script":[],"when":"manual","allow_failure":true,"allow_failure_exit_codes":[],"tag_list":[],"variables":{"A":"1"},"image":null,"services":[],"artifacts":[],"cache":[],"dependencies":null,"needs":null,"timeout":null,"start_in":null,"retry":null,"interruptible":false,"resource_group":"prod","coverage":null,"environment":{"name":"prod"},"hooks":{},"raw_variables":[],"manual_confirmation":null,"release":null,"pages":null,"trigger":null,"cross_needs":[],"id_tokens":[]}',NULL,NULL,1,'build','prod');
CREATE TABLE job_need (             -- the names in job.needs
    pipeline_id INTEGER NOT NULL,
    name        TEXT NOT NULL,      -- of the job that is needed
    job_id      INTEGER NOT NULL REFERENCES job ON DELETE CASCADE,  -- the job that needs it
    PRIMARY KEY (pipeline_id, name, job_id)
) WITHOUT ROWID;
INSERT INTO "job_need" VALUES(1,'compile',2);
INSERT INTO "job_need" VALUES(1,'compile',3);
INSERT INTO "job_need" VALUES(2,'compile',8);
INSERT INTO "job_need" VALUES(2,'compile',9);
INSERT INTO "job_need" VALUES(3,'compile',14);
INSERT INTO "job_need" VALUES(3,'compile',15);
CREATE TABLE job_tally (            -- how many jobs of a project have a status
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    status      TEXT NOT NULL,
    jobs        INTEGER NOT NULL,
    PRIMARY KEY (project_id, status)
) WITHOUT ROWID;
INSERT INTO "job_tally" VALUES(1,'created',9);
INSERT INTO "job_tally" VALUES(1,'pending',6);
INSERT INTO "job_tally" VALUES(1,'running',1);
INSERT INTO "job_tally" VALUES(1,'scheduled',1);
INSERT INTO "job_tally" VALUES(1,'success',1);
CREATE TABLE job_token_allowlist (  -- whose jobs may start pipelines of a project
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    allowed_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    PRIMARY KEY (project_id, allowed_id)
) WITHOUT ROWID;
CREATE TABLE live_ref (             -- refs of old pipelines that their repository still had
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    ref         TEXT NOT NULL,
    seen_at     REAL NOT NULL,      -- when the repository was last seen to have it
    PRIMARY KEY (project_id, ref)
) WITHOUT ROWID;
CREATE TABLE namespace (            -- what stands before the last slash of projects' paths
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    path        TEXT NOT NULL UNIQUE    -- '' for projects without a namespace
);
INSERT INTO "namespace" VALUES(1,'group');
CREATE TABLE pipeline (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    iid         INTEGER NOT NULL,   -- its number within the project
    ref         TEXT NOT NULL,      -- branch or tag name
    tag         INTEGER NOT NULL,   -- whether `ref` is a tag
    name        TEXT,               -- from workflow:name
    auto_cancel TEXT NOT NULL,      -- workflow:auto_cancel:on_new_commit
    sha         TEXT NOT NULL,
    before_sha  TEXT NOT NULL,      -- 40 zeros when unknown
    source      TEXT NOT NULL,      -- 'api', 'push', 'web', ...
    status      TEXT NOT NULL,      -- composite_status() of its latest jobs
    variables   TEXT NOT NULL,      -- JSON list of {key, value, ...} given when it was made
    commit_info TEXT,               -- JSON: the commit's message, author and dates; NULL when it could not be read
    user_id     INTEGER REFERENCES user,
    created_at  REAL NOT NULL,
    updated_at  REAL NOT NULL,
    started_at  REAL,
    finished_at REAL, schedule_id INTEGER REFERENCES pipeline_schedule ON DELETE SET NULL, merge_request TEXT, protected INTEGER NOT NULL DEFAULT 0, bridge_id INTEGER REFERENCES job ON DELETE SET NULL, auto_cancel_failure TEXT NOT NULL DEFAULT 'none', fetched_by TEXT NOT NULL DEFAULT 'ref' CHECK (fetched_by IN (
    'ref',      -- it was what the ref pointed to
    'history',  -- it was an older commit of the ref
    'sha')),
    UNIQUE (project_id, iid)
);
INSERT INTO "pipeline" VALUES(1,1,1,'main',0,NULL,'conservative','0123456789abcdef0123456789abcdef01234567','0000000000000000000000000000000000000000','api','running','[]',NULL,NULL,1700000000.0,1700000180.0,1700000180.0,NULL,NULL,NULL,1,NULL,'none','ref');
INSERT INTO "pipeline" VALUES(2,1,2,'main',0,NULL,'conservative','0123456789abcdef0123456789abcdef01234567','0000000000000000000000000000000000000000','api','pending','[]',NULL,NULL,1700000060.0,1700000060.0,NULL,NULL,NULL,NULL,1,NULL,'none','ref');
INSERT INTO "pipeline" VALUES(3,1,3,'main',0,NULL,'conservative','0123456789abcdef0123456789abcdef01234567','0000000000000000000000000000000000000000','api','pending','[]',NULL,NULL,1700000120.0,1700000120.0,NULL,NULL,NULL,NULL,1,NULL,'none','ref');
CREATE TABLE pipeline_schedule (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    description TEXT NOT NULL,
    ref         TEXT NOT NULL,      -- branch or tag, or its full name
    cron        TEXT NOT NULL,      -- five fields
    cron_timezone TEXT NOT NULL,    -- as in the tz database: 'UTC', 'Europe/Berlin'
    active      INTEGER NOT NULL,
    variables   TEXT NOT NULL,      -- JSON list of {key, value, variable_type, raw}
    inputs      TEXT NOT NULL,      -- JSON object
    user_id     INTEGER REFERENCES user,    -- its owner
    next_run_at REAL,               -- NULL: it never runs
    created_at  REAL NOT NULL,
    updated_at  REAL NOT NULL
);
CREATE TABLE private_token (
    token_hash  TEXT PRIMARY KEY,   -- SHA-256 of what the client sends as PRIVATE-TOKEN
    user_id     INTEGER NOT NULL REFERENCES user,
    scope       TEXT NOT NULL CHECK (scope IN ('api', 'read_api')),
    created_at  REAL NOT NULL
, description TEXT NOT NULL DEFAULT '', expires_at REAL, last_used_at REAL) WITHOUT ROWID;
CREATE TABLE project (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    path            TEXT NOT NULL UNIQUE,       -- with its namespace: 'group/demo'
    name            TEXT NOT NULL,              -- for people
    import_url      TEXT,                       -- handed to runners as it is; NULL: pipelines bring sha and content
    default_branch  TEXT NOT NULL,
    runners_token   TEXT NOT NULL UNIQUE,       -- registers runners for this project alone; readable, people copy it
    webhook_token   TEXT NOT NULL,              -- a forge proves itself with it; readable, people copy it
    shared_runners_enabled INTEGER NOT NULL,    -- whether instance runners may take its jobs
    build_timeout   INTEGER NOT NULL,           -- seconds a job may run when it does not say
    allow_git_fetch INTEGER NOT NULL,           -- whether runners may fetch into an old working copy
    last_iid        INTEGER NOT NULL DEFAULT 0, -- the newest pipeline's number within the project
    created_at      REAL NOT NULL
, fork_pipelines INTEGER NOT NULL DEFAULT 0, description TEXT, visibility TEXT NOT NULL DEFAULT 'private' CHECK (visibility IN ('private', 'public')), ci_config_path TEXT NOT NULL DEFAULT '', protected_refs TEXT);
INSERT INTO "project" VALUES(1,'group/demo','demo',NULL,'main','mcg-1-7250809c5e6a93f8c2064823f7002554dd612472','mcw-e909a1fe9402e794b0d71da95e1cfa2fb799b995',1,3600,1,3,1700000000.0,0,NULL,'private','',NULL);
CREATE TABLE "queue_version" (                -- one row: the value that X-GitLab-Last-Update carries
    version INTEGER NOT NULL        -- grows whenever a job may have become claimable
);
INSERT INTO "queue_version" VALUES(9);
CREATE TABLE release (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    tag         TEXT NOT NULL,
    name        TEXT NOT NULL,
    description TEXT NOT NULL,
    sha         TEXT,               -- the commit of the tag; NULL: unknown, for want of a repository
    links       TEXT NOT NULL,      -- JSON list of {id, name, url, direct_asset_path, link_type}
    milestones  TEXT NOT NULL,      -- JSON list of titles
    user_id     INTEGER REFERENCES user,
    created_at  REAL NOT NULL,
    released_at REAL NOT NULL,
    UNIQUE (project_id, tag)
);
CREATE TABLE runner (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    token_hash      TEXT NOT NULL UNIQUE,       -- SHA-256 of the runner's own token
    runner_type     TEXT NOT NULL CHECK (runner_type IN ('instance_type', 'project_type')),
    creator_id      INTEGER REFERENCES user,    -- who made it; NULL: it registered itself
    description     TEXT NOT NULL,
    tags            TEXT NOT NULL,              -- sorted JSON list
    run_untagged    INTEGER NOT NULL,
    locked          INTEGER NOT NULL,           -- may not be enabled in further projects
    active          INTEGER NOT NULL,           -- 0: paused
    access_level    TEXT NOT NULL CHECK (access_level IN ('not_protected', 'ref_protected')),
    maximum_timeout INTEGER,                    -- seconds; caps every job's own timeout
    maintenance_note TEXT,
    info            TEXT NOT NULL,              -- what it last said of itself: name, version, platform, ...
    ip_address      TEXT,
    created_at      REAL NOT NULL,
    contacted_at    REAL                        -- written at most once a minute
);
INSERT INTO "runner" VALUES(1,'b552c50e044b6449e6df8c6e33fd9209bdb5516be603cef899b088114dea7758','instance_type',NULL,'','["linux"]',1,0,1,'not_protected',NULL,NULL,'{}',NULL,1700000000.0,NULL);
CREATE TABLE runner_manager (       -- the machines that share one runner's token
    runner_id    INTEGER NOT NULL REFERENCES runner ON DELETE CASCADE,
    system_id    TEXT NOT NULL,     -- 's_...' or 'r_...', the machine's own word
    info         TEXT NOT NULL,     -- as runner.info, of this machine
    ip_address   TEXT,
    created_at   REAL NOT NULL,
    contacted_at REAL NOT NULL,
    PRIMARY KEY (runner_id, system_id)
) WITHOUT ROWID;
CREATE TABLE runner_project (       -- the projects of a project runner
    runner_id   INTEGER NOT NULL REFERENCES runner ON DELETE CASCADE,
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    PRIMARY KEY (runner_id, project_id)
) WITHOUT ROWID;
CREATE TABLE runner_tag_set (       -- which sets of tags a runner serves: a claim looks nowhere else
    runner_id   INTEGER NOT NULL REFERENCES runner ON DELETE CASCADE,
    tag_set_id  INTEGER NOT NULL REFERENCES tag_set,
    PRIMARY KEY (runner_id, tag_set_id)
) WITHOUT ROWID;
INSERT INTO "runner_tag_set" VALUES(1,1);
INSERT INTO "runner_tag_set" VALUES(1,2);
CREATE TABLE session (              -- a browser that is signed in
    session_hash TEXT PRIMARY KEY,  -- SHA-256 of the cookie
    user_id     INTEGER NOT NULL REFERENCES user,
    scope       TEXT NOT NULL CHECK (scope IN ('api', 'read_api')),
    token_hash  TEXT REFERENCES private_token ON DELETE CASCADE,    -- of the token it was made with; NULL: a link
    created_at  REAL NOT NULL,
    expires_at  REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE setting (              -- single facts about this installation
    key     TEXT PRIMARY KEY,       -- 'instance', 'registration_token'
    value   TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO "setting" VALUES('instance','86349b8eb528e1c1');
INSERT INTO "setting" VALUES('registration_token','mcg-27e9c757830a93f26450bb4b407511799ff05066');
CREATE TABLE tag_set (              -- each distinct set of tags that a job ever asked for
    id      INTEGER PRIMARY KEY,
    tags    TEXT NOT NULL UNIQUE    -- sorted JSON list; '[]' stands for untagged jobs
);
INSERT INTO "tag_set" VALUES(1,'["linux"]');
INSERT INTO "tag_set" VALUES(2,'[]');
CREATE TABLE test_case (
    id          INTEGER PRIMARY KEY,
    job_id      INTEGER NOT NULL REFERENCES job ON DELETE CASCADE,
    status      TEXT NOT NULL CHECK (status IN ('success', 'failed', 'skipped', 'error')),
    suite       TEXT NOT NULL,      -- the innermost test suite
    classname   TEXT NOT NULL,
    name        TEXT NOT NULL,
    file        TEXT NOT NULL,      -- '' when the report does not say
    time        REAL NOT NULL,      -- seconds
    message     TEXT NOT NULL,      -- why it failed, was skipped or had an error, in a line
    output      TEXT NOT NULL,      -- the same at length
    attachment  TEXT NOT NULL,      -- path of a screenshot among the job's artifacts
    flaky       INTEGER NOT NULL    -- it passed after it had failed
);
CREATE TABLE test_report (          -- the junit report of a job
    job_id      INTEGER PRIMARY KEY REFERENCES job ON DELETE CASCADE,
    success     INTEGER NOT NULL,   -- test cases by status
    failed      INTEGER NOT NULL,
    skipped     INTEGER NOT NULL,
    error       INTEGER NOT NULL,
    total_time  REAL NOT NULL,      -- seconds
    suite_error TEXT                -- what was wrong with the files; NULL: nothing
);
CREATE TABLE trigger_token (        -- starts pipelines of one project
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id  INTEGER NOT NULL REFERENCES project ON DELETE CASCADE,
    token       TEXT NOT NULL,      -- readable, people copy it
    description TEXT NOT NULL,
    user_id     INTEGER NOT NULL REFERENCES user,
    created_at  REAL NOT NULL,
    updated_at  REAL NOT NULL,
    last_used   REAL
);
CREATE TABLE user (                 -- the owner of private tokens; there are no passwords
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    username    TEXT NOT NULL UNIQUE,
    created_at  REAL NOT NULL
);
CREATE TABLE variable (             -- of a project, or of the whole instance
    id            INTEGER PRIMARY KEY,
    project_id    INTEGER REFERENCES project ON DELETE CASCADE, -- NULL: all projects
    key           TEXT NOT NULL,
    value         TEXT NOT NULL,
    variable_type TEXT NOT NULL CHECK (variable_type IN ('env_var', 'file')),
    masked        INTEGER NOT NULL, -- runners put asterisks in its place in traces
    protected     INTEGER NOT NULL, -- only for pipelines of the default branch
    raw           INTEGER NOT NULL, -- `$` in it means nothing
    description   TEXT
, environment_scope TEXT NOT NULL DEFAULT '*', hidden INTEGER NOT NULL DEFAULT 0);
CREATE INDEX trigger_of_project ON trigger_token (project_id);
CREATE INDEX pipeline_ref ON pipeline (project_id, ref, status, id);
CREATE INDEX job_of_project ON job (project_id, id);
CREATE INDEX job_of_pipeline ON job (pipeline_id, stage_idx, id);
CREATE INDEX job_of_runner ON job (runner_id, id);
CREATE INDEX job_token ON job (token_hash) WHERE token_hash IS NOT NULL;
CREATE INDEX job_scheduled ON job (scheduled_at) WHERE status = 'scheduled';
CREATE INDEX job_of_group ON job (project_id, resource_group, id) WHERE resource_group IS NOT NULL;
CREATE INDEX job_alive ON job (id) WHERE status IN ('running', 'canceling');
CREATE TRIGGER job_enqueued AFTER UPDATE OF status ON job WHEN NEW.status = 'pending'
BEGIN UPDATE "queue_version" SET version = version + 1; END;
CREATE TRIGGER job_created_pending AFTER INSERT ON job WHEN NEW.status = 'pending'
BEGIN UPDATE "queue_version" SET version = version + 1; END;
CREATE TRIGGER runner_changed AFTER UPDATE OF tags, run_untagged, active, runner_type, access_level ON runner
BEGIN UPDATE "queue_version" SET version = version + 1; END;
CREATE TRIGGER runner_enabled AFTER INSERT ON runner_project
BEGIN UPDATE "queue_version" SET version = version + 1; END;
CREATE TRIGGER job_shared AFTER UPDATE OF shared ON job
BEGIN UPDATE "queue_version" SET version = version + 1; END;
CREATE TRIGGER job_status AFTER UPDATE OF status ON job WHEN NEW.status <> OLD.status
BEGIN INSERT INTO event (kind, object_id, status, before) VALUES ('job', NEW.id, NEW.status, OLD.status); END;
CREATE TRIGGER pipeline_status AFTER UPDATE OF status ON pipeline WHEN NEW.status <> OLD.status
BEGIN INSERT INTO event (kind, object_id, status, before) VALUES ('pipeline', NEW.id, NEW.status, OLD.status); END;
CREATE INDEX artifact_expiry ON artifact (expire_at) WHERE expire_at IS NOT NULL;
CREATE INDEX pipeline_of_project ON pipeline (project_id, id);
CREATE INDEX pipeline_of_project_ref ON pipeline (project_id, ref, id);
CREATE INDEX pipeline_of_project_status ON pipeline (project_id, status, id);
CREATE INDEX pipeline_of_ref ON pipeline (ref, id);
CREATE INDEX pipeline_of_ref_status ON pipeline (ref, status, id);
CREATE INDEX pipeline_status ON pipeline (status, id);
CREATE INDEX pipeline_of_sha ON pipeline (sha, id);
CREATE INDEX job_queue ON job (id) WHERE status = 'pending';
CREATE INDEX job_of_tag_set ON job (tag_set_id);
CREATE INDEX schedule_of_project ON pipeline_schedule (project_id, id);
CREATE INDEX schedule_due ON pipeline_schedule (next_run_at) WHERE active;
CREATE INDEX pipeline_of_schedule ON pipeline (schedule_id, id) WHERE schedule_id IS NOT NULL;
CREATE INDEX job_of_project_status ON job (project_id, status, id);
CREATE INDEX test_case_of_job ON test_case (job_id, status);
CREATE UNIQUE INDEX variable_key ON variable (coalesce(project_id, 0), key, environment_scope);
CREATE INDEX job_outcome ON job (pipeline_id, status, allow_failure, stage_idx) WHERE retried = 0;
CREATE INDEX job_name ON job (pipeline_id, name);
CREATE INDEX job_next ON job (pipeline_id, stage_idx) WHERE retried = 0 AND status = 'created' AND needs IS NULL;
CREATE INDEX job_need_of_job ON job_need (job_id, name);
CREATE TRIGGER job_needs AFTER INSERT ON job WHEN NEW.needs IS NOT NULL
BEGIN
    INSERT OR IGNORE INTO job_need SELECT NEW.pipeline_id, value, NEW.id FROM json_each(NEW.needs);
END;
CREATE INDEX job_pending_shared ON job (tag_set_id, id) WHERE status = 'pending' AND token_hash IS NULL AND shared = 1;
CREATE INDEX job_pending_project ON job (project_id, tag_set_id, id) WHERE status = 'pending' AND token_hash IS NULL;
CREATE INDEX job_prepared ON job (id) WHERE status = 'pending' AND token_hash IS NOT NULL;
CREATE INDEX job_protected_shared ON job (tag_set_id, id)
    WHERE status = 'pending' AND token_hash IS NULL AND shared = 1 AND protected = 1;
CREATE INDEX job_protected_project ON job (project_id, tag_set_id, id)
    WHERE status = 'pending' AND token_hash IS NULL AND protected = 1;
CREATE UNIQUE INDEX pipeline_of_bridge ON pipeline (bridge_id) WHERE bridge_id IS NOT NULL;
CREATE TRIGGER job_counted AFTER INSERT ON job WHEN NEW.kind = 'build'
BEGIN
    INSERT INTO job_tally VALUES (NEW.project_id, NEW.status, 1) ON CONFLICT DO UPDATE SET jobs = jobs + 1;
END;
CREATE TRIGGER job_recounted AFTER UPDATE OF status ON job WHEN NEW.status <> OLD.status AND NEW.kind = 'build'
BEGIN
    UPDATE job_tally SET jobs = jobs - 1 WHERE project_id = OLD.project_id AND status = OLD.status;
    INSERT INTO job_tally VALUES (NEW.project_id, NEW.status, 1) ON CONFLICT DO UPDATE SET jobs = jobs + 1;
END;
CREATE TRIGGER job_uncounted AFTER DELETE ON job WHEN OLD.kind = 'build'
BEGIN
    UPDATE job_tally SET jobs = jobs - 1 WHERE project_id = OLD.project_id AND status = OLD.status;
END;
CREATE INDEX session_of_token ON session (token_hash);
CREATE INDEX environment_job ON environment (job_id);
CREATE TRIGGER environment_made AFTER INSERT ON job WHEN NEW.environment IS NOT NULL
BEGIN
    INSERT OR IGNORE INTO environment (project_id, name, created_at, updated_at)
    VALUES (NEW.project_id, NEW.environment, NEW.created_at, NEW.created_at);
END;
CREATE TRIGGER environment_changed AFTER UPDATE OF status ON job
WHEN NEW.environment IS NOT NULL AND NEW.status = 'success' AND OLD.status <> 'success'
BEGIN
    UPDATE environment
       SET job_id = NEW.id, updated_at = NEW.finished_at
     WHERE project_id = NEW.project_id AND name = NEW.environment;
END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('namespace',1);
INSERT INTO "sqlite_sequence" VALUES('environment',3);
INSERT INTO "sqlite_sequence" VALUES('project',1);
INSERT INTO "sqlite_sequence" VALUES('runner',1);
INSERT INTO "sqlite_sequence" VALUES('pipeline',3);
INSERT INTO "sqlite_sequence" VALUES('job',18);
INSERT INTO "sqlite_sequence" VALUES('event',16);
COMMIT;
