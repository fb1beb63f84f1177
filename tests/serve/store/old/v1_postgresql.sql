-- A store of tables version 1, by pg_dump of one that gouache's code filled before there were migrations.
CREATE TABLE public.accounts (
    name character varying(128) NOT NULL,
    password text,
    created double precision NOT NULL
);
CREATE TABLE public.boards (
    id character varying(32) NOT NULL,
    owner character varying(128) NOT NULL,
    name character varying(128) NOT NULL
);
CREATE TABLE public.errands (
    id character varying(32) NOT NULL,
    created double precision NOT NULL,
    model text NOT NULL,
    factor double precision NOT NULL,
    worker character varying(128),
    done boolean NOT NULL,
    error text
);
CREATE TABLE public.events (
    seq bigint NOT NULL,
    job character varying(32) NOT NULL,
    "time" double precision NOT NULL,
    kind character varying(16) NOT NULL,
    detail text NOT NULL
);
CREATE SEQUENCE public.events_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.events_seq_seq OWNED BY public.events.seq;
CREATE TABLE public.jobs (
    seq bigint NOT NULL,
    id character varying(32) NOT NULL,
    state character varying(16) NOT NULL,
    owner character varying(128) NOT NULL,
    source character varying(16) NOT NULL,
    label character varying(256) NOT NULL,
    priority integer NOT NULL,
    request text NOT NULL,
    fingerprint character varying(64) NOT NULL,
    idempotency_key character varying(256),
    attempts integer NOT NULL,
    created double precision NOT NULL,
    started double precision,
    finished double precision,
    worker character varying(128),
    lease_until double precision,
    cancel_requested boolean NOT NULL,
    watched_until double precision NOT NULL,
    picture integer NOT NULL,
    pictures integer NOT NULL,
    step integer NOT NULL,
    steps integer NOT NULL,
    error text
);
CREATE SEQUENCE public.jobs_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.jobs_seq_seq OWNED BY public.jobs.seq;
CREATE TABLE public.meanings (
    picture character varying(40) NOT NULL,
    space character varying(80) NOT NULL,
    vector bytea NOT NULL
);
CREATE TABLE public.meta (
    key character varying(64) NOT NULL,
    value text NOT NULL
);
CREATE TABLE public.models (
    path text NOT NULL,
    size bigint NOT NULL,
    modified double precision NOT NULL,
    sha256 character varying(64) NOT NULL
);
CREATE TABLE public.options (
    owner character varying(128) NOT NULL,
    key character varying(64) NOT NULL,
    value text NOT NULL
);
CREATE TABLE public.pictures (
    seq bigint NOT NULL,
    id character varying(40) NOT NULL,
    job character varying(32) NOT NULL,
    number integer NOT NULL,
    owner character varying(128) NOT NULL,
    created double precision NOT NULL,
    file character varying(64) NOT NULL,
    bytes bigint NOT NULL,
    sha256 character varying(64) NOT NULL,
    width integer NOT NULL,
    height integer NOT NULL,
    prompt text NOT NULL,
    seed bigint NOT NULL,
    model text NOT NULL,
    recipe text NOT NULL,
    starred boolean NOT NULL,
    deleted double precision,
    board character varying(32)
);
CREATE SEQUENCE public.pictures_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.pictures_seq_seq OWNED BY public.pictures.seq;
CREATE TABLE public.presets (
    owner character varying(128) NOT NULL,
    name character varying(128) NOT NULL,
    prompt text NOT NULL,
    negative_prompt text NOT NULL,
    request text NOT NULL
);
CREATE TABLE public.previews (
    job character varying(32) NOT NULL,
    number integer NOT NULL,
    jpeg bytea NOT NULL
);
CREATE TABLE public.questions (
    id character varying(64) NOT NULL,
    text text NOT NULL,
    created double precision NOT NULL,
    space character varying(80),
    vector bytea,
    error text
);
CREATE TABLE public.tags (
    picture character varying(40) NOT NULL,
    tag character varying(64) NOT NULL
);
CREATE TABLE public.tokens (
    digest character varying(64) NOT NULL,
    owner character varying(128) NOT NULL,
    created double precision NOT NULL
);
CREATE TABLE public.turns (
    owner character varying(128) NOT NULL,
    served double precision NOT NULL
);
ALTER TABLE ONLY public.events ALTER COLUMN seq SET DEFAULT nextval('public.events_seq_seq'::regclass);
ALTER TABLE ONLY public.jobs ALTER COLUMN seq SET DEFAULT nextval('public.jobs_seq_seq'::regclass);
ALTER TABLE ONLY public.pictures ALTER COLUMN seq SET DEFAULT nextval('public.pictures_seq_seq'::regclass);
INSERT INTO public.accounts VALUES ('bob', NULL, 1.5);
INSERT INTO public.boards VALUES ('277dd62da9ff4d2c8ae3d93d10140530', 'ada', 'best');
INSERT INTO public.errands VALUES ('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 1795742031.1346793, 'tiny', 2.5, NULL, false, NULL);
INSERT INTO public.errands VALUES ('bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 1795742031.137148, 'tiny', 2, 'old:1:1', true, '["upscaler", "x", "y", "Try a smaller one."]');
INSERT INTO public.errands VALUES ('cccccccccccccccccccccccccccccccc', 1795742031.1400144, 'tiny', 2, 'old:1:1', false, NULL);
INSERT INTO public.events VALUES (1, '3059ae3d42834f3c9c26dbab237d0bf5', 1795742030.9994354, 'queued', '');
INSERT INTO public.events VALUES (2, '3059ae3d42834f3c9c26dbab237d0bf5', 1795742031.0228138, 'running', 'old:1:1');
INSERT INTO public.events VALUES (3, '3059ae3d42834f3c9c26dbab237d0bf5', 1795742031.0295663, 'picture', '3059ae3d42834f3c9c26dbab237d0bf5-0000');
INSERT INTO public.events VALUES (4, '3059ae3d42834f3c9c26dbab237d0bf5', 1795742031.0343814, 'done', '');
INSERT INTO public.events VALUES (5, '06b0215568934ebaa5ca1fdfbbf754df', 1795742031.0618713, 'queued', '');
INSERT INTO public.events VALUES (6, '06b0215568934ebaa5ca1fdfbbf754df', 1795742031.0699234, 'running', 'old:1:1');
INSERT INTO public.events VALUES (7, '06b0215568934ebaa5ca1fdfbbf754df', 1795742031.0757205, 'failed', '');
INSERT INTO public.events VALUES (8, '5045b8a73aba405fa33fec9664756657', 1795742031.0834234, 'queued', '');
INSERT INTO public.events VALUES (9, '5045b8a73aba405fa33fec9664756657', 1795742031.0947642, 'running', 'old:1:1');
INSERT INTO public.events VALUES (10, 'd856a67d3c464ca0933f6107b5315fa3', 1795742031.101997, 'queued', '');
INSERT INTO public.events VALUES (11, '943b47214b634b8492fb0285bfa72fb3', 1795742031.1052253, 'queued', '');
INSERT INTO public.events VALUES (12, '943b47214b634b8492fb0285bfa72fb3', 1795742031.113007, 'cancelled', '');
INSERT INTO public.jobs VALUES (1, '3059ae3d42834f3c9c26dbab237d0bf5', 'done', 'ada', 'v1', 'first', 0, '{"prompt":"a red fox, 狐狸","negative_prompt":"","style":null,"emphasis":"a1111","clip_skip":null,"model":null,"seed":1,"subseed":null,"subseed_strength":0.0,"determinism":"exact","count":1,"width":null,"height":null,"background":null,"best_of":1,"num_inference_steps":null,"guidance_scale":null,"guidance_rescale":0.0,"guidance_interval":null,"apg":null,"image_guidance_scale":null,"sampler":null,"schedule":null,"sigmas":null,"eta":null,"churn":null,"init_image":null,"strength":null,"depth_image":null,"control":[],"resize_mode":"crop","mask":null,"outpaint":null,"inversion":null,"interpolation":null,"hires":null,"tiled":null,"vae_tiling":false,"seamless":"none","upscale":null,"prior":null,"watermark":null,"safety":"off"}', '569ba090a4a5a3ef9e5ba167a7d8a4ff2d1d63c0db060a3f60d662f5fda5f30c', 'k1', 1, 1795742030.9809217, 1795742031.0072775, 1795742031.0305138, NULL, NULL, false, 0, 1, 1, 0, 0, NULL);
INSERT INTO public.jobs VALUES (2, '06b0215568934ebaa5ca1fdfbbf754df', 'failed', 'ada', 'v1', '', 0, '{"prompt":"no such model","negative_prompt":"","style":null,"emphasis":"a1111","clip_skip":null,"model":null,"seed":1,"subseed":null,"subseed_strength":0.0,"determinism":"exact","count":1,"width":null,"height":null,"background":null,"best_of":1,"num_inference_steps":null,"guidance_scale":null,"guidance_rescale":0.0,"guidance_interval":null,"apg":null,"image_guidance_scale":null,"sampler":null,"schedule":null,"sigmas":null,"eta":null,"churn":null,"init_image":null,"strength":null,"depth_image":null,"control":[],"resize_mode":"crop","mask":null,"outpaint":null,"inversion":null,"interpolation":null,"hires":null,"tiled":null,"vae_tiling":false,"seamless":"none","upscale":null,"prior":null,"watermark":null,"safety":"off"}', '869dee07dc31606c7e0c2043c7faf6209c6f9735d99862ee1142f1c20a7696b2', NULL, 1, 1795742031.0593953, 1795742031.0655239, 1795742031.0707204, NULL, NULL, false, 0, 0, 1, 0, 0, '{"kind": "ModelNotFound", "where": "model", "given": "''gone''", "expected": "one of pocket", "cure": "Choose one of them.", "message": "model: given ''gone'', expected one of pocket. Choose one of them."}');
INSERT INTO public.jobs VALUES (3, '5045b8a73aba405fa33fec9664756657', 'running', 'ada', 'v1', '', 0, '{"prompt":"runs","negative_prompt":"","style":null,"emphasis":"a1111","clip_skip":null,"model":null,"seed":1,"subseed":null,"subseed_strength":0.0,"determinism":"exact","count":1,"width":null,"height":null,"background":null,"best_of":1,"num_inference_steps":null,"guidance_scale":null,"guidance_rescale":0.0,"guidance_interval":null,"apg":null,"image_guidance_scale":null,"sampler":null,"schedule":null,"sigmas":null,"eta":null,"churn":null,"init_image":null,"strength":null,"depth_image":null,"control":[],"resize_mode":"crop","mask":null,"outpaint":null,"inversion":null,"interpolation":null,"hires":null,"tiled":null,"vae_tiling":false,"seamless":"none","upscale":null,"prior":null,"watermark":null,"safety":"off"}', '30646f153f227fbc89461ac58fb988cd3bca2e6ef305579c544f5e31095414f4', NULL, 1, 1795742031.077277, 1795742031.0851884, NULL, 'old:1:1', 4795742031.085188, false, 0, 0, 1, 3, 20, NULL);
INSERT INTO public.jobs VALUES (4, 'd856a67d3c464ca0933f6107b5315fa3', 'queued', 'ada', 'v1', '', 2, '{"prompt":"waits","negative_prompt":"","style":null,"emphasis":"a1111","clip_skip":null,"model":null,"seed":1,"subseed":null,"subseed_strength":0.0,"determinism":"exact","count":1,"width":null,"height":null,"background":null,"best_of":1,"num_inference_steps":null,"guidance_scale":null,"guidance_rescale":0.0,"guidance_interval":null,"apg":null,"image_guidance_scale":null,"sampler":null,"schedule":null,"sigmas":null,"eta":null,"churn":null,"init_image":null,"strength":null,"depth_image":null,"control":[],"resize_mode":"crop","mask":null,"outpaint":null,"inversion":null,"interpolation":null,"hires":null,"tiled":null,"vae_tiling":false,"seamless":"none","upscale":null,"prior":null,"watermark":null,"safety":"off"}', 'cd396e00bc17a50217c047c8594d94207b64702f7b06c499f2ec8cde11199657', NULL, 0, 1795742031.0993748, NULL, NULL, NULL, NULL, false, 0, 0, 1, 0, 0, NULL);
INSERT INTO public.jobs VALUES (5, '943b47214b634b8492fb0285bfa72fb3', 'cancelled', 'ada', 'v1', '', 0, '{"prompt":"cancelled","negative_prompt":"","style":null,"emphasis":"a1111","clip_skip":null,"model":null,"seed":1,"subseed":null,"subseed_strength":0.0,"determinism":"exact","count":1,"width":null,"height":null,"background":null,"best_of":1,"num_inference_steps":null,"guidance_scale":null,"guidance_rescale":0.0,"guidance_interval":null,"apg":null,"image_guidance_scale":null,"sampler":null,"schedule":null,"sigmas":null,"eta":null,"churn":null,"init_image":null,"strength":null,"depth_image":null,"control":[],"resize_mode":"crop","mask":null,"outpaint":null,"inversion":null,"interpolation":null,"hires":null,"tiled":null,"vae_tiling":false,"seamless":"none","upscale":null,"prior":null,"watermark":null,"safety":"off"}', 'c95ca2c0c19ec0b95d3356d6270cace91737b7219cf8126ad22dd1a6387c6d45', NULL, 0, 1795742031.1030378, NULL, 1795742031.1119394, NULL, NULL, false, 0, 0, 1, 0, 0, NULL);
INSERT INTO public.meanings VALUES ('3059ae3d42834f3c9c26dbab237d0bf5-0000', 'pictures:cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd', '\x003c0000');
INSERT INTO public.meta VALUES ('schema', '1');
INSERT INTO public.meta VALUES ('secret', '64667f51dde970d7e6a56a836cf7a3f257648835b15f1f1a811288403ec7696a');
INSERT INTO public.models VALUES ('/models/a.safetensors', 12, 2.5, 'abababababababababababababababababababababababababababababababab');
INSERT INTO public.options VALUES ('ada', 'sd_model_checkpoint', '"pocket"');
INSERT INTO public.pictures VALUES (1, '3059ae3d42834f3c9c26dbab237d0bf5-0000', '3059ae3d42834f3c9c26dbab237d0bf5', 0, 'ada', 1795742031.0243273, '3059ae3d42834f3c9c26dbab237d0bf5-0000.png', 7, '2cea274d0bedc39ec4ab6ba9e59ec889e3ed6fb56a1cf088a64d9b383378dc97', 8, 8, 'a red fox, 狐狸', 1, 'm', '{"recipe":2,"request":{"prompt":"a red fox, 狐狸","negative_prompt":"","style":null,"emphasis":"a1111","clip_skip":null,"model":null,"seed":1,"subseed":null,"subseed_strength":0.0,"determinism":"exact","count":1,"width":null,"height":null,"background":null,"best_of":1,"num_inference_steps":null,"guidance_scale":null,"guidance_rescale":0.0,"guidance_interval":null,"apg":null,"image_guidance_scale":null,"sampler":null,"schedule":null,"sigmas":null,"eta":null,"churn":null,"init_image":null,"strength":null,"depth_image":null,"control":[],"resize_mode":"crop","mask":null,"outpaint":null,"inversion":null,"interpolation":null,"hires":null,"tiled":null,"vae_tiling":false,"seamless":"none","upscale":null,"prior":null,"watermark":null,"safety":"off"},"model":{"name":"m","family":"sd1","sha256":null,"path":null},"machine":{"device":"cpu","dtype":"float32","processor":"x","threads":1},"versions":{},"adapters":[],"attachments":{},"notes":[],"steps":[],"pixels":null}', true, NULL, '277dd62da9ff4d2c8ae3d93d10140530');
INSERT INTO public.presets VALUES ('ada', 'ink', '{prompt}, ink', 'photo', '{}');
INSERT INTO public.previews VALUES ('5045b8a73aba405fa33fec9664756657', 3, '\x6a706567');
INSERT INTO public.questions VALUES ('1111111111111111111111111111111111111111111111111111111111111111', 'a fox on water', 1795742031.1265543, 'pictures:cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd', '\x003c0000', NULL);
INSERT INTO public.questions VALUES ('2222222222222222222222222222222222222222222222222222222222222222', 'unanswered', 1795742031.1292572, NULL, NULL, NULL);
INSERT INTO public.questions VALUES ('3333333333333333333333333333333333333333333333333333333333333333', 'failed', 1795742031.1305337, NULL, NULL, '["meaning", "neither a picture tower nor a trained model", "one of them", "Search by words."]');
INSERT INTO public.tags VALUES ('3059ae3d42834f3c9c26dbab237d0bf5-0000', 'animal');
INSERT INTO public.tags VALUES ('3059ae3d42834f3c9c26dbab237d0bf5-0000', 'cold');
INSERT INTO public.tokens VALUES ('eafa391afc4305230a05c5d9da34ee05f962817766ff31e6093106559570e0dc', 'ada', 1795742030.962121);
INSERT INTO public.turns VALUES ('ada', 1795742031.0851884);
SELECT pg_catalog.setval('public.events_seq_seq', 12, true);
SELECT pg_catalog.setval('public.jobs_seq_seq', 5, true);
SELECT pg_catalog.setval('public.pictures_seq_seq', 1, true);
ALTER TABLE ONLY public.accounts
    ADD CONSTRAINT accounts_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.boards
    ADD CONSTRAINT boards_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.errands
    ADD CONSTRAINT errands_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT jobs_id_key UNIQUE (id);
ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY public.meanings
    ADD CONSTRAINT meanings_pkey PRIMARY KEY (picture, space);
ALTER TABLE ONLY public.meta
    ADD CONSTRAINT meta_pkey PRIMARY KEY (key);
ALTER TABLE ONLY public.models
    ADD CONSTRAINT models_pkey PRIMARY KEY (path);
ALTER TABLE ONLY public.boards
    ADD CONSTRAINT one_board_per_name UNIQUE (owner, name);
ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT one_job_per_key UNIQUE (owner, idempotency_key);
ALTER TABLE ONLY public.pictures
    ADD CONSTRAINT one_picture_per_number UNIQUE (job, number);
ALTER TABLE ONLY public.options
    ADD CONSTRAINT options_pkey PRIMARY KEY (owner, key);
ALTER TABLE ONLY public.pictures
    ADD CONSTRAINT pictures_file_key UNIQUE (file);
ALTER TABLE ONLY public.pictures
    ADD CONSTRAINT pictures_id_key UNIQUE (id);
ALTER TABLE ONLY public.pictures
    ADD CONSTRAINT pictures_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY public.presets
    ADD CONSTRAINT presets_pkey PRIMARY KEY (owner, name);
ALTER TABLE ONLY public.previews
    ADD CONSTRAINT previews_pkey PRIMARY KEY (job);
ALTER TABLE ONLY public.questions
    ADD CONSTRAINT questions_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.tags
    ADD CONSTRAINT tags_pkey PRIMARY KEY (picture, tag);
ALTER TABLE ONLY public.tokens
    ADD CONSTRAINT tokens_pkey PRIMARY KEY (digest);
ALTER TABLE ONLY public.turns
    ADD CONSTRAINT turns_pkey PRIMARY KEY (owner);
CREATE INDEX ix_events_job ON public.events USING btree (job);
CREATE INDEX ix_questions_created ON public.questions USING btree (created);
CREATE INDEX ix_tags_tag ON public.tags USING btree (tag);
CREATE INDEX jobs_by_fingerprint ON public.jobs USING btree (owner, fingerprint);
CREATE INDEX jobs_by_owner ON public.jobs USING btree (owner, seq);
CREATE INDEX jobs_by_turn ON public.jobs USING btree (state, priority, owner, seq);
CREATE INDEX pictures_by_owner ON public.pictures USING btree (owner, seq);
ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_job_fkey FOREIGN KEY (job) REFERENCES public.jobs(id) ON DELETE CASCADE;
ALTER TABLE ONLY public.meanings
    ADD CONSTRAINT meanings_picture_fkey FOREIGN KEY (picture) REFERENCES public.pictures(id) ON DELETE CASCADE;
ALTER TABLE ONLY public.pictures
    ADD CONSTRAINT pictures_board_fkey FOREIGN KEY (board) REFERENCES public.boards(id) ON DELETE SET NULL;
ALTER TABLE ONLY public.pictures
    ADD CONSTRAINT pictures_job_fkey FOREIGN KEY (job) REFERENCES public.jobs(id);
ALTER TABLE ONLY public.previews
    ADD CONSTRAINT previews_job_fkey FOREIGN KEY (job) REFERENCES public.jobs(id) ON DELETE CASCADE;
ALTER TABLE ONLY public.tags
    ADD CONSTRAINT tags_picture_fkey FOREIGN KEY (picture) REFERENCES public.pictures(id) ON DELETE CASCADE;
