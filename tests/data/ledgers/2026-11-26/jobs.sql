BEGIN TRANSACTION;
CREATE TABLE cleanup_audit (
	id INTEGER NOT NULL,
	timestamp VARCHAR DEFAULT CURRENT_TIMESTAMP,
	job_id VARCHAR,
	action VARCHAR,
	space_freed_mb INTEGER,
	user VARCHAR,
	PRIMARY KEY (id)
);
INSERT INTO "cleanup_audit" VALUES(1,'2026-11-29 16:41:55','cleaned','deleted_results',0,'root');
INSERT INTO "cleanup_audit" VALUES(2,'2026-11-29 16:41:58','trashed','trashed_results',0,'root');
CREATE TABLE cleanup_holds (
	job_id VARCHAR NOT NULL,
	reason TEXT,
	owner VARCHAR,
	until VARCHAR,
	created_at VARCHAR,
	PRIMARY KEY (job_id)
);
INSERT INTO "cleanup_holds" VALUES('held','for the thesis','root',NULL,'2026-11-29 16:41:56');
CREATE TABLE cleanup_intents (
	id VARCHAR NOT NULL,
	run_id VARCHAR NOT NULL,
	kind VARCHAR NOT NULL,
	state VARCHAR NOT NULL,
	job_id VARCHAR,
	status VARCHAR,
	artifacts TEXT NOT NULL,
	bytes_freed BIGINT DEFAULT 0 NOT NULL,
	purge_after VARCHAR,
	size_bytes BIGINT DEFAULT 0 NOT NULL,
	error TEXT,
	created_at VARCHAR NOT NULL,
	PRIMARY KEY (id)
);
INSERT INTO "cleanup_intents" VALUES('20261129T164158-5bb0.1','20261129T164158-5bb0','job','trashed','trashed','completed','[["results", "trashed", true, "20261129T164158-5bb0.1.1"]]',0,'2036-01-15 00:41:58',12288,NULL,'2026-11-29 16:41:58');
CREATE TABLE cleanup_log (
	id INTEGER NOT NULL,
	timestamp VARCHAR DEFAULT CURRENT_TIMESTAMP,
	run_id VARCHAR,
	job_id VARCHAR,
	status VARCHAR,
	action VARCHAR,
	bytes_freed BIGINT,
	message TEXT,
	PRIMARY KEY (id)
);
INSERT INTO "cleanup_log" VALUES(1,'2026-11-29 16:41:55','20261129T164154-ce85','cleaned','failed','cleaned',12288,'deleted results/cleaned/ (12 KB)');
INSERT INTO "cleanup_log" VALUES(2,'2026-11-29 16:41:58','20261129T164158-5bb0','trashed','completed','trashed',0,'in the trash: results/trashed/');
CREATE TABLE cleanup_notifiers (
	name VARCHAR NOT NULL,
	delivered INTEGER NOT NULL,
	retried INTEGER NOT NULL,
	failed INTEGER NOT NULL,
	dropped INTEGER NOT NULL,
	last_delivered_at VARCHAR,
	last_error TEXT,
	last_error_at VARCHAR,
	PRIMARY KEY (name)
);
INSERT INTO "cleanup_notifiers" VALUES('webhook',0,2,0,0,NULL,'no connection (Connection refused)','2026-11-29 16:42:02');
CREATE TABLE cleanup_outbox (
	id INTEGER NOT NULL,
	notifier VARCHAR NOT NULL,
	event VARCHAR NOT NULL,
	payload TEXT NOT NULL,
	created_at VARCHAR NOT NULL,
	due_at VARCHAR NOT NULL,
	attempts INTEGER NOT NULL,
	error TEXT,
	PRIMARY KEY (id)
);
INSERT INTO "cleanup_outbox" VALUES(1,'webhook','run_finished','{"report": {"run_id": "20261129T164158-5bb0", "dry_run": false, "trigger": "manual", "user": "root", "started_at": "2026-11-29T16:41:58.316458+00:00", "finished_at": "2026-11-29T16:41:58.456762+00:00", "outcome": "success", "successful": {"jobs": 1, "bytes_freed": 0}, "failed": {"jobs": 0, "bytes_freed": 0}, "orphans": {"jobs": 0, "bytes_freed": 0}, "trash_purged": {"jobs": 0, "bytes_freed": 0}, "orphans_found": 0, "missing": 0, "skipped": 0, "errors": 0, "remaining": 0, "early": {"jobs": 0, "bytes_freed": 0}, "pressure": null, "host": "vm", "biggest": [{"job_id": "trashed", "status": "completed", "bytes_freed": 0, "words": ""}], "failures": [], "vetoed": [], "storage": {"successful_bytes": 24576, "failed_bytes": 0, "free_bytes": 63458787328, "total_bytes": 270553174016, "trash_jobs": 1, "trash_bytes": 12288, "trend": [{"at": "2026-11-29T16:41:58+00:00", "used_bytes": 24576, "free_bytes": 63458787328}], "capacity_max_bytes": null}, "totals": [{"name": "bytes_freed", "label": "", "value": 12288.0}, {"name": "errors", "label": "", "value": 0.0}, {"name": "jobs_cleaned", "label": "completed", "value": 1.0}, {"name": "jobs_cleaned", "label": "failed", "value": 1.0}, {"name": "run_seconds", "label": "", "value": 0.394536}, {"name": "run_seconds_bucket", "label": "1", "value": 2.0}, {"name": "run_seconds_bucket", "label": "14400", "value": 2.0}, {"name": "run_seconds_bucket", "label": "15", "value": 2.0}, {"name": "run_seconds_bucket", "label": "300", "value": 2.0}, {"name": "run_seconds_bucket", "label": "3600", "value": 2.0}, {"name": "run_seconds_bucket", "label": "5", "value": 2.0}, {"name": "run_seconds_bucket", "label": "60", "value": 2.0}, {"name": "run_seconds_bucket", "label": "900", "value": 2.0}, {"name": "runs", "label": "success", "value": 2.0}, {"name": "skipped", "label": "", "value": 0.0}], "next_run_at": null, "is_test": false}}','2026-11-29 16:41:58','2026-11-29 16:42:08',2,'no connection (Connection refused)');
CREATE TABLE cleanup_roots (
	name VARCHAR NOT NULL,
	path VARCHAR,
	device BIGINT,
	inode BIGINT,
	marker VARCHAR,
	PRIMARY KEY (name)
);
INSERT INTO "cleanup_roots" VALUES('results','@STORE@/results',65024,2273249,'39eb2d3be61746aebc7c5f78bf20986e');
INSERT INTO "cleanup_roots" VALUES('uploads','@STORE@/uploads',65024,2273265,'8a309a25b535b2297937eef7cbfd652c');
INSERT INTO "cleanup_roots" VALUES('temp','@STORE@/temp',65024,2273281,'9ab51977620781de0781d91bd33b1cfe');
CREATE TABLE cleanup_runs (
	id VARCHAR NOT NULL,
	number INTEGER,
	started_at VARCHAR NOT NULL,
	finished_at VARCHAR,
	"trigger" VARCHAR,
	user VARCHAR,
	host VARCHAR,
	pid INTEGER,
	policy TEXT,
	outcome VARCHAR,
	successful INTEGER DEFAULT 0,
	failed INTEGER DEFAULT 0,
	orphans INTEGER DEFAULT 0,
	skipped INTEGER DEFAULT 0,
	errors INTEGER DEFAULT 0,
	bytes_freed BIGINT DEFAULT 0,
	error TEXT,
	PRIMARY KEY (id)
);
INSERT INTO "cleanup_runs" VALUES('20261129T164154-ce85',1,'2026-11-29 16:41:54','2026-11-29 16:41:55','manual','root','vm',5199,'Data of successful jobs is kept for 50000 hours after their end, of failed jobs for 1 hour. Logs of failed jobs (*.log, *.err, *.out) are kept. Metadata is kept for ever.','success',0,1,0,0,0,12288,NULL);
INSERT INTO "cleanup_runs" VALUES('20261129T164158-5bb0',2,'2026-11-29 16:41:58','2026-11-29 16:41:58','manual','root','vm',5209,'Data of successful jobs is kept for 7 days after their end, of failed jobs for 12 hours. Logs of failed jobs (*.log, *.err, *.out) are kept. Metadata is kept for ever.','success',1,0,0,0,0,0,NULL);
CREATE TABLE cleanup_sizes (
	job_id VARCHAR NOT NULL,
	status_class VARCHAR,
	bytes BIGINT,
	measured_at VARCHAR,
	PRIMARY KEY (job_id)
);
INSERT INTO "cleanup_sizes" VALUES('due','successful',12288,'2026-11-29 16:41:55');
INSERT INTO "cleanup_sizes" VALUES('held','successful',12288,'2026-11-29 16:41:55');
CREATE TABLE cleanup_storage (
	id INTEGER NOT NULL,
	timestamp VARCHAR,
	run_id VARCHAR,
	successful_bytes BIGINT,
	failed_bytes BIGINT,
	free_bytes BIGINT,
	total_bytes BIGINT,
	capacity_level INTEGER,
	PRIMARY KEY (id)
);
INSERT INTO "cleanup_storage" VALUES(1,'2026-11-29 16:41:55','20261129T164154-ce85',36864,0,63477727232,270553174016,0);
INSERT INTO "cleanup_storage" VALUES(2,'2026-11-29 16:41:58','20261129T164158-5bb0',24576,0,63458787328,270553174016,0);
CREATE TABLE cleanup_totals (
	name VARCHAR NOT NULL,
	label VARCHAR NOT NULL,
	value FLOAT NOT NULL,
	PRIMARY KEY (name, label)
);
INSERT INTO "cleanup_totals" VALUES('runs','success',2.0);
INSERT INTO "cleanup_totals" VALUES('run_seconds','',0.394536);
INSERT INTO "cleanup_totals" VALUES('run_seconds_bucket','1',2.0);
INSERT INTO "cleanup_totals" VALUES('run_seconds_bucket','5',2.0);
INSERT INTO "cleanup_totals" VALUES('run_seconds_bucket','15',2.0);
INSERT INTO "cleanup_totals" VALUES('run_seconds_bucket','60',2.0);
INSERT INTO "cleanup_totals" VALUES('run_seconds_bucket','300',2.0);
INSERT INTO "cleanup_totals" VALUES('run_seconds_bucket','900',2.0);
INSERT INTO "cleanup_totals" VALUES('run_seconds_bucket','3600',2.0);
INSERT INTO "cleanup_totals" VALUES('run_seconds_bucket','14400',2.0);
INSERT INTO "cleanup_totals" VALUES('jobs_cleaned','failed',1.0);
INSERT INTO "cleanup_totals" VALUES('bytes_freed','',12288.0);
INSERT INTO "cleanup_totals" VALUES('errors','',0.0);
INSERT INTO "cleanup_totals" VALUES('skipped','',0.0);
INSERT INTO "cleanup_totals" VALUES('jobs_cleaned','completed',1.0);
CREATE TABLE jobs (id TEXT PRIMARY KEY, workflow_type TEXT NOT NULL, status TEXT NOT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, started_at TIMESTAMP, completed_at TIMESTAMP,
    parameters TEXT, dem_filename TEXT, error_message TEXT, progress INTEGER DEFAULT 0, data_cleaned_at TIMESTAMP, data_size_mb REAL DEFAULT 0, cleanup_summary TEXT);
INSERT INTO "jobs" VALUES('cleaned','sol','failed','2026-01-01 10:00:00','2026-01-01T10:01:00','2026-01-02T10:00:00','{}',NULL,NULL,100,'2026-11-29T16:41:55.135445',0.01171875,'deleted results/cleaned/ (12 KB)');
INSERT INTO "jobs" VALUES('trashed','sol','completed','2026-01-01 10:00:00','2026-01-01T10:01:00','2026-01-02T10:00:00','{}',NULL,NULL,100,'2026-11-29T16:41:58.420195',0.01171875,'in the trash: results/trashed/');
INSERT INTO "jobs" VALUES('held','sol','completed','2026-01-01 10:00:00','2026-01-01T10:01:00','2026-01-02T10:00:00','{}',NULL,NULL,100,NULL,0.01171875,NULL);
INSERT INTO "jobs" VALUES('due','sol','completed','2026-01-01 10:00:00','2026-01-01T10:01:00','2026-01-02T10:00:00','{}',NULL,NULL,100,NULL,0.01171875,NULL);
CREATE INDEX ix_cleanup_log_run_id ON cleanup_log (run_id);
CREATE INDEX ix_cleanup_outbox_notifier ON cleanup_outbox (notifier);
COMMIT;
