-- A store of tables version 1, by sqlite3's dump of one that gouache's code filled before there were migrations.
BEGIN TRANSACTION;
CREATE TABLE accounts (
	name VARCHAR(128) NOT NULL, 
	password TEXT, 
	created FLOAT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "accounts" VALUES('bob',NULL,1.5);
CREATE TABLE boards (
	id VARCHAR(32) NOT NULL, 
	owner VARCHAR(128) NOT NULL, 
	name VARCHAR(128) NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT one_board_per_name UNIQUE (owner, name)
);
INSERT INTO "boards" VALUES('b8031b76de38431a8033bcef536670df','ada','best');
CREATE TABLE errands (
	id VARCHAR(32) NOT NULL, 
	created FLOAT NOT NULL, 
	model TEXT NOT NULL, 
	factor FLOAT NOT NULL, 
	worker VARCHAR(128), 
	done BOOLEAN NOT NULL, 
	error TEXT, 
	PRIMARY KEY (id)
);
INSERT INTO "errands" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',1.79574202527919125557e+09,'tiny',2.5,NULL,0,NULL);
INSERT INTO "errands" VALUES('bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',1.7957420252798092365e+09,'tiny',2.0,'old:1:1',1,'["upscaler", "x", "y", "Try a smaller one."]');
INSERT INTO "errands" VALUES('cccccccccccccccccccccccccccccccc',1.79574202528030061722e+09,'tiny',2.0,'old:1:1',0,NULL);
CREATE TABLE events (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	job VARCHAR(32) NOT NULL, 
	time FLOAT NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	detail TEXT NOT NULL, 
	FOREIGN KEY(job) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO "events" VALUES(1,'3aad9d8db2d549938ef4ef00a5d4627a',1.79574202516354584696e+09,'queued','');
INSERT INTO "events" VALUES(2,'3aad9d8db2d549938ef4ef00a5d4627a',1.7957420251861319542e+09,'running','old:1:1');
INSERT INTO "events" VALUES(3,'3aad9d8db2d549938ef4ef00a5d4627a',1.79574202518858242038e+09,'picture','3aad9d8db2d549938ef4ef00a5d4627a-0000');
INSERT INTO "events" VALUES(4,'3aad9d8db2d549938ef4ef00a5d4627a',1.79574202519449400896e+09,'done','');
INSERT INTO "events" VALUES(5,'6e73fc37f04647158d639fe9e5d5304f',1795742025.22972,'queued','');
INSERT INTO "events" VALUES(6,'6e73fc37f04647158d639fe9e5d5304f',1.79574202523960494998e+09,'running','old:1:1');
INSERT INTO "events" VALUES(7,'6e73fc37f04647158d639fe9e5d5304f',1.79574202524256443976e+09,'failed','');
INSERT INTO "events" VALUES(8,'e525d0e327da49f2899cc93f80a9890d',1.79574202524553036691e+09,'queued','');
INSERT INTO "events" VALUES(9,'e525d0e327da49f2899cc93f80a9890d',1.79574202525505089754e+09,'running','old:1:1');
INSERT INTO "events" VALUES(10,'04989b21ad1742ca83cb872a1731a276',1.79574202526154351241e+09,'queued','');
INSERT INTO "events" VALUES(11,'ebe3daa3dad54fbe9cde9f25f164b5e5',1.79574202526844191544e+09,'queued','');
INSERT INTO "events" VALUES(12,'ebe3daa3dad54fbe9cde9f25f164b5e5',1.79574202527496910091e+09,'cancelled','');
CREATE TABLE jobs (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id VARCHAR(32) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	owner VARCHAR(128) NOT NULL, 
	source VARCHAR(16) NOT NULL, 
	label VARCHAR(256) NOT NULL, 
	priority INTEGER NOT NULL, 
	request TEXT NOT NULL, 
	fingerprint VARCHAR(64) NOT NULL, 
	idempotency_key VARCHAR(256), 
	attempts INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	started FLOAT, 
	finished FLOAT, 
	worker VARCHAR(128), 
	lease_until FLOAT, 
	cancel_requested BOOLEAN NOT NULL, 
	watched_until FLOAT NOT NULL, 
	picture INTEGER NOT NULL, 
	pictures INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	steps INTEGER NOT NULL, 
	error TEXT, 
	CONSTRAINT one_job_per_key UNIQUE (owner, idempotency_key), 
	UNIQUE (id)
);
INSERT INTO "jobs" VALUES(1,'3aad9d8db2d549938ef4ef00a5d4627a','done','ada','v1','first',0,'{"prompt":"a red fox, 狐狸","negative_prompt":"","style":null,"emphasis":"a1111","clip_skip":null,"model":null,"seed":1,"subseed":null,"subseed_strength":0.0,"determinism":"exact","count":1,"width":null,"height":null,"background":null,"best_of":1,"num_inference_steps":null,"guidance_scale":null,"guidance_rescale":0.0,"guidance_interval":null,"apg":null,"image_guidance_scale":null,"sampler":null,"schedule":null,"sigmas":null,"eta":null,"churn":null,"init_image":null,"strength":null,"depth_image":null,"control":[],"resize_mode":"crop","mask":null,"outpaint":null,"inversion":null,"interpolation":null,"hires":null,"tiled":null,"vae_tiling":false,"seamless":"none","upscale":null,"prior":null,"watermark":null,"safety":"off"}','569ba090a4a5a3ef9e5ba167a7d8a4ff2d1d63c0db060a3f60d662f5fda5f30c','k1',1,1.79574202515505552298e+09,1.795742025173353672e+09,1.79574202519269227984e+09,NULL,NULL,0,0.0,1,1,0,0,NULL);
INSERT INTO "jobs" VALUES(2,'6e73fc37f04647158d639fe9e5d5304f','failed','ada','v1','',0,'{"prompt":"no such model","negative_prompt":"","style":null,"emphasis":"a1111","clip_skip":null,"model":null,"seed":1,"subseed":null,"subseed_strength":0.0,"determinism":"exact","count":1,"width":null,"height":null,"background":null,"best_of":1,"num_inference_steps":null,"guidance_scale":null,"guidance_rescale":0.0,"guidance_interval":null,"apg":null,"image_guidance_scale":null,"sampler":null,"schedule":null,"sigmas":null,"eta":null,"churn":null,"init_image":null,"strength":null,"depth_image":null,"control":[],"resize_mode":"crop","mask":null,"outpaint":null,"inversion":null,"interpolation":null,"hires":null,"tiled":null,"vae_tiling":false,"seamless":"none","upscale":null,"prior":null,"watermark":null,"safety":"off"}','869dee07dc31606c7e0c2043c7faf6209c6f9735d99862ee1142f1c20a7696b2',NULL,1,1.7957420252224504947e+09,1.79574202523436188697e+09,1.79574202524003243442e+09,NULL,NULL,0,0.0,0,1,0,0,'{"kind": "ModelNotFound", "where": "model", "given": "''gone''", "expected": "one of pocket", "cure": "Choose one of them.", "message": "model: given ''gone'', expected one of pocket. Choose one of them."}');
INSERT INTO "jobs" VALUES(3,'e525d0e327da49f2899cc93f80a9890d','running','ada','v1','',0,'{"prompt":"runs","negative_prompt":"","style":null,"emphasis":"a1111","clip_skip":null,"model":null,"seed":1,"subseed":null,"subseed_strength":0.0,"determinism":"exact","count":1,"width":null,"height":null,"background":null,"best_of":1,"num_inference_steps":null,"guidance_scale":null,"guidance_rescale":0.0,"guidance_interval":null,"apg":null,"image_guidance_scale":null,"sampler":null,"schedule":null,"sigmas":null,"eta":null,"churn":null,"init_image":null,"strength":null,"depth_image":null,"control":[],"resize_mode":"crop","mask":null,"outpaint":null,"inversion":null,"interpolation":null,"hires":null,"tiled":null,"vae_tiling":false,"seamless":"none","upscale":null,"prior":null,"watermark":null,"safety":"off"}','30646f153f227fbc89461ac58fb988cd3bca2e6ef305579c544f5e31095414f4',NULL,1,1.79574202524428677557e+09,1.79574202525316143036e+09,NULL,'old:1:1',4.79574202525316143014e+09,0,0.0,0,1,3,20,NULL);
INSERT INTO "jobs" VALUES(4,'04989b21ad1742ca83cb872a1731a276','queued','ada','v1','',2,'{"prompt":"waits","negative_prompt":"","style":null,"emphasis":"a1111","clip_skip":null,"model":null,"seed":1,"subseed":null,"subseed_strength":0.0,"determinism":"exact","count":1,"width":null,"height":null,"background":null,"best_of":1,"num_inference_steps":null,"guidance_scale":null,"guidance_rescale":0.0,"guidance_interval":null,"apg":null,"image_guidance_scale":null,"sampler":null,"schedule":null,"sigmas":null,"eta":null,"churn":null,"init_image":null,"strength":null,"depth_image":null,"control":[],"resize_mode":"crop","mask":null,"outpaint":null,"inversion":null,"interpolation":null,"hires":null,"tiled":null,"vae_tiling":false,"seamless":"none","upscale":null,"prior":null,"watermark":null,"safety":"off"}','cd396e00bc17a50217c047c8594d94207b64702f7b06c499f2ec8cde11199657',NULL,0,1.7957420252599260807e+09,NULL,NULL,NULL,NULL,0,0.0,0,1,0,0,NULL);
INSERT INTO "jobs" VALUES(5,'ebe3daa3dad54fbe9cde9f25f164b5e5','cancelled','ada','v1','',0,'{"prompt":"cancelled","negative_prompt":"","style":null,"emphasis":"a1111","clip_skip":null,"model":null,"seed":1,"subseed":null,"subseed_strength":0.0,"determinism":"exact","count":1,"width":null,"height":null,"background":null,"best_of":1,"num_inference_steps":null,"guidance_scale":null,"guidance_rescale":0.0,"guidance_interval":null,"apg":null,"image_guidance_scale":null,"sampler":null,"schedule":null,"sigmas":null,"eta":null,"churn":null,"init_image":null,"strength":null,"depth_image":null,"control":[],"resize_mode":"crop","mask":null,"outpaint":null,"inversion":null,"interpolation":null,"hires":null,"tiled":null,"vae_tiling":false,"seamless":"none","upscale":null,"prior":null,"watermark":null,"safety":"off"}','c95ca2c0c19ec0b95d3356d6270cace91737b7219cf8126ad22dd1a6387c6d45',NULL,0,1.79574202526578927041e+09,NULL,1.79574202527445459364e+09,NULL,NULL,0,0.0,0,1,0,0,NULL);
CREATE TABLE meanings (
	picture VARCHAR(40) NOT NULL, 
	space VARCHAR(80) NOT NULL, 
	vector BLOB NOT NULL, 
	PRIMARY KEY (picture, space), 
	FOREIGN KEY(picture) REFERENCES pictures (id) ON DELETE CASCADE
);
INSERT INTO "meanings" VALUES('3aad9d8db2d549938ef4ef00a5d4627a-0000','pictures:cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd',X'003C0000');
CREATE TABLE meta (
	"key" VARCHAR(64) NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('schema','1');
INSERT INTO "meta" VALUES('secret','4cf4ba320eb330e89b0cab26fb39deb89f43544b31b2a990424f292b8f4afee5');
CREATE TABLE models (
	path TEXT NOT NULL, 
	size BIGINT NOT NULL, 
	modified FLOAT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	PRIMARY KEY (path)
);
INSERT INTO "models" VALUES('/models/a.safetensors',12,2.5,'abababababababababababababababababababababababababababababababab');
CREATE TABLE options (
	owner VARCHAR(128) NOT NULL, 
	"key" VARCHAR(64) NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY (owner, "key")
);
INSERT INTO "options" VALUES('ada','sd_model_checkpoint','"pocket"');
CREATE TABLE pictures (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id VARCHAR(40) NOT NULL, 
	job VARCHAR(32) NOT NULL, 
	number INTEGER NOT NULL, 
	owner VARCHAR(128) NOT NULL, 
	created FLOAT NOT NULL, 
	file VARCHAR(64) NOT NULL, 
	bytes BIGINT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	width INTEGER NOT NULL, 
	height INTEGER NOT NULL, 
	prompt TEXT NOT NULL, 
	seed BIGINT NOT NULL, 
	model TEXT NOT NULL, 
	recipe TEXT NOT NULL, 
	starred BOOLEAN NOT NULL, 
	deleted FLOAT, 
	board VARCHAR(32), 
	CONSTRAINT one_picture_per_number UNIQUE (job, number), 
	UNIQUE (id), 
	FOREIGN KEY(job) REFERENCES jobs (id), 
	UNIQUE (file), 
	FOREIGN KEY(board) REFERENCES boards (id) ON DELETE SET NULL
);
INSERT INTO "pictures" VALUES(1,'3aad9d8db2d549938ef4ef00a5d4627a-0000','3aad9d8db2d549938ef4ef00a5d4627a',0,'ada',1.79574202518690443034e+09,'3aad9d8db2d549938ef4ef00a5d4627a-0000.png',7,'2cea274d0bedc39ec4ab6ba9e59ec889e3ed6fb56a1cf088a64d9b383378dc97',8,8,'a red fox, 狐狸',1,'m','{"recipe":2,"request":{"prompt":"a red fox, 狐狸","negative_prompt":"","style":null,"emphasis":"a1111","clip_skip":null,"model":null,"seed":1,"subseed":null,"subseed_strength":0.0,"determinism":"exact","count":1,"width":null,"height":null,"background":null,"best_of":1,"num_inference_steps":null,"guidance_scale":null,"guidance_rescale":0.0,"guidance_interval":null,"apg":null,"image_guidance_scale":null,"sampler":null,"schedule":null,"sigmas":null,"eta":null,"churn":null,"init_image":null,"strength":null,"depth_image":null,"control":[],"resize_mode":"crop","mask":null,"outpaint":null,"inversion":null,"interpolation":null,"hires":null,"tiled":null,"vae_tiling":false,"seamless":"none","upscale":null,"prior":null,"watermark":null,"safety":"off"},"model":{"name":"m","family":"sd1","sha256":null,"path":null},"machine":{"device":"cpu","dtype":"float32","processor":"x","threads":1},"versions":{},"adapters":[],"attachments":{},"notes":[],"steps":[],"pixels":null}',1,NULL,'b8031b76de38431a8033bcef536670df');
CREATE TABLE presets (
	owner VARCHAR(128) NOT NULL, 
	name VARCHAR(128) NOT NULL, 
	prompt TEXT NOT NULL, 
	negative_prompt TEXT NOT NULL, 
	request TEXT NOT NULL, 
	PRIMARY KEY (owner, name)
);
INSERT INTO "presets" VALUES('ada','ink','{prompt}, ink','photo','{}');
CREATE TABLE previews (
	job VARCHAR(32) NOT NULL, 
	number INTEGER NOT NULL, 
	jpeg BLOB NOT NULL, 
	PRIMARY KEY (job), 
	FOREIGN KEY(job) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO "previews" VALUES('e525d0e327da49f2899cc93f80a9890d',3,X'6A706567');
CREATE TABLE questions (
	id VARCHAR(64) NOT NULL, 
	text TEXT NOT NULL, 
	created FLOAT NOT NULL, 
	space VARCHAR(80), 
	vector BLOB, 
	error TEXT, 
	PRIMARY KEY (id)
);
INSERT INTO "questions" VALUES('1111111111111111111111111111111111111111111111111111111111111111','a fox on water',1.79574202527791643149e+09,'pictures:cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd',X'003C0000',NULL);
INSERT INTO "questions" VALUES('2222222222222222222222222222222222222222222222222222222222222222','unanswered',1795742025.27849,NULL,NULL,NULL);
INSERT INTO "questions" VALUES('3333333333333333333333333333333333333333333333333333333333333333','failed',1.79574202527880311011e+09,NULL,NULL,'["meaning", "neither a picture tower nor a trained model", "one of them", "Search by words."]');
CREATE TABLE tags (
	picture VARCHAR(40) NOT NULL, 
	tag VARCHAR(64) NOT NULL, 
	PRIMARY KEY (picture, tag), 
	FOREIGN KEY(picture) REFERENCES pictures (id) ON DELETE CASCADE
);
INSERT INTO "tags" VALUES('3aad9d8db2d549938ef4ef00a5d4627a-0000','animal');
INSERT INTO "tags" VALUES('3aad9d8db2d549938ef4ef00a5d4627a-0000','cold');
CREATE TABLE tokens (
	digest VARCHAR(64) NOT NULL, 
	owner VARCHAR(128) NOT NULL, 
	created FLOAT NOT NULL, 
	PRIMARY KEY (digest)
);
INSERT INTO "tokens" VALUES('eafa391afc4305230a05c5d9da34ee05f962817766ff31e6093106559570e0dc','ada',1.79574202514501333237e+09);
CREATE TABLE turns (
	owner VARCHAR(128) NOT NULL, 
	served FLOAT NOT NULL, 
	PRIMARY KEY (owner)
);
INSERT INTO "turns" VALUES('ada',1.79574202525316143036e+09);
CREATE INDEX jobs_by_turn ON jobs (state, priority, owner, seq);
CREATE INDEX jobs_by_owner ON jobs (owner, seq);
CREATE INDEX jobs_by_fingerprint ON jobs (owner, fingerprint);
CREATE INDEX ix_questions_created ON questions (created);
CREATE INDEX ix_events_job ON events (job);
CREATE INDEX pictures_by_owner ON pictures (owner, seq);
CREATE INDEX ix_tags_tag ON tags (tag);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('jobs',5);
INSERT INTO "sqlite_sequence" VALUES('events',12);
INSERT INTO "sqlite_sequence" VALUES('pictures',1);
COMMIT;
