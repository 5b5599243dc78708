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
INSERT INTO "cleanup_audit" VALUES(1,'2026-11-29 16:41:49','cleaned','deleted_results',0,'root');
INSERT INTO "cleanup_audit" VALUES(2,'2026-11-29 16:41:52','trashed','trashed_results',0,'root');
CREATE TABLE cleanup_holds (
	job_id VARCHAR NOT NULL,
	reason TEXT,
	owner VARCHAR,
	until VARCHAR,
	created_at VARCHAR,
	PRIMARY KEY (job_id)
);
INSERT INTO "cleanup_holds" VALUES('held','for the thesis','root',NULL,'2026-11-29 16:41:50');
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
	error TEXT,
	created_at VARCHAR NOT NULL,
	PRIMARY KEY (id)
);
INSERT INTO "cleanup_intents" VALUES('20261129T164152-e2de.1','20261129T164152-e2de','job','trashed','trashed','completed','[["results", "trashed", true, "20261129T164152-e2de.1.1"]]',0,'2036-01-15 00:41:52',NULL,'2026-11-29 16:41:52');
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
INSERT INTO "cleanup_log" VALUES(1,'2026-11-29 16:41:49','20261129T164149-09ce','cleaned','failed','cleaned',12288,'deleted results/cleaned/ (12 KB)');
INSERT INTO "cleanup_log" VALUES(2,'2026-11-29 16:41:52','20261129T164152-e2de','trashed','completed','trashed',0,'in the trash: results/trashed/');
CREATE TABLE cleanup_roots (
	name VARCHAR NOT NULL,
	path VARCHAR,
	device BIGINT,
	inode BIGINT,
	marker VARCHAR,
	PRIMARY KEY (name)
);
INSERT INTO "cleanup_roots" VALUES('results','@STORE@/results',65024,2272785,'f86ceb432952f1cf597d80642076116e');
INSERT INTO "cleanup_roots" VALUES('uploads','@STORE@/uploads',65024,2272801,'fd349f843d59bb3b923477bfb51bdcb9');
INSERT INTO "cleanup_roots" VALUES('temp','@STORE@/temp',65024,2272817,'a228e212e3770590f8e91947a1e98178');
CREATE TABLE cleanup_runs (
	id VARCHAR NOT NULL,
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
INSERT INTO "cleanup_runs" VALUES('20261129T164149-09ce','2026-11-29 16:41:49','2026-11-29 16:41:49','manual','root','vm',5060,'Data of successful jobs is kept for 50000 hours after their end, of failed jobs for 1 hour. Logs of failed jobs (*.log, *.err, *.out) are kept. Metadata is kept for ever.','success',0,1,0,0,0,12288,NULL);
INSERT INTO "cleanup_runs" VALUES('20261129T164152-e2de','2026-11-29 16:41:52','2026-11-29 16:41:52','manual','root','vm',5174,'Data of successful jobs is kept for 7 days after their end, of failed jobs for 12 hours. Logs of failed jobs (*.log, *.err, *.out) are kept. Metadata is kept for ever.','success',1,0,0,0,0,0,NULL);
CREATE TABLE cleanup_sizes (
	job_id VARCHAR NOT NULL,
	status_class VARCHAR,
	bytes BIGINT,
	measured_at VARCHAR,
	PRIMARY KEY (job_id)
);
INSERT INTO "cleanup_sizes" VALUES('due','successful',12288,'2026-11-29 16:41:49');
INSERT INTO "cleanup_sizes" VALUES('held','successful',12288,'2026-11-29 16:41:49');
CREATE TABLE cleanup_storage (
	id INTEGER NOT NULL,
	timestamp VARCHAR,
	run_id VARCHAR,
	successful_bytes BIGINT,
	failed_bytes BIGINT,
	free_bytes BIGINT,
	total_bytes BIGINT,
	PRIMARY KEY (id)
);
INSERT INTO "cleanup_storage" VALUES(1,'2026-11-29 16:41:49','20261129T164149-09ce',36864,0,63459594240,270553174016);
INSERT INTO "cleanup_storage" VALUES(2,'2026-11-29 16:41:52','20261129T164152-e2de',24576,0,63459975168,270553174016);
CREATE TABLE jobs (id TEXT PRIMARY KEY, workflow_type TEXT NOT NULL, status TEXT NOT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, started_at TIMESTAMP, completed_at TIMESTAMP,
    parameters TEXT, dem_filename TEXT, error_message TEXT, progress INTEGER DEFAULT 0, data_cleaned_at TIMESTAMP, data_size_mb REAL DEFAULT 0, cleanup_summary TEXT);
INSERT INTO "jobs" VALUES('cleaned','sol','failed','2026-01-01 10:00:00','2026-01-01T10:01:00','2026-01-02T10:00:00','{}',NULL,NULL,100,'2026-11-29T16:41:49.745321',0.01171875,'deleted results/cleaned/ (12 KB)');
INSERT INTO "jobs" VALUES('trashed','sol','completed','2026-01-01 10:00:00','2026-01-01T10:01:00','2026-01-02T10:00:00','{}',NULL,NULL,100,'2026-11-29T16:41:52.410270',0.01171875,'in the trash: results/trashed/');
INSERT INTO "jobs" VALUES('held','sol','completed','2026-01-01 10:00:00','2026-01-01T10:01:00','2026-01-02T10:00:00','{}',NULL,NULL,100,NULL,0.01171875,NULL);
INSERT INTO "jobs" VALUES('due','sol','completed','2026-01-01 10:00:00','2026-01-01T10:01:00','2026-01-02T10:00:00','{}',NULL,NULL,100,NULL,0.01171875,NULL);
CREATE INDEX ix_cleanup_log_run_id ON cleanup_log (run_id);
COMMIT;
